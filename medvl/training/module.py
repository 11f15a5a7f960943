"""One training step: encode, gather over ranks, compare; and the optimiser that follows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from medvl.alignment import AlignmentModel
from medvl.data.dataset import integer_key
from medvl.features import Batch, ImageFeatures, LossTerms, Positives, TextFeatures
from medvl.objectives.base import AlignmentObjective
from medvl.objectives.sentences import sentence_keys
from medvl.training.average import averaged_copy, ema_decay, move_average
from medvl.training.chunks import encode_in_chunks, refuse_batch_norm
from medvl.training.gather import average_gradients, gather, gather_features, lengthen
from medvl.training.optimiser import by_depth, parameter_groups, warmup_cosine
from medvl.training.sharding import clip_gradients, shard_tower

__all__ = ["AlignmentModule", "Learning", "Names"]

Names = tuple[Int[Tensor, "names tokens"], Int[Tensor, "names tokens"]]
"""Tokens and token mask of the findings' names."""
_KEYS = ("study", "report", "labels", "bank")


@dataclass(frozen=True)
class Learning:
    """How the optimiser learns.

    Attributes:
        lr, image, text, weight_decay, betas: of AdamW, see :class:`medvl.training.recipe.Optimiser`.
        layer_decay: see :func:`medvl.training.optimiser.by_depth`; 1 for none.
        warmup: steps of linear warm-up.
        floor: last factor of the learning rate.
        ema: decay of the averaged weights; 0 for none.
    """

    lr: float
    image: float = 1.0
    text: float = 1.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    layer_decay: float = 1.0
    warmup: int = 0
    floor: float = 0.0
    ema: float = 0.0


class AlignmentModule(LightningModule):
    """The model and its objective as Lightning trains them.

    The random numbers of step s on rank r (dropout) are a function of ``(seed, s, r)``, so that a resumed run
    draws what an uninterrupted one would have drawn; with chunks also of the chunk's number.

    Args:
        model: encoders and projections.
        objective: the loss; see :class:`medvl.features.Objective`.
        positives: study, report, labels and bank of a batch to its positives; keyword arguments.
        learning: of the optimiser.
        steps: of the whole run.
        steps_per_epoch: for the objective, which may treat the first epochs otherwise.
        seed: of dropout.
        chunk: rows that are encoded at once; see :func:`medvl.training.chunks.encode_in_chunks`.
        names: the findings' names, for an objective that reads ``attributes``.
        body_parts: anatomical parts that an objective tells apart by the voxels of a segmentation.
        sharded: whether the towers are spread over the ranks.
    """

    def __init__(
        self,
        model: AlignmentModel,
        objective: nn.Module,
        *,
        positives: Callable[..., Positives],
        learning: Learning,
        steps: int,
        steps_per_epoch: int,
        seed: int = 0,
        chunk: int | None = None,
        names: Names | None = None,
        body_parts: int = 0,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        # The layout that convolutions are fastest in, on CPUs by a third.
        # Kernels of volumes stay as they are: their gradients come in another layout, and little is won.
        for parameter in model.image_encoder.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.model, self.objective = model, objective
        self.average = averaged_copy(model, share=not sharded) if learning.ema else None
        self.positives, self.learning = positives, learning
        self.steps, self.steps_per_epoch, self.seed, self.chunk = steps, steps_per_epoch, seed, chunk
        self.names, self.body_parts, self.sharded = names, body_parts, sharded
        aim = cast(AlignmentObjective, objective)
        self.parts = aim.needs_local or aim.needs_parts
        self.needs_attributes = aim.needs_attributes and names is not None
        self.last_terms: LossTerms | None = None
        if chunk is not None:
            refuse_batch_norm({"image": model.image_encoder.train(), "text": model.text_encoder.train()})

    @property
    def judged(self) -> AlignmentModel:
        """The model that is validated and kept: the averaged one where there is one."""
        return self.model if self.average is None else self.average

    def train(self, mode: bool = True) -> AlignmentModule:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Switch between training and evaluation; the average never trains."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def encode(self, batch: Batch) -> tuple[ImageFeatures, TextFeatures]:
        """Return the projected features of a batch that is all on this rank."""
        return self._normalised(*self._projected(batch))

    def _projected(self, batch: Batch, *, step: int | None = None) -> tuple[ImageFeatures, TextFeatures]:
        """Return features that no other row has touched; of a step, under its random numbers."""
        seed = f"{self.seed}" if step is None else f"{self.seed}:{step}"
        attributes = None
        if self.needs_attributes:
            assert self.names is not None
            if step is not None:  # not a function of the rank: all ranks must read the same vectors
                torch.manual_seed(integer_key(f"{seed}:attributes"))
            attributes = self._model.embed_names(*(part.to(batch.tokens.device) for part in self.names))
        seed = f"{seed}:{self.global_rank}"
        if self.chunk is not None:
            image, text = encode_in_chunks(self._rows, batch, chunk=self.chunk, seed=seed)
        else:
            if step is not None:
                torch.manual_seed(integer_key(seed))
            image, text = self._rows(batch)
        return image, replace(text, attributes=attributes)

    def _rows(self, batch: Batch) -> tuple[ImageFeatures, TextFeatures]:
        images = batch.images
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        image = self._model.project_image(
            images,
            batch.image_mask,
            parts=self.parts,
            voxel_parts=batch.voxel_parts,
            body_parts=self.body_parts,
        )
        text = self._model.project_text(batch.tokens, batch.token_mask, parts=self.parts)
        sentences = text.sentences.shape[1]
        # A long report loses its last sentences to the tokeniser, and a column may be empty.
        parts, states = (
            None if numbers is None else lengthen(numbers[:, :sentences], sentences)
            for numbers in (batch.sentence_parts, batch.sentence_states)
        )
        text = replace(
            text,
            sentence_keys=sentence_keys(batch.tokens, batch.token_mask, sentences=sentences),
            sentence_parts=parts,
            sentence_states=states,
            findings=batch.labels,
        )
        return replace(image, present=batch.image_present), text

    def _normalised(self, image: ImageFeatures, text: TextFeatures) -> tuple[ImageFeatures, TextFeatures]:
        return self._model.normalise_image(image), self._model.normalise_text(text)

    @property
    def _model(self) -> AlignmentModel:
        return self.model if self.training else self.judged

    def loss(self, image: ImageFeatures, text: TextFeatures, batch: Batch) -> LossTerms:
        """Return the loss of features that are all on this rank."""
        keys = {name: getattr(batch, name) for name in _KEYS}
        given = self.positives(**{name: key for name, key in keys.items() if key is not None})
        terms: LossTerms = self.objective(image, text, given)
        return terms

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of the batch of all ranks."""
        step = self.global_step
        if step % self.steps_per_epoch == 0 or self.last_terms is None:
            self.objective.on_epoch(step // self.steps_per_epoch)  # type: ignore[operator]
        image, text = self._projected(batch, step=step)
        image, text = gather_features(image), gather_features(text)
        keys = {name: getattr(batch, name) for name in _KEYS}
        joined: dict[str, Any] = {n: None if key is None else gather(key) for n, key in keys.items()}
        batch = replace(batch, **joined)
        # After the gather, so that a norm sees the batch of all ranks.
        self.last_terms = self.loss(*self._normalised(image, text), batch)
        return self.last_terms.total

    def on_after_backward(self) -> None:
        """Average what no wrapper averages: everything after chunks, the small rest beside sharded towers."""
        if self.trainer.world_size > 1 and (self.chunk is not None or self.sharded):
            average_gradients(p for p in self.parameters() if not hasattr(p, "full_tensor"))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then bring the objective's scales and prototypes back into their range."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.objective.clamp_()  # type: ignore[operator]
        if self.average is not None:
            move_average(self.average, self.model, decay=ema_decay(self.learning.ema, step=step))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients; Lightning's own way refuses a fused AdamW in mixed precision."""
        if gradient_clip_val:
            clip = clip_gradients if self.sharded else torch.nn.utils.clip_grad_norm_
            clip(self.parameters(), gradient_clip_val)

    def configure_model(self) -> None:
        """Spread the towers over the ranks, if asked; Lightning calls it when the ranks know each other."""
        if self.sharded:
            for model in (self.model, *([] if self.average is None else [self.average])):
                for tower in (model.image_encoder, model.text_encoder):
                    shard_tower(tower, device=self.trainer.strategy.root_device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW over the layer groups with warm-up and cosine by step."""
        rule = self.learning
        groups: dict[str, Sequence[tuple[str, nn.Parameter]]] = dict(self.model.named_towers())
        factors = {"image": rule.image, "text": rule.text}
        if rule.layer_decay < 1:
            for part in ("image", "text"):
                depths = self.model.get_submodule(f"{part}_encoder").depths
                named = {f"{part}_encoder.{name}": depth for name, depth in cast(Any, depths).items()}
                split, their_factors = by_depth(
                    part, groups.pop(part), depths=named, factor=factors[part], decay=rule.layer_decay
                )
                groups, factors = {**groups, **split}, {**factors, **their_factors}
        optimiser = torch.optim.AdamW(
            parameter_groups(
                {**groups, "objective": self.objective.named_parameters()},
                lr=rule.lr,
                factors=factors,
                weight_decay=rule.weight_decay,
            ),
            betas=rule.betas,
            fused=True,
        )
        factor = functools.partial(warmup_cosine, total=self.steps, warmup=rule.warmup, floor=rule.floor)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Give restored optimiser state the memory layout of its parameters, which a file does not keep."""
        if self.chunk is not None and self.trainer.world_size > 1 and not self.sharded:
            self.trainer.strategy.model.require_backward_grad_sync = False  # type: ignore[union-attr]
        if self.sharded:
            return
        for optimiser in self.trainer.optimizers:
            for parameter, state in optimiser.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = torch.empty_like(parameter).copy_(value)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch on ``device``."""
        return to_device(batch, device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return ``batch`` with every tensor on ``device``."""
    if device.type == "cpu":
        return batch
    moved: dict[str, Any] = {
        name: None if tensor is None else tensor.to(device, non_blocking=True)
        for name, tensor in vars(batch).items()
    }
    return Batch(**moved)
