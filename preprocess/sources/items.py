"""What pairing gives: one item an image, all that has no partner, and how the columns were read.

Identifiers stay in memory; ``summary`` and ``lines`` hold counts, tokens and lines alone.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvl.preprocess.reading.series import Series
from medvl.preprocess.sources.reasons import HINTS, METHODS
from medvl.preprocess.sources.rows import Unpaired
from medvl.preprocess.structures_masks import Mask
from medvl.records import Box, LabelState

__all__ = ["ROW_HEADER", "Item", "Pairing", "relative_name"]

ROW_HEADER = ("path", "status", "method", "reason", "line")
"""Columns of :meth:`Pairing.rows`."""

_EXAMPLES = 3


@dataclass(frozen=True)
class Item:
    """One image with all that its record needs from outside the pixels.

    Attributes:
        path: below the source as it was given.
        patient, study: keys to be pseudonymised; a split must not tear a patient apart.
        report: "" when there is none.
        method: how the row was found: ``accession``, ``study_uid``, ``sop_uid``, ``file``, ``name`` (the file
            is named after the study), ``folder``, ``loose`` (an accession number of another form),
            ``patient_date`` or ``none``.
        modality: DICOM modality, "" for other files.
        kind: of the file, as in :class:`SourceFile`.
        line: of the report table, or number of the message; 0 when the report is a file of its own.
        study_date: ``YYYYMMDD``.
        series, stack: of a DICOM volume its slices, and which of the volumes that begin in ``path`` it is.
        mask: of a volume.
        names, ids: persons and identifiers that must not survive in the text; an identifier has 4 characters
            or more, since a shorter one would take measurements with it.
    """

    path: Path = field(repr=False)
    patient: str = field(repr=False)
    study: str = field(repr=False)
    report: str = field(default="", repr=False)
    method: str = "none"
    view: str | None = None
    laterality: str | None = None
    split: str | None = None
    labels: dict[str, LabelState] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    modality: str = ""
    kind: str = "dicom"
    line: int = 0
    study_date: str | None = field(default=None, repr=False)
    series: Series | None = field(default=None, repr=False)
    stack: int = 0
    mask: Mask | None = field(default=None, repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    ids: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Pairing:
    """All items in the order of their paths, what has no partner, and how the columns were read."""

    items: tuple[Item, ...]
    unpaired: tuple[Unpaired, ...]
    columns: dict[str, str]
    explain: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: Path | None = field(default=None, repr=False)

    def summary(self) -> dict[str, Any]:
        """Return counts as JSON values; no identifier is among them."""
        return {
            "images": len(self.items),
            "with_report": sum(bool(item.report) for item in self.items),
            "with_labels": sum(bool(item.labels) for item in self.items),
            "with_boxes": sum(bool(item.boxes) for item in self.items),
            "studies": len({item.study for item in self.items}),
            "patients": len({item.patient for item in self.items}),
            "methods": dict(sorted(Counter(item.method for item in self.items).items())),
            "unpaired": dict(sorted(Counter(entry.reason for entry in self.unpaired).items())),
            "columns": dict(self.columns),
            "notes": list(self.notes),
        }

    def to_json(self) -> dict[str, Any]:
        """Return :meth:`summary`, as the command prints it."""
        return self.summary()

    def lines(self) -> list[str]:
        """Return the summary for people."""
        counts = self.summary()
        methods = ", ".join(
            f"{count} by {METHODS.get(name, name)}"
            for name, count in counts["methods"].items()
            if name != "none"
        )
        kinds = Counter(item.kind for item in self.items)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return [
            f"{counts['images']} images of {counts['studies']} studies and {counts['patients']} patients"
            + (f" ({told})" if len(kinds) > 1 else ""),
            f"{counts['with_report']} with a report, {counts['with_labels']} with labels, "
            f"{counts['with_boxes']} with boxes; matched: {methods or 'none'}",
            *(f"column {line}" for line in self.explain),
            *(self._reason_line(reason, count) for reason, count in counts["unpaired"].items()),
            *self.notes,
            *(["each file and row by its name: add --details FILE.csv"] if self.unpaired else []),
        ]

    def _reason_line(self, reason: str, count: int) -> str:
        entries = [entry for entry in self.unpaired if entry.reason == reason]
        places = [
            " ".join(part for part in (entry.token, f"line {entry.line}" if entry.line else "") if part)
            for entry in itertools.islice(entries, _EXAMPLES)
        ]
        shown = ", ".join(place for place in places if place)
        more = ", …" if shown and count > len(places) else ""
        hint = HINTS.get(reason, "")
        return f"{reason}: {count}" + (f" ({shown}{more})" if shown else "") + (f": {hint}" if hint else "")

    def rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Yield what became of each file and row, for a private table: :data:`ROW_HEADER`.

        Paths are relative to the source, or to the folder that holds all items.
        """
        folders = [item.path.parent for item in self.items]
        source = self.source or Path(os.path.commonpath(folders) if folders else "")
        for item in self.items:
            status = "paired" if item.report else "without report"
            yield relative_name(item.path, source), status, item.method, "", str(item.line or "")
        for entry in self.unpaired:
            if entry.reason != "image_without_report":
                path = relative_name(entry.path, source) if entry.path else entry.token
                yield path, "left out", "", entry.reason, str(entry.line or "")


def relative_name(path: Path, source: Path) -> str:
    """Return a path below the source, or the bare name of one that lies outside of it."""
    return path.relative_to(source).as_posix() if path.is_relative_to(source) else path.name
