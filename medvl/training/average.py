"""The average of a model over its steps: an exponential moving average of what trains."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medvl.alignment import AlignmentModel

__all__ = ["averaged_copy", "ema_decay", "move_average"]


def ema_decay(decay: float, *, step: int) -> float:
    """Return how much of the average stays at ``step``: ``min(d, (1 + s)/(10 + s))``.

    Without the second term a short run would average mostly its first, random weights.

    Examples:
        >>> [round(ema_decay(0.99, step=s), 3) for s in (0, 10, 1000)]
        [0.1, 0.55, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))


def averaged_copy(model: AlignmentModel, *, share: bool) -> AlignmentModel:
    """Return a copy in eval mode that no optimiser touches.

    Args:
        model: the model that trains.
        share: let the copy use the very same frozen weights and running statistics, which cost no memory
            then. Sharded weights cannot be shared.
    """
    shared: dict[int, Any] = {}
    if share:
        frozen: Iterable[Tensor] = (value for value in model.parameters() if not value.requires_grad)
        shared = {id(value): value for value in (*frozen, *model.buffers())}
    trains = {name for name, value in model.named_parameters() if value.requires_grad}
    average = copy.deepcopy(model, shared)
    for name, value in average.named_parameters():
        if name in trains:
            value.requires_grad = False
    return average.eval()


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Move the averaged weights, ``a ← d·a + (1 − d)·w``; frozen weights and statistics are copied.

    Examples:
        >>> average, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = average.weight.data.fill_(1.0), model.weight.data.fill_(3.0)
        >>> move_average(average, model, decay=0.75)
        >>> average.weight.item()
        1.5
    """
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        if theirs.requires_grad:
            ours.lerp_(theirs, 1 - decay)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        if kept is not now:
            kept.copy_(now)
