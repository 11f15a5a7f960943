"""Which column of a table is what: guessed from names and contents, shown, overridable."""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medvl.errors import BadTable, nearest
from medvl.preprocess.sources.identifiers import looks_like_date

__all__ = ["ROLES", "Columns", "Overrides", "guess_columns", "header_words", "plain", "split_name"]

Overrides = Mapping[str, str | list[str] | tuple[str, ...]]
"""Role to column name; several names as a list, or joined by ``+``; "" for none."""


@functools.cache
def header_words() -> dict[str, Any]:
    """Return the header words of ``columns.yaml``: roles, whole, sections, categories."""
    return dict(yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text("utf-8")))


_NOT_LABELS = re.compile(
    r"\b(?:\w*id|uid|age|sex|gender|year|date|width|height|fold|rows?|columns?|bits|frames?|pixels?|days|index|seed)$"
)
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "validate": "val",
    "test": "test",
    "testing": "test",
}

ROLES = (
    "accession",
    "study_uid",
    "sop_uid",
    "image",
    "study",
    "patient",
    "text",
    "view",
    "laterality",
    "split",
    "date",
    "name",
    "labels",
)
"""What a column can be; the keys that an override may have."""
_SEVERAL = ("text", "labels", "name")
_SINGLE = tuple(role for role in ROLES if role not in _SEVERAL)
_ENGLISH = ("conclusion", "recommendations")


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; ``None`` or ``()`` where there is none.

    Args:
        image: file name, path or stem of one image.
        study: an identifier of a study that is neither accession number nor UID.
        patient: what a split must not tear apart; a group column wins over a patient column.
        text: one column with the report, or several with its sections, joined under headings.
        date: the day of the study.
        name: what names a person; it must not survive in the text.
        labels: numeric columns, or one categorical column.
        why: role to the reason of the choice, for :meth:`explain`.
    """

    accession: str | None = None
    study_uid: str | None = None
    sop_uid: str | None = None
    image: str | None = None
    study: str | None = None
    patient: str | None = None
    text: tuple[str, ...] = ()
    view: str | None = None
    laterality: str | None = None
    split: str | None = None
    date: str | None = None
    name: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    why: dict[str, str] = field(default_factory=dict, compare=False)

    def explain(self) -> list[str]:
        """Return one line a role: the column, and why it was chosen."""
        lines = []
        for role in ROLES:
            value = getattr(self, role)
            shown = ", ".join(value) if isinstance(value, tuple) else value
            if not shown:
                lines.append(f"{role}: none")
            else:
                lines.append(f"{role}: {shown} ({self.why.get(role, 'given')})")
        return lines

    def name_something(self) -> bool:
        """Return whether a column says what a row is of: an image, a study, or a patient's day."""
        keys = (self.accession, self.study_uid, self.sop_uid, self.study, self.image)
        return any(keys) or bool(self.patient and self.date)

    def report_text(self, row: Mapping[str, str]) -> str:
        r"""Return the report of a row: the text column, or the section columns under their headings.

        Examples:
            >>> Columns(text=("findings", "impression")).report_text({"findings": "Clear.", "impression": ""})
            'FINDINGS: Clear.'
        """
        if len(self.text) == 1 and not _heading(self.text[0]):
            return _said(row[self.text[0]])
        return "\n".join(
            f"{_heading(name) or name.replace('_', ' ').upper()}: {words}"
            for name in self.text
            if (words := _said(row[name]))
        )

    def values(self, row: Mapping[str, str]) -> dict[str, str]:
        """Return the cells of a row by role, names one a line; text and labels are left out."""
        found = {role: row[column] for role in _SINGLE if (column := getattr(self, role))}
        return found | {"name": "\n".join(row[column] for column in self.name if row[column])}


def split_name(cell: str) -> str | None:
    """Return ``train``, ``val`` or ``test`` where a cell says so."""
    return _SPLITS.get(cell.lower())


def _heading(name: str) -> str:
    """Return the heading of a section column, "" for another column; foreign words become English."""
    word = plain(name)
    sections: dict[str, list[str]] = header_words()["sections"]
    section = next((title for title, words in sections.items() if word in words), "")
    if section and (word in _ENGLISH or section in word):
        return name.replace("_", " ").upper()
    return section.upper()


def _said(cell: str) -> str:
    """Return a cell, or "" for what exports write into empty ones."""
    return "" if cell.lower() in ("nan", "null", "<na>") else cell


def guess_columns(frame: pd.DataFrame, *, columns: Overrides | None = None) -> Columns:
    """Say which column is what, from names and, where names mislead, from contents.

    Args:
        frame: what :func:`read_table` returned.
        columns: role to column name (or names, for text and labels) where the guess is wrong; "" for none.

    Raises:
        BadTable: an override names a role or a column that does not exist.

    Examples:
        >>> frame = pd.DataFrame({"subject_id": ["1"], "study_id": ["7"], "findings": ["Clear."]})
        >>> [line for line in guess_columns(frame).explain() if "none" not in line]
        ['study: study_id (by name)', 'patient: subject_id (by name)', 'text: findings (sections by name)']
    """
    chosen: dict[str, Any] = {}
    why: dict[str, str] = {}
    given = _overrides(frame, columns or {})
    by_plain = {plain(str(name)): str(name) for name in reversed(list(frame.columns))}
    taken = {
        name for value in given.values() for name in (value if isinstance(value, tuple) else (value,)) if name
    }
    for role, names in header_words()["roles"].items():
        fitting = (
            []
            if role in given
            else [
                column
                for name in (*names, *(_joined_names(names, by_plain) if role == "name" else ()))
                if (column := by_plain.get(name)) and column not in taken and _fits(frame[column], role)
            ]
        )
        if fitting:
            chosen[role] = tuple(fitting) if role in _SEVERAL else fitting[0]
            why[role] = "by name"
            taken.update(fitting if role in _SEVERAL else fitting[:1])
    if why.get("patient") and plain(chosen["patient"]).startswith("group") and "patientid" in by_plain:
        why["patient"] = "by name; the group wins over the patient"
    if "text" not in given:
        chosen["text"], why["text"] = _guess_text(frame, by_plain, taken)
        taken.update(chosen["text"])
    if "labels" not in given:
        chosen["labels"], why["labels"] = _guess_labels(frame, by_plain, taken)
    return Columns(**{**chosen, **given}, why={role: text for role, text in why.items() if role not in given})


def _joined_names(names: Sequence[str], columns: Iterable[str]) -> list[str]:
    """Return the columns whose name holds that of a person's name: ``Name, Vorname (Patient)``."""
    long = [name for name in names if len(name) > 6]
    return [column for column in columns if column not in names and any(name in column for name in long)]


def plain(name: str) -> str:
    """Return a column name in lower case without accents, blanks and punctuation.

    Examples:
        >>> plain("Patient-ID"), plain("Conclusión"), plain("Sonuç / Kanı")
        ('patientid', 'conclusion', 'sonuckani')
    """
    letters = unicodedata.normalize("NFKD", name.casefold().replace("ı", "i"))
    return re.sub(r"[^a-z0-9]", "", letters)


def _overrides(frame: pd.DataFrame, columns: Overrides) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for role, value in columns.items():
        if role not in ROLES:
            raise BadTable(f"'{role}' is not a role of a column.", hint=nearest(role, ROLES))
        names = [part for part in (value.split("+") if isinstance(value, str) else value) if part]
        for name in names:
            if name not in frame.columns:
                # A table without a header has a patient's cells here: only a near miss may be quoted.
                near = difflib.get_close_matches(name, [str(column) for column in frame.columns], n=1)
                raise BadTable(
                    f"none of the table's {len(frame.columns)} columns is '{name}'.",
                    hint=f"Did you mean '{near[0]}'?" if near else "Take a name from its first line.",
                )
        several = role in _SEVERAL
        if not several and len(names) > 1:
            raise BadTable(f"the role '{role}' takes one column; got {len(names)}.", hint="Name one.")
        given[role] = tuple(names) if several else (names[0] if names else None)
    return given


def _fits(cells: pd.Series, role: str) -> bool:
    """Check contents where a name alone misleads: IU X-ray's ``image`` describes the examination."""
    filled = cells[cells != ""]
    if role == "split":
        return bool(len(filled)) and set(filled.str.lower()) <= set(_SPLITS)
    if role == "date":
        return bool(len(filled)) and bool(filled.head(200).map(looks_like_date).mean() > 0.5)
    if role == "image":
        return bool(len(filled)) and not filled.str.contains(r"\s\S*\s", regex=True).mean() > 0.5
    return bool(len(filled))


def _guess_text(
    frame: pd.DataFrame, by_plain: dict[str, str], taken: set[str]
) -> tuple[tuple[str, ...], str]:
    for name in header_words()["whole"]:
        column = by_plain.get(name)
        if column and column not in taken and frame[column].str.contains(" ", regex=False).any():
            return (column,), "by name"
    words = [name for names in header_words()["sections"].values() for name in names]
    sections = tuple(by_plain[name] for name in words if name in by_plain and by_plain[name] not in taken)
    if sections:
        return sections, "sections by name"
    prose = {
        str(name): frame[name].str.len().mean()
        for name in frame.columns
        if name not in taken and (frame[name].str.count(" ") >= 4).mean() > 0.5
    }
    if prose:
        rivals = sorted(prose, key=lambda name: -prose[name])[1:4]
        told = f"; or {', '.join(rivals)}, by --column text=NAME" if rivals else ""
        return (max(prose, key=lambda name: prose[name]),), f"longest prose, a guess: check it{told}"
    return (), ""


def _guess_labels(
    frame: pd.DataFrame, by_plain: dict[str, str], taken: set[str]
) -> tuple[tuple[str, ...], str]:
    numeric = tuple(
        str(name)
        for name in frame.columns
        if name not in taken
        and not _NOT_LABELS.search(str(name).lower().replace("_", " "))
        and (cells := set(frame[name])) - {""}
        and cells <= {"", "0", "1", "-1", "0.0", "1.0", "-1.0", "True", "False"}
    )
    if numeric:
        return numeric, "1, 0, -1 or blank"
    for name in header_words()["categories"]:
        column = by_plain.get(name)
        if column and column not in taken and frame[column].nunique() <= max(2, len(frame) // 2):
            return (column,), "categories by name"
    return (), ""
