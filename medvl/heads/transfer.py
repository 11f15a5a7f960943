"""Transfer: a classifier on an image encoder, and the training of any head with or without its encoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medvl.alignment import AlignmentModel
from medvl.encoders.image import rebuild_image_encoder
from medvl.encoders.lora import LoraOptions, add_lora, merge_lora
from medvl.encoders.pooling import AttentionPool
from medvl.encoders.regions import ImageTower
from medvl.errors import UsageError, nearest
from medvl.progress import Progress
from medvl.training.optimiser import parameter_groups, warmup_cosine

__all__ = ["TRAIN", "Classifier", "fit_head", "label_loss", "tower_to_train"]

TRAIN = ("frozen", "lora", "full")
"""How far the encoder trains under a head."""

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Images, their mask, and what the head is taught of them."""


class Classifier(nn.Module):
    """One linear layer on the pooled vector of an image encoder, before any projection.

    Args:
        encoder: any image tower, under any training policy.
        labels: scores of each image.
        pool: the model's own pooling of regions, where it has one.
    """

    def __init__(self, encoder: ImageTower, *, labels: int, pool: AttentionPool | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        if pool is not None:
            pool.requires_grad_(encoder.policy != "frozen")
        self.head = nn.Linear(encoder.width if pool is None else encoder.region_width, labels)
        nn.init.zeros_(self.head.weight)  # so that training starts from no opinion
        nn.init.zeros_(self.head.bias)

    def vectors(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
    ) -> Float[Tensor, "batch width"]:
        """Return the pooled vectors."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder.policy != "frozen"):
            found = self.encoder(images, image_mask)
            return found.pooled if self.pool is None else self.pool(found.regions, found.region_mask)

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
    ) -> Float[Tensor, "batch labels"]:
        """Return the log odds of each label."""
        return self.head(self.vectors(images, image_mask))


def label_loss(
    scores: Float[Tensor, "batch labels"], labels: Float[Tensor, "batch labels"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the labels that are known; NaN ones do not count.

    Examples:
        >>> loss = label_loss(torch.zeros(2, 2), torch.tensor([[1.0, torch.nan], [0.0, torch.nan]]))
        >>> round(float(loss), 6)  # ln 2
        0.693147
    """
    known = ~labels.isnan()
    each = F.binary_cross_entropy_with_logits(scores, labels.nan_to_num(), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def tower_to_train(
    model: AlignmentModel, train: str, *, start: str = "model", lora: LoraOptions | None = None
) -> ImageTower:
    """Return a copy of a model's image encoder under another training policy; old adapters are merged.

    Args:
        model: stays as it is.
        train: ``frozen``, ``lora`` or ``full``.
        start: ``model`` keeps the weights, ``random`` draws new ones.
        lora: of new adapters; linear layers if there are any, else convolutions, of rank 8.

    Raises:
        UsageError: another policy.
    """
    if train not in TRAIN:
        raise UsageError(f"unknown training policy '{train}'.", hint=nearest(train, TRAIN))
    own = model.image_encoder
    tower = copy.deepcopy(own) if start == "model" else rebuild_image_encoder(own.name, own.architecture)
    if tower.lora is not None:
        merge_lora(tower)
    tower.frozen_layers = 0
    if train == "lora":
        linear = any(isinstance(module, nn.Linear) for module in tower.modules())
        return add_lora(tower, lora or LoraOptions(targets="all-linear" if linear else "all-conv"))
    tower.set_policy(train)
    return tower


def fit_head(
    net: nn.Module,
    batches: Iterable[Rows],
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    lr: float,
    encoder_factor: float = 0.1,
    weight_decay: float = 0.01,
    progress: Progress | None = None,
) -> list[float]:
    """Train a :class:`Classifier` or a segmenter in place; return the loss of each step.

    AdamW under a cosine with a tenth of the steps as warm-up; gradients are cut at norm 1. The encoder learns
    ``encoder_factor`` times as fast as the head, as far as its policy lets it, and adapters as fast as the
    head.

    Args:
        net: with an ``encoder`` and a ``head``.
        batches: one a step, on the device of ``net``.
        loss: of scores and what they are taught.
        steps: taken from ``batches``.
        lr: of the head.
        encoder_factor: of ``lr`` for the encoder's own weights.
        weight_decay: of matrices.
        progress: called after each step.

    Raises:
        UsageError: the loss is not finite.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"encoder": [], "head": []}
    for name, parameter in net.named_parameters():
        pretrained = name.startswith(("encoder.", "pool.")) and ".lora_" not in name
        groups["encoder" if pretrained else "head"].append((name, parameter))
    optimiser = torch.optim.AdamW(
        parameter_groups(groups, lr=lr, factors={"encoder": encoder_factor}, weight_decay=weight_decay)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warmup_cosine(step, total=steps, warmup=max(1, steps // 10), floor=0.01)
    )
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.train()
    losses: list[float] = []
    for step, (images, mask, taught) in zip(range(steps), batches, strict=False):
        value = loss(net(images, mask), taught)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise UsageError(f"the loss of step {step + 1} is {losses[-1]}.", hint="Give a smaller lr.")
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps, "training the head")
    net.eval()
    return losses
