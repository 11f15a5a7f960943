"""Weights of an encoder of films for the same encoder of volumes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["inflate"]


def inflate(state: Mapping[str, Tensor], *, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network of two axes as those of the same network of three.

    ``K₃[o, c, x, y, z] = K₂[o, c, x, y] / d`` for a kernel of depth d, so rows become x and columns y, and on
    a volume that is the same in every plane along z the outputs are those of the plane, but for the zeros
    that pad the ends. A first layer of other channels takes the mean of the old ones:
    ``K₃[o, c] = Σ_c' K₂[o, c'] / C``, which is exact where all C channels show the same. All other tensors,
    and those that need neither, stay as they are; a tensor that does not fit then is for
    :meth:`medvl.encoders.tower.Tower.load_weights` to refuse.

    Args:
        state: of the network of films, or one that fits already.
        like: of the network of volumes; its shapes are read.

    Examples:
        >>> import torch
        >>> kernel = inflate({"w": torch.ones(8, 1, 3, 3)}, like={"w": torch.zeros(8, 2, 3, 3, 3)})["w"]
        >>> tuple(kernel.shape), round(float(kernel[0].sum()), 4)  # the sum over a window stays 9
        ((8, 2, 3, 3, 3), 9.0)

    Source: Carreira & Zisserman 2017 (I3D), arXiv 1705.07750, §2.4.
    """
    inflated: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = like.get(name)
        if target is not None and tensor.ndim == 4 and target.ndim in (4, 5):
            channels = target.shape[1]
            if tensor.shape[1] != channels and tensor.shape[0] == target.shape[0]:
                mean = tensor.sum(1, keepdim=True) / channels
                tensor = mean.expand(-1, channels, *mean.shape[2:])
            if target.ndim == 5:
                depth = target.shape[-1]
                tensor = (tensor / depth)[..., None].expand(*tensor.shape, depth)
            tensor = tensor.contiguous()
        inflated[name] = tensor
    return inflated
