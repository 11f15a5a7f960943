"""One training step: encode, gather over ranks, compare; and the optimiser that follows."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from medvl.alignment import AlignmentModel
from medvl.data import PositivesMode, positives
from medvl.data.dataset import integer_key
from medvl.features import Batch, ImageFeatures, LossTerms, TextFeatures
from medvl.objectives.sentences import sentence_keys
from medvl.training.gather import gather, gather_features
from medvl.training.optimiser import parameter_groups, warmup_cosine

__all__ = ["AlignmentModule"]


class AlignmentModule(LightningModule):
    """The model and its objective as Lightning trains them.

    The random numbers of step s on rank r (dropout) are a function of ``(seed, s, r)``, so that a resumed run
    draws what an uninterrupted one would have drawn.

    Args:
        model: encoders and projections.
        objective: the loss; see :class:`medvl.features.Objective`.
        positives_mode, similar_weight: see :func:`medvl.data.positives`.
        steps: of the whole run.
        steps_per_epoch: for the objective, which may treat the first epochs otherwise.
        lr, image_factor, text_factor, weight_decay, betas: of AdamW.
        warmup: steps of linear warm-up.
        floor: last factor of the learning rate.
        seed: of dropout.
    """

    def __init__(
        self,
        model: AlignmentModel,
        objective: nn.Module,
        *,
        positives_mode: PositivesMode,
        similar_weight: float,
        steps: int,
        steps_per_epoch: int,
        lr: float,
        image_factor: float = 1.0,
        text_factor: float = 1.0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup: int = 0,
        floor: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # The layout that convolutions are fastest in, on CPUs by a third.
        model.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.objective = model, objective
        self.positives_mode, self.similar_weight = positives_mode, similar_weight
        self.steps, self.steps_per_epoch, self.seed = steps, steps_per_epoch, seed
        self.lr, self.factors = lr, {"image": image_factor, "text": text_factor}
        self.weight_decay, self.betas, self.warmup, self.floor = weight_decay, betas, warmup, floor
        self.last_terms: LossTerms | None = None

    def encode(self, batch: Batch) -> tuple[ImageFeatures, TextFeatures]:
        """Return the projected features of the images and the texts."""
        images = batch.images
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        image = self.model.encode_image(images, batch.image_mask)
        text = self.model.encode_text(batch.tokens, batch.token_mask)
        keys = sentence_keys(batch.tokens, batch.token_mask, sentences=text.sentences.shape[1])
        text = replace(text, sentence_keys=keys, sentence_parts=batch.sentence_parts, findings=batch.labels)
        return replace(image, present=batch.image_present), text

    def loss(self, image: ImageFeatures, text: TextFeatures, batch: Batch) -> LossTerms:
        """Return the loss of features that are all on this rank."""
        matrix = positives(
            batch.study, batch.report, batch.labels, mode=self.positives_mode, weight=self.similar_weight
        )
        terms: LossTerms = self.objective(image, text, matrix)
        return terms

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of the batch of all ranks."""
        step = self.global_step
        torch.manual_seed(integer_key(f"{self.seed}:{step}:{self.global_rank}"))
        if step % self.steps_per_epoch == 0 or self.last_terms is None:
            self.objective.on_epoch(step // self.steps_per_epoch)  # type: ignore[operator]
        image, text = self.encode(batch)
        if self.trainer.world_size > 1:
            image, text = gather_features(image), gather_features(text)
            keys = {name: gather(getattr(batch, name)) for name in ("study", "report", "labels")}
            batch = replace(batch, **keys)
        self.last_terms = self.loss(image, text, batch)
        return self.last_terms.total

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then bring the objective's scales and prototypes back into their range."""
        super().optimizer_step(*args, **kwargs)
        self.objective.clamp_()  # type: ignore[operator]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients; Lightning's own way refuses a fused AdamW in mixed precision."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW over the layer groups with warm-up and cosine by step."""
        groups = parameter_groups(
            {**self.model.named_towers(), "objective": self.objective.named_parameters()},
            lr=self.lr,
            factors=self.factors,
            weight_decay=self.weight_decay,
        )
        optimiser = torch.optim.AdamW(groups, betas=self.betas, fused=True)
        factor = functools.partial(warmup_cosine, total=self.steps, warmup=self.warmup, floor=self.floor)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Give restored optimiser state the memory layout of its parameters, which a file does not keep."""
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
    moved = {
        name: None if tensor is None else tensor.to(device, non_blocking=True)
        for name, tensor in vars(batch).items()
    }
    return Batch(**moved)
