"""Student and teacher: one tower and one head twice, of which the second follows the first slowly."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medvl.encoders.image import ImageTower
from medvl.encoders.vit import VitTower
from medvl.features import ImageFeatures, LossTerms
from medvl.objectives.contrast import unit
from medvl.training.average import move_average
from medvl.training.gather import gather
from medvl.training.selfdistil.loss import (
    Centring,
    cross_view_loss,
    hidden_patch_loss,
    koleo_loss,
    mean_of_ranks,
    teacher_targets,
)
from medvl.training.selfdistil.views import Views

__all__ = ["Distiller", "Head", "Standardise", "teacher_momentum", "teacher_temperature"]


class Head(nn.Module):
    """Vectors to prototype scores: three layers, a unit vector, and its cosine with each prototype.

    The cosine is DINO's weight-normed last layer with its length fixed at 1. Films and patches share it.

    Args:
        width: of the vectors.
        hidden: of both hidden layers.
        bottleneck: of the unit vector.
        prototypes: how many there are.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        sizes = (width, hidden, hidden)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, vectors: Float[Tensor, "rows width"]) -> Float[Tensor, "rows prototypes"]:
        """Return the cosines, in single precision."""
        found = self.mlp(vectors)
        with torch.autocast(found.device.type, enabled=False):
            return unit(found) @ unit(self.prototypes).T


class Standardise(nn.Module):
    """Subtract the running mean of the teacher's vectors and divide by their running spread, axis by axis.

    The vectors of a tower from scratch all point the same way. Without this their scores hardly differ, the
    targets start uniform, and uniform they stay. The statistics are constants to the gradient and the same on
    all ranks.

    Args:
        width: of the vectors.
        momentum: how much of the old statistics stays, once there have been some.
    """

    moments: Float[Tensor, "2 width"]
    batches: Float[Tensor, ""]

    def __init__(self, width: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("moments", torch.stack([torch.zeros(width), torch.ones(width)]))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, vectors: Float[Tensor, "rows width"]) -> None:
        """Take the teacher's vectors, those of all ranks, into the statistics; there may be none."""
        vectors = vectors.float()
        mean, some = mean_of_ranks(vectors)
        variance, _ = mean_of_ranks((vectors - mean).square())
        if some:
            self.batches += 1
            now = torch.stack([mean, variance])
            self.moments.lerp_(now, max(1 - self.momentum, 1 / float(self.batches)))

    def forward(self, vectors: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Return the standardised vectors, in single precision."""
        mean, variance = self.moments
        spread = variance.sqrt()
        # An axis that is the same for all stays near zero instead of its rounding errors filling it.
        return (vectors.float() - mean) / (spread + 0.01 * spread.mean() + 1e-6)


class Distiller(nn.Module):
    """A student that learns from its own slow average, the teacher.

    A vision transformer gets a learnt vector in the place of a hidden patch. A convolutional tower gets the
    input's mean grey in the pixels of a hidden region: it has no patches, and a region sees its surroundings,
    so it guesses what it does not see from what lies around it.

    Args:
        tower: the student; the teacher starts as its copy.
        hidden, bottleneck, prototypes: see :class:`Head`.
        centring: see :func:`medvl.training.selfdistil.loss.teacher_targets`.
        centre_momentum: of the centre.
        student_temperature: of the student's predictions.
        patches, koleo: weights of the terms.
    """

    centre: Float[Tensor, "2 prototypes"]

    def __init__(
        self,
        tower: ImageTower,
        *,
        prototypes: int = 4096,
        hidden: int = 2048,
        bottleneck: int = 256,
        centring: Centring = "sinkhorn",
        centre_momentum: float = 0.9,
        student_temperature: float = 0.1,
        patches: float = 1.0,
        koleo: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"hidden": hidden, "bottleneck": bottleneck, "prototypes": prototypes}
        self.student, self.head = tower, Head(tower.width, **sizes)
        # Regions of another width, as at the finer stride of a tower, cannot share the head.
        self.patch_head = (
            Head(tower.region_width, **sizes) if patches and tower.region_width != tower.width else None
        )
        self.teacher = copy.deepcopy(tower).requires_grad_(requires_grad=False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(requires_grad=False)
        self.teacher_patch_head = copy.deepcopy(self.patch_head)
        if self.teacher_patch_head is not None:
            self.teacher_patch_head.requires_grad_(requires_grad=False)
        self.token = nn.Parameter(0.02 * torch.randn(tower.width)) if isinstance(tower, VitTower) else None
        self.level, self.patch_level = Standardise(tower.width), Standardise(tower.region_width)
        self.centring, self.centre_momentum = centring, centre_momentum
        self.student_temperature, self.patches, self.koleo = student_temperature, patches, koleo
        self.register_buffer("centre", torch.zeros(2, prototypes if centring == "moving" else 0))
        self.train()

    def train(self, mode: bool = True) -> Distiller:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Switch between training and evaluation; the teacher never trains."""
        super().train(mode)
        for part in self._pairs():
            part[0].eval()
        return self

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (self.teacher, self.student),
            (self.teacher_head, self.head),
        ]
        if self.patch_head is not None and self.teacher_patch_head is not None:
            pairs.append((self.teacher_patch_head, self.patch_head))
        return pairs

    def follow(self, *, momentum: float) -> None:
        """Move the teacher towards the student: ``θ_t ← m θ_t + (1 − m) θ_s``."""
        for teacher, student in self._pairs():
            move_average(teacher, student, decay=momentum)

    def forward(self, views: Views, *, temperature: float) -> LossTerms:
        """Return the loss of a batch; ``temperature`` is the teacher's."""
        count, films = views.large.shape[:2]
        large, mask = views.large.flatten(0, 1), views.large_mask.flatten(0, 1)
        with torch.no_grad():
            seen = self.teacher(large, mask)
            if self.training:
                self.level.update(seen.pooled)
            hidden = views.hidden.flatten(0, 1) & seen.region_mask
            targets = self._targets(self.teacher_head(self.level(seen.pooled)), 0, temperature)
        found = self._student(large, mask, hidden, seen.region_grid)
        scores = [self.head(self.level(found.pooled)).unflatten(0, (count, films))]
        if len(views.small):
            small = self.student(views.small.flatten(0, 1), views.small_mask.flatten(0, 1))
            scores.append(self.head(self.level(small.pooled)).unflatten(0, (len(views.small), films)))
        agree = cross_view_loss(
            torch.cat(scores), targets.unflatten(0, (count, films)), temperature=self.student_temperature
        )
        total, terms = agree, {"views": agree.detach(), **_health(targets)}
        if self.patches:
            guess = self._patches(seen, found, hidden, temperature)
            total, terms["patches"] = total + self.patches * guess, guess.detach()
        if self.koleo:
            # The neighbours of a film are those of all ranks; its own other views are none.
            pooled = found.pooled.unflatten(0, (count, films))
            apart = torch.stack([koleo_loss(gather(view)) for view in pooled.unbind()]).mean()
            total, terms["koleo"] = total + self.koleo * apart, apart.detach()
        return LossTerms(total, terms)

    def _patches(
        self,
        seen: ImageFeatures,
        found: ImageFeatures,
        hidden: Bool[Tensor, "rows patches"],
        temperature: float,
    ) -> Float[Tensor, ""]:
        teacher, student = self.teacher_patch_head or self.teacher_head, self.patch_head or self.head
        with torch.no_grad():
            shown = seen.regions[hidden]
            if self.training:
                self.patch_level.update(shown)
            targets = self._targets(teacher(self.patch_level(shown)), 1, temperature)
        film = hidden.nonzero()[:, 0]
        return hidden_patch_loss(
            student(self.patch_level(found.regions[hidden])),
            targets,
            film,
            films=len(hidden),
            temperature=self.student_temperature,
        )

    def _student(
        self,
        images: Float[Tensor, "rows channels *spatial"],
        mask: Bool[Tensor, " rows *spatial"],
        hidden: Bool[Tensor, "rows patches"],
        grid: tuple[int, ...],
    ) -> ImageFeatures:
        if isinstance(self.student, VitTower):
            found: ImageFeatures = self.student(images, mask, hidden=hidden, token=self.token)
            return found
        cells = hidden.unflatten(1, grid)[:, None].to(images.dtype)
        pixels = F.interpolate(cells, images.shape[2:], mode="nearest").bool()
        found = self.student(images.masked_fill(pixels, 0.0), mask)  # 0 is the mean of the input spec
        return found

    def _targets(
        self, scores: Float[Tensor, "rows prototypes"], which: int, temperature: float
    ) -> Float[Tensor, "rows prototypes"]:
        if self.centring == "sinkhorn":
            return teacher_targets(scores, temperature=temperature)
        targets = teacher_targets(
            scores, temperature=temperature, centring="moving", centre=self.centre[which]
        )
        mean, some = mean_of_ranks(scores)
        if self.training and some:
            self.centre[which].lerp_(mean, 1 - self.centre_momentum)
        return targets


def teacher_momentum(step: int, *, total: int, start: float) -> float:
    """Return how much of the teacher stays at ``step``: ``1 − (1 − m)·½(1 + cos π s/S)``.

    Examples:
        >>> [round(teacher_momentum(s, total=4, start=0.9), 3) for s in (0, 2, 4)]
        [0.9, 0.95, 1.0]
    """
    return 1 - (1 - start) * (1 + math.cos(math.pi * min(1.0, step / max(1, total)))) / 2


def teacher_temperature(step: int, *, warmup: int, between: tuple[float, float]) -> float:
    """Return the teacher's temperature at ``step``, linear over the warm-up.

    Examples:
        >>> [round(teacher_temperature(s, warmup=2, between=(0.04, 0.07)), 3) for s in (0, 1, 2, 9)]
        [0.04, 0.055, 0.07, 0.07]
    """
    done = min(1.0, step / warmup) if warmup else 1.0
    return between[0] + done * (between[1] - between[0])


def _health(targets: Float[Tensor, "rows prototypes"]) -> dict[str, Any]:
    """Return the mean entropy of the targets and the entropy of their mean, both over ln K.

    A collapse to one prototype shows as a spread of 0, one to all of them as a sharpness of 0.
    """
    top = math.log(targets.shape[1])
    mean = targets.mean(dim=0)
    each = torch.special.entr(targets).sum(dim=1).mean() / top
    return {"sharpness": 1 - each, "spread": torch.special.entr(mean).sum() / top}
