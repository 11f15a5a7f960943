"""Identifiers and dates as exports write them, brought into one form to be compared; never stored."""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Sequence

__all__ = ["calendar", "looks_like_date", "loose"]

_PREFIX = re.compile(r"(?:accession|acc|pat|mrn|id)(?:number|no|nr|id)?(?:[.:#_\-]+(?=\w)|(?=\d))|#+(?=\w)")
_SPREADSHEET = re.compile(r"(?<=\d)\.0+$")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = r"(?:[T ]\s*\d{1,2}[:.]\d\d.*)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})[-/.]?(\d\d?)[-/.]?(\d\d?){_TIME}")
_DOTTED = re.compile(rf"(\d\d?)\.\s?(\d\d?)\.\s?(\d{{4}}){_TIME}")
_YEAR_LAST = re.compile(rf"(\d\d?)[-/](\d\d?)[-/](\d{{4}}){_TIME}")
_DAY_MONTH = re.compile(rf"(\d\d?)[-/ .]+([A-Za-z]{{3,9}})\.?[-/ ,]+(\d{{4}}){_TIME}")
_MONTH_DAY = re.compile(rf"([A-Za-z]{{3,9}})\.?\s+(\d\d?)(?:st|nd|rd|th)?,?\s+(\d{{4}}){_TIME}")


def loose(identifier: str) -> str:
    """Return an identifier without what exports add or lose: blanks, case, prefix, leading zeros, ``.0``.

    Two identifiers of one loose form may still be two: use it only where the form is unique on both sides.

    Examples:
        >>> loose("ACC-0012 34"), loose("1234.0"), loose("acc#1234"), loose("000"), loose("a-7")
        ('1234', '1234', '1234', '0', 'a-7')
    """
    text, before = identifier, None
    while before != text:
        before = text
        text = "".join(unicodedata.normalize("NFKC", text).casefold().split())
        text = _SPREADSHEET.sub("", _PREFIX.sub("", text, count=1) if _PREFIX.match(text) else text)
        text = text.lstrip("0") or text[-1:]
    return text


def looks_like_date(cell: str) -> bool:
    """Return whether a cell is a date in a known format, be its order of day and month clear or not."""
    return any(day is not None for order in ("dmy", "mdy") for day in [_read(cell, order)])


def calendar(cells: Sequence[str]) -> tuple[list[datetime.date | None], str]:
    """Read the dates of a column; what cannot be read for sure is None.

    ``20240131``, ``2024-01-31 09:30``, ``31.01.2024``, ``31-Jan-2024`` and ``Jan 31, 2024`` are clear by
    themselves. ``03/04/2024`` is clear where another cell of the column settles which number is the month.

    Returns:
        The days, and what a user should know ("" when all is clear).

    Examples:
        >>> calendar(["03/04/2024", "25/12/2023"])[0][0]
        datetime.date(2024, 4, 3)
        >>> calendar(["03/04/2024"])
        ([None], 'the dates could be day or month first: they were not used; write YYYY-MM-DD')
    """
    pairs = [match for cell in cells if (match := _YEAR_LAST.fullmatch(cell.strip()))]
    day_first = any(int(match[1]) > 12 for match in pairs)
    month_first = any(int(match[2]) > 12 for match in pairs)
    same = all(match[1].lstrip("0") == match[2].lstrip("0") for match in pairs)
    if day_first == month_first and not same:
        order = ""
        note = "the dates could be day or month first: they were not used; write YYYY-MM-DD"
    else:
        order, note = "mdy" if month_first else "dmy", ""
    return [_read(cell, order) for cell in cells], note


def _read(cell: str, order: str) -> datetime.date | None:
    cell = unicodedata.normalize("NFKC", cell).strip()[:40]
    numbers: tuple[str, str, str] | None = None
    if match := _YEAR_FIRST.fullmatch(cell):
        numbers = (match[1], match[2], match[3])
    elif match := _DOTTED.fullmatch(cell):
        numbers = (match[3], match[2], match[1])
    elif order and (match := _YEAR_LAST.fullmatch(cell)):
        numbers = (match[3], match[2], match[1]) if order == "dmy" else (match[3], match[1], match[2])
    elif match := _DAY_MONTH.fullmatch(cell):
        numbers = (match[3], _month(match[2]), match[1])
    elif match := _MONTH_DAY.fullmatch(cell):
        numbers = (match[3], _month(match[1]), match[2])
    if numbers is None:
        return None
    try:
        return datetime.date(*(int(number) for number in numbers))
    except ValueError:
        return None


def _month(name: str) -> str:
    word = name.casefold()[:3]
    return str(_MONTHS.index(word) + 1) if word in _MONTHS else "0"
