"""The blocks that a tower is made of, how deep each of its parts lies, and blocks that compute twice."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["block_names", "checkpoint_block", "module_depths", "parameter_depths"]

_Norm = nn.modules.batchnorm._NormBase


def block_names(net: nn.Module) -> list[str]:
    """Return the names of the blocks of a network, in order.

    Blocks are the children of lists and sequences whose children are all of one class, which has parts
    itself; of several such classes the one with the most children counts. These are the layers of a
    transformer, the residual blocks of all stages of a ResNet, the dense layers of a DenseNet.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(8, 2)
        >>> encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> block_names(nn.Sequential(nn.Linear(3, 8), encoder))
        ['1.layers.0', '1.layers.1']
    """
    found: dict[type[nn.Module], list[str]] = {}
    for name, module in net.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        children = dict(module.named_children())
        kinds = {type(child) for child in children.values()}
        if len(kinds) != 1 or kinds & {nn.ModuleList, nn.Sequential}:
            continue
        if all(any(True for _ in child.children()) for child in children.values()):
            prefix = f"{name}." if name else ""
            found.setdefault(kinds.pop(), []).extend(prefix + child for child in children)
    return max(found.values(), key=len, default=[])


def module_depths(net: nn.Module) -> dict[str, int]:
    """Return the depth of every module that holds no block.

    It is 0 before the first block, i inside the i-th, and one more than the number of blocks after the last.
    What lies between two blocks belongs to the first. The order is that of registration, which in all our
    towers is that of computing.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(8, 2)
        >>> encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> net = nn.Sequential(nn.Linear(3, 8), encoder, nn.LayerNorm(8))
        >>> [module_depths(net)[name] for name in ("0", "1.layers.0", "1.layers.1.linear1", "2")]
        [0, 1, 2, 3]
    """
    blocks = block_names(net)
    above = {".".join(name.split(".")[:parts]) for name in blocks for parts in range(name.count(".") + 1)}
    depths: dict[str, int] = {}
    seen = 0
    for name, _ in net.named_modules():
        if name in above or not name:
            continue
        if seen < len(blocks) and name == blocks[seen]:
            seen += 1
        inside = seen > 0 and f"{name}.".startswith(f"{blocks[seen - 1]}.")
        depths[name] = seen if inside or seen < len(blocks) or not blocks else seen + 1
    return depths


def parameter_depths(net: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter: that of its module, 0 where the module holds the blocks."""
    depths = module_depths(net)
    return {name: depths.get(name.rpartition(".")[0], 0) for name, _ in net.named_parameters()}


def checkpoint_block(block: nn.Module) -> None:
    """Make ``block`` forget its activations in training and compute them again in the backward pass.

    Dropout draws the same numbers again, and running statistics move once.
    """
    block.forward = functools.partial(_compute_twice, block, block.forward)  # type: ignore[method-assign]


def _compute_twice(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _resting_statistics(block)


@contextlib.contextmanager
def _resting_statistics(block: nn.Module) -> Iterator[None]:
    """Let the norms of ``block`` take the statistics of the batch without remembering them."""
    norms = [part for part in block.modules() if isinstance(part, _Norm) and part.track_running_stats]
    before: list[tuple[float | None, Tensor | None]] = []
    for norm in norms:
        count = norm.num_batches_tracked
        before.append((norm.momentum, None if count is None else count.clone()))
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
