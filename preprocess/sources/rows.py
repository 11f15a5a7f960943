"""What a source says of a study: a row of a table, a text file, a message, a structured report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medvl.records import LabelState

__all__ = ["Row", "Unpaired"]


@dataclass(frozen=True)
class Unpaired:
    """A file or a row without a partner; ``token`` names a file without telling its name, ``line`` a row.

    Attributes:
        path: the file, for the private listing; it stays out of ``repr`` and of every summary.
    """

    reason: str
    token: str = ""
    line: int = 0
    path: Path | None = field(default=None, repr=False, compare=False)


@dataclass
class Row:
    """One report with its keys.

    Attributes:
        line: of the table, or number of the message in its file; 0 for a file of its own.
        values: cells by the role of their column: accession, study_uid, patient, date, …
        images: names of image files.
        also: further accession numbers or study UIDs that may be meant, by role.
        origin: ``table``, ``text``, ``hl7`` or ``sr``; ``path`` is its file where it is no table.
        folder: where a text file lies, below the source; "" where that says nothing.
        preliminary: gives way to a final report.
        names, ids: what must not survive in the text.
        used: an image has it; ``missing`` are image names that no image has.
    """

    line: int
    values: dict[str, str]
    text: str = ""
    labels: dict[str, LabelState] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)
    origin: str = "table"
    path: Path | None = None
    folder: str = ""
    preliminary: bool = False
    names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    used: bool = False
    missing: set[str] = field(default_factory=set)

    def get(self, role: str) -> str:
        """Return the cell of a role, "" where there is none."""
        value = self.values.get(role, "")
        return "" if value.casefold() in ("?", "unknown", "nan", "none", "null") else value
