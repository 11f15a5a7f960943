"""Features of all ranks on every rank, with the gradient that one process would have had.

Every rank computes the loss of the whole batch. The backward pass of the gather sums what all ranks
ask of a rank's rows, which is W times the exact gradient; DDP's average over W ranks makes it exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from medvl.features import ImageFeatures, TextFeatures

__all__ = ["average_gradients", "gather", "gather_features", "lengthen"]

SHARED = ("attributes",)
"""Features that do not belong to rows and are the same on every rank."""
BUCKET = 1 << 22
"""Gradients of one message."""
Features = TypeVar("Features", ImageFeatures, TextFeatures)


class _Gather(torch.autograd.Function):
    """Concatenation of equally shaped tensors over ranks; backward sums, then takes the own rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Shaped[Tensor, " rows *rest"]) -> Shaped[Tensor, " all_rows *rest"]:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Shaped[Tensor, " all_rows *rest"]
    ) -> Shaped[Tensor, " rows *rest"]:
        # all_reduce and a slice are reduce-scatter, which gloo lacks
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(tensor: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "all_rows ..."]:
    """Return the rows of all ranks in the order of the ranks; the tensor itself in a single process.

    The second axis may differ between ranks (reports differ in length); it is padded with zeros.

    Args:
        tensor: the same number of rows on every rank.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    if tensor.ndim > 1:
        longest = torch.tensor(tensor.shape[1], device=tensor.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        tensor = lengthen(tensor, int(longest))
    if tensor.dtype == torch.bool:
        return gather(tensor.to(torch.uint8)).bool()
    return _Gather.apply(tensor)


def gather_features(features: Features) -> Features:
    """Return the features of all ranks, each tensor of rows gathered by :func:`gather`."""
    tensors: dict[str, Any] = {
        field.name: gather(value)
        for field in fields(features)
        if isinstance(value := getattr(features, field.name), Tensor) and field.name not in SHARED
    }
    return replace(features, **tensors)


def lengthen(tensor: Shaped[Tensor, " rows *rest"], length: int) -> Shaped[Tensor, " rows *longer"]:
    """Return ``tensor`` with zeros behind its second axis up to ``length``; one axis stays as it is."""
    if tensor.ndim == 1 or tensor.shape[1] == length:
        return tensor
    padding = tensor.new_zeros(tensor.shape[0], length - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, padding], 1)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all ranks, as DDP does; a missing one counts as zero.

    For steps whose backward pass DDP cannot follow, since it runs through each encoder several times. A
    gradient that is missing on every rank stays missing.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    used = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    kinds: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter, anywhere in zip(trained, used.tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            kinds.setdefault(parameter.dtype, []).append(parameter)
    for alike in kinds.values():
        for bucket in _buckets(alike):
            gradients = [p.grad for p in bucket if p.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parameters in groups of some megabytes: few messages, little memory."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        bucket.append(parameter)
        size += parameter.numel()
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
