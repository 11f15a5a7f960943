"""Which parameters learn how fast, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["by_depth", "parameter_groups", "warmup_cosine"]


def parameter_groups(
    modules: Mapping[str, Iterable[tuple[str, nn.Parameter]]],
    *,
    lr: float,
    factors: Mapping[str, float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return AdamW's groups: each module's matrices, which decay, and its vectors and scalars, which do not.

    Args:
        modules: named parameters by layer group; frozen ones are left out.
        lr: learning rate.
        factors: factor of ``lr`` for each layer group; 1 where none is given.
        weight_decay: of matrices.
    """
    groups: list[dict[str, Any]] = []
    for name, parameters in modules.items():
        trained = [parameter for _, parameter in parameters if parameter.requires_grad]
        rate = lr * factors.get(name, 1.0)
        for decays in (True, False):
            chosen = [parameter for parameter in trained if (parameter.ndim > 1) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                groups.append({"name": name, "params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def by_depth(
    part: str,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    depths: Mapping[str, int],
    factor: float,
    decay: float,
) -> tuple[dict[str, list[tuple[str, nn.Parameter]]], dict[str, float]]:
    """Split the parameters of an encoder by depth; return the groups and the factor of each.

    A parameter at depth l of n + 1 learns with ``factor · decay^(n + 1 − l)``: embeddings slowest.

    Args:
        part: name of the encoder's group.
        parameters: named as in ``depths``.
        depths: see :attr:`medvl.encoders.tower.Tower.depths`.
        factor: of what lies after the last block.
        decay: from one block to the one before it.

    Source: Howard & Ruder 2018, arXiv 1801.06146; by layer as in BEiT, arXiv 2106.08254.
    """
    last = max(depths.values(), default=0)
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        groups.setdefault(f"{part}.{depths[name]:03d}", []).append((name, parameter))
    factors = {group: factor * decay ** (last - int(group.rpartition(".")[2])) for group in groups}
    return groups, factors


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float) -> float:
    """Return the factor of the learning rate at ``step``.

    ``(s + 1)/w`` for s < w, then ``f + (1 − f)·½(1 + cos π (s − w)/(S − w))``.

    Args:
        step: s, from 0.
        total: S.
        warmup: w.
        floor: f, the factor that the cosine ends at.

    Examples:
        >>> [round(warmup_cosine(s, total=6, warmup=2, floor=0.0), 3) for s in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
