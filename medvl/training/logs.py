"""The table of a run's metrics: one row a logged step, the same bytes however often it was resumed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvl.store import write_atomic

__all__ = ["MetricsLog", "read_metrics"]


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of a ``metrics.csv``; a torn last row, left by a kill, is dropped."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if row.get("step", "").isdigit() and None not in row.values()]


class MetricsLog:
    """Appends rows to ``metrics.csv`` and, if asked, to TensorBoard.

    Times are left out of the table, so that a resumed run and an uninterrupted one agree to the byte.

    Args:
        run: the run directory.
        step: rows after this step belong to the future of a killed run and are dropped.
        tensorboard: also writes event files to ``tensorboard/``.
    """

    def __init__(self, run: Path, *, step: int, tensorboard: bool) -> None:
        self._path = run / "metrics.csv"
        self._rows = [row for row in read_metrics(self._path) if int(row["step"]) <= step]
        self._columns = list(self._rows[0]) if self._rows else ["step", "epoch"]
        if self._rows or self._path.exists():
            self._rewrite()
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add the row of ``step``; columns may differ from row to row."""
        row = {"step": str(step), "epoch": str(epoch), **{name: repr(float(v)) for name, v in values.items()}}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        if new or not self._path.exists():
            self._rewrite()
        else:
            with self._path.open("a", newline="", encoding="utf-8") as stream:
                stream.write(self._text([row], header=False))
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._writer is not None:
            self._writer.close()

    def _rewrite(self) -> None:
        write_atomic(self._path, self._text(self._rows, header=True).encode())

    def _text(self, rows: list[dict[str, str]], *, header: bool) -> str:
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        if header:
            table.writeheader()
        table.writerows(rows)
        return text.getvalue()
