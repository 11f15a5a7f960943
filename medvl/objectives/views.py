"""The two views of each study in a batch: rows 2i and 2i + 1 are the first and the second of study i."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor

from medvl.errors import ConfigError
from medvl.features import Positives

__all__ = ["ViewPositives", "of_view"]


def of_view(rows: Shaped[Tensor, " rows *rest"], view: int) -> Shaped[Tensor, " studies *rest"]:
    """Return one view of each study.

    Args:
        rows: both views of each study, one after the other.
        view: 0 or 1.

    Raises:
        ConfigError: an odd number of rows.

    Examples:
        >>> import torch
        >>> of_view(torch.tensor([10, 11, 20, 21]), 1).tolist()
        [11, 21]
    """
    if len(rows) % 2:
        raise ConfigError(
            f"{len(rows)} rows cannot be two views of each study.",
            hint="Give PairDataset views=2, which puts them in rows 2i and 2i + 1.",
        )
    return rows[view::2]


@dataclass(frozen=True)
class ViewPositives:
    """The positives of one view against one view, of those of all rows.

    Attributes:
        whole: positives of the rows of both views.
        row_view: view of the rows, 0 or 1.
        column_view: view of the columns.

    Examples:
        >>> import torch
        >>> from medvl.objectives.targets import MatrixPositives
        >>> whole = MatrixPositives(torch.arange(16.0).view(4, 4))
        >>> ViewPositives(whole, 0, 1).rows(0, 2).tolist()
        [[1.0, 3.0], [9.0, 11.0]]
    """

    whole: Positives
    row_view: int
    column_view: int

    def __len__(self) -> int:
        """Return the number of studies."""
        return len(self.whole) // 2

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows studies"]:
        """Return rows ``start`` to ``stop``."""
        return self.whole.rows(2 * start, 2 * stop)[self.row_view :: 2, self.column_view :: 2]

    def columns(self, start: int, stop: int) -> Float[Tensor, "columns studies"]:
        """Return columns ``start`` to ``stop``, transposed."""
        return self.whole.columns(2 * start, 2 * stop)[self.column_view :: 2, self.row_view :: 2]
