"""The Basic Application Confidentiality Profile as data: a row of Table E.1-1 for each attribute."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from medvl.errors import UsageError, nearest

__all__ = ["DEFAULT", "EDITION", "OPTIONS", "Action", "Profile", "Row", "rows"]

EDITION = "DICOM PS3.15 2026c Annex E"

Action = Literal["remove", "empty", "dummy", "uid", "shift", "clean", "keep"]
"""What happens to an element: taken out, emptied, filled with a harmless value of its VR, replaced by the
hash of its UID, moved by the patient's days, searched for identifying words, or left as it stands."""

OPTIONS: dict[str, tuple[str, str]] = {
    "dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient": ("113108", "Retain Patient Characteristics Option"),
    "content": ("113104", "Clean Structured Content Option"),
    "descriptors": ("113105", "Clean Descriptors Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "institution": ("113112", "Retain Institution Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
}
"""Option to its code (PS3.16 CID 7050) and meaning; their columns in ``profile.csv`` have these names."""

# The attribute's type is a matter of its IOD; where the table leaves a choice, the stricter type is
# assumed: an element that is not taken out breaks no IOD, whatever its type (PS3.15 E.1, Note to X/Z/D).
_RESOLVED: dict[str, Action] = {
    "X": "remove",
    "Z": "empty",
    "D": "dummy",
    "U": "uid",
    "K": "keep",
    "C": "clean",
    "X/Z": "empty",
    "X/D": "dummy",
    "Z/D": "dummy",
    "X/Z/D": "dummy",
    "X/Z/U*": "clean",  # a sequence of references: its items are cleaned, so their UIDs are replaced
}


@dataclass(frozen=True)
class Row:
    """One row of Table E.1-1.

    Attributes:
        tag: ``(gggg,eeee)``; ``x`` stands for any hexadecimal digit.
        keyword: of the attribute; "" where the installed dictionary does not know it yet.
        basic: code of the basic profile: X, Z, D, U or a choice of them such as ``X/Z/D``.
        options: option (or ``graphics``) to its code, K or C, where the row has one.
    """

    tag: str
    keyword: str
    basic: str
    options: dict[str, str]


@dataclass(frozen=True)
class Profile:
    """The basic profile with the options that are on.

    Args:
        options: names of :data:`OPTIONS`. The profile that :mod:`medvl.preprocess.deid` takes by default,
            :data:`DEFAULT`, keeps intervals (dates), what a study needs of the patient (sex, age, size) and
            the cleaned text of structured reports.

    Raises:
        UsageError: an option that does not exist.

    Examples:
        >>> Profile().action(0x00080020, vr="DA")  # StudyDate: Z
        'empty'
        >>> DEFAULT.action(0x00080020, vr="DA")
        'shift'
        >>> DEFAULT.action(0x00280010, vr="US") is None  # Rows: not in the table
        True

    Source: PS3.15 E.1, E.2 and E.3, Table E.1-1.
    """

    options: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for option in sorted(self.options):
            if option not in OPTIONS:
                raise UsageError(f"'{option}' is no option of the profile.", hint=nearest(option, OPTIONS))

    def action(self, tag: int, *, vr: str) -> Action | None:
        """Return what the table demands for an element, or None where the table does not name it.

        Args:
            tag: of the element, group and element number.
            vr: its value representation, which says how a date or a sequence is handled.
        """
        row = row_of(tag)
        if row is None:
            return None
        on = {option: code for option, code in row.options.items() if option in self.options}
        if "dates" in on and vr in ("DA", "DT"):
            return "shift"
        if "dates" in on and vr == "TM":  # whole days are moved: the time of day stays true
            return "keep"
        if any(on.get(option) == "K" for option in ("uids", "patient", "device", "institution")):
            return "clean" if vr == "SQ" else "keep"
        if on.get("descriptors") == "C" and vr not in ("OB", "UN", "CS"):
            return "clean"
        if on.get("content") == "C":
            return "clean"
        return _RESOLVED[row.basic]

    def codes(self) -> Iterator[tuple[str, str]]:
        """Yield code value and meaning for DeidentificationMethodCodeSequence, the profile's first."""
        yield "113100", "Basic Application Confidentiality Profile"
        for option, code in OPTIONS.items():
            if option in self.options:
                yield code


DEFAULT = Profile(frozenset({"dates", "patient", "content"}))


@functools.cache
def rows() -> tuple[Row, ...]:
    """Return the table, in the order of its tags."""
    text = resources.files(__package__).joinpath("profile.csv").read_text("utf-8")
    return tuple(
        Row(
            line.pop("tag"),
            line.pop("keyword"),
            line.pop("basic"),
            {k: code for k, code in line.items() if code},
        )
        for line in csv.DictReader(text.splitlines())
    )


@functools.lru_cache(maxsize=16384)
def row_of(tag: int) -> Row | None:
    """Return the row that names a tag: its own, one of a repeating group, or that of private elements."""
    exact, patterns = _lookup()
    if tag >> 16 & 1:
        return exact["(gggg,eeee)"]
    written = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    if written in exact:
        return exact[written]
    return next((row for pattern, row in patterns if pattern.fullmatch(written)), None)


@functools.cache
def _lookup() -> tuple[dict[str, Row], tuple[tuple[re.Pattern[str], Row], ...]]:
    repeating = [row for row in rows() if "x" in row.tag]
    return (
        {row.tag: row for row in rows() if "x" not in row.tag},
        tuple((re.compile(re.escape(row.tag).replace("x", "[0-9A-F]")), row) for row in repeating),
    )
