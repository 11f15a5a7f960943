"""GradCache: a batch encoded a few rows at a time, with the gradients of one pass over all of it.

The first pass keeps features alone. The loss compares them all and asks each for its gradient; then every
chunk is encoded again, with the random numbers it had, and hands its share of the gradient to the encoders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medvl.data.dataset import integer_key
from medvl.errors import ConfigError
from medvl.features import Batch, ImageFeatures, TextFeatures
from medvl.training.gather import lengthen

__all__ = ["Encoded", "encode_in_chunks", "refuse_batch_norm"]

Encoded = tuple[ImageFeatures, TextFeatures]

_NO_GRADIENT = ("findings", "attributes")
"""Floating-point features that do not come out of an encoder."""


class _Chunks:
    """Pieces of a batch, each of which is encoded alike as often as it is asked for.

    Args:
        encode: rows of a batch to their features, each row by itself.
        batch: all rows.
        chunk: rows at once; the last piece may have fewer.
        seed: the random numbers of piece k are a function of ``(seed, k)``.
    """

    def __init__(self, encode: Callable[[Batch], Encoded], batch: Batch, *, chunk: int, seed: str) -> None:
        self.encode, self.batch, self.seed = encode, batch, seed
        rows = len(batch.study)
        self.spans = [(first, min(first + chunk, rows)) for first in range(0, rows, chunk)]
        device = batch.images.device.type
        self.autocast: dict[str, Any] = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        self.joined: Encoded | None = None
        self.names: list[tuple[int, str]] = []

    def piece(self, k: int) -> Encoded:
        """Encode piece k under its own random numbers, in the precision of the step."""
        first, last = self.spans[k]
        values: dict[str, Any] = {
            field.name: None if (value := getattr(self.batch, field.name)) is None else value[first:last]
            for field in fields(self.batch)
        }
        part = Batch(**values)
        torch.manual_seed(integer_key(f"{self.seed}:{k}"))
        # A cast that was cached without a gradient would be used again where one is needed.
        with torch.autocast(**self.autocast, cache_enabled=torch.is_grad_enabled()):
            return self.encode(part)

    def all(self) -> list[Tensor]:
        """Encode everything without a graph; return the tensors that a gradient may flow through."""
        pieces = [self.piece(k) for k in range(len(self.spans))]
        image = _joined([piece[0] for piece in pieces])
        text = _joined([piece[1] for piece in pieces])
        self.joined = image, text
        both: tuple[Any, Any] = self.joined
        self.names = [
            (side, field.name)
            for side, features in enumerate(both)
            for field in fields(features)
            if isinstance(value := getattr(features, field.name), Tensor)
            and value.is_floating_point()
            and field.name not in _NO_GRADIENT
        ]
        return [getattr(self.joined[side], name) for side, name in self.names]

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Encoded:
        """Return all features, those of :meth:`all` replaced."""
        assert self.joined is not None
        image, text = self.joined
        changes: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for (side, name), tensor in zip(self.names, tensors, strict=True):
            changes[side][name] = tensor
        return replace(image, **changes[0]), replace(text, **changes[1])


class _Replay(torch.autograd.Function):
    """All features at once; the backward pass encodes again, chunk by chunk, into the parameters."""

    @staticmethod
    def forward(ctx: Any, anchor: Float[Tensor, ""], chunks: _Chunks) -> tuple[Tensor, ...]:
        ctx.chunks = chunks
        ctx.set_materialize_grads(False)
        return tuple(chunks.all())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        chunks: _Chunks = ctx.chunks
        for k, (first, last) in enumerate(chunks.spans):
            with torch.enable_grad():
                piece = chunks.piece(k)
            outputs, asked = [], []
            for (side, name), gradient in zip(chunks.names, gradients, strict=True):
                output = getattr(piece[side], name)
                if gradient is None or output is None or not output.requires_grad:
                    continue
                share = gradient[first:last]
                outputs.append(output)
                asked.append(share if share.ndim == 1 else share[:, : output.shape[1]])
            if outputs:
                torch.autograd.backward(outputs, asked)
            del piece, outputs, asked  # or two chunks' activations would be alive at a time
        return None, None


def encode_in_chunks(encode: Callable[[Batch], Encoded], batch: Batch, *, chunk: int, seed: str) -> Encoded:
    """Return the features of a batch, encoded ``chunk`` rows at a time.

    The memory for activations is that of one chunk, in the forward and in the backward pass. Gradients of
    whatever is computed from the features are those of one pass in which chunk k draws its random numbers
    from ``(seed, k)``: exact for encoders that treat each row by itself (see :func:`refuse_batch_norm`).

    Args:
        encode: rows of a batch to their features.
        batch: the rows of this rank.
        chunk: rows at a time; the last chunk may have fewer.
        seed: of dropout.

    Source: Gao et al. 2021 (GradCache), arXiv 2101.06983.
    """
    chunks = _Chunks(encode, batch, chunk=chunk, seed=seed)
    if not torch.is_grad_enabled():
        chunks.all()
        assert chunks.joined is not None
        return chunks.joined
    anchor = torch.zeros((), requires_grad=True)  # without an input that has a gradient there is no backward
    return chunks.with_tensors(_Replay.apply(anchor, chunks))


def refuse_batch_norm(towers: dict[str, nn.Module]) -> None:
    """Refuse encoders that would take statistics over a chunk instead of the batch.

    Args:
        towers: in training mode, by the name of their section in a recipe.

    Raises:
        ConfigError: a batch normalisation of them is in training mode.
    """
    for side, tower in towers.items():
        for module in tower.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                raise ConfigError(
                    f"data.chunk encodes a part of the batch at a time, but the {side} encoder has batch "
                    "normalisation, which would see that part alone.",
                    hint=f"Set {side}.options.norm to group, train the encoder frozen or with lora, or leave "
                    "data.chunk null.",
                )


def _joined(pieces: list[Any]) -> Any:
    """Return the features of all rows; reports of a chunk may have fewer words than those of another."""
    whole: dict[str, Any] = {}
    for field in fields(pieces[0]):
        values = [getattr(piece, field.name) for piece in pieces]
        if isinstance(values[0], Tensor) and field.name != "attributes":
            longest = max(value.shape[1] for value in values) if values[0].ndim > 1 else 0
            whole[field.name] = torch.cat([lengthen(value, longest) for value in values])
    return replace(pieces[0], **whole)
