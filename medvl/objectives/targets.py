"""Positives as objectives read them: rows and columns of a matrix, or of something that computes them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from medvl.features import Positives

__all__ = ["MatrixPositives", "as_positives", "dense"]


@dataclass(frozen=True)
class MatrixPositives:
    """A matrix held whole.

    Examples:
        >>> import torch
        >>> MatrixPositives(torch.tensor([[1.0, 0.0], [0.5, 1.0]])).columns(0, 1).tolist()
        [[1.0, 0.5]]
    """

    matrix: Float[Tensor, "batch batch"]

    def __len__(self) -> int:
        """Return the size of the batch."""
        return len(self.matrix)

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows batch"]:
        """Return rows ``start`` to ``stop``."""
        return self.matrix[start:stop]

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns batch"]:
        """Return columns ``start`` to ``stop``, transposed."""
        return self.matrix[:, start:stop].T


def as_positives(positives: Float[Tensor, "batch batch"] | Positives) -> Positives:
    """Return ``positives`` as rows and columns, whichever of the two it is."""
    return MatrixPositives(positives) if isinstance(positives, Tensor) else positives


def dense(positives: Float[Tensor, "batch batch"] | Positives) -> Float[Tensor, "batch batch"]:
    """Return the whole matrix; for terms whose own memory is larger anyway."""
    return positives if isinstance(positives, Tensor) else positives.rows(0, len(positives))
