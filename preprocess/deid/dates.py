"""Dates in free text, in the formats that reports use, moved by days in the format that they have."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Span", "find_dates"]


class Span(NamedTuple):
    """A place in a text and what stands there afterwards."""

    start: int
    end: int
    kind: str
    shown: str


MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_MONTH_OF = {name: i for i, name in enumerate(MONTHS, 1)}
_MONTH_OF |= {name[:3]: i for i, name in enumerate(MONTHS, 1)} | {"sept": 9}
_WORDS_TOO = frozenset({"may", "march", "mar"})
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FRACTIONS = frozenset({(1, 2), (1, 3), (2, 3), (1, 4), (3, 4)})
_LEAP = 2004
"""The year in which a date without one is moved: a leap year, so that 29 February exists."""

# Patterns begin with a set of characters, never with a look-behind: so the search skips to candidates.
_NUMERIC = re.compile(
    r"\d{1,4}([./-])\d{1,2}\1\d{2,4}|(?:19|20)\d{6}(?:\d{4}(?:\d\d)?)?|\d{1,2}/(?:19|20)\d\d|(?:19|20)\d\d-\d\d"
    r"|(?:19|20)\d\d/(?:0[1-9]|1[0-2])(?![\d/])|(?:0[1-9]|1[0-2])-(?:19|20)\d\d|(?:19|20)\d\d([_ ])\d\d\2\d\d"
    r"|\d{1,2}/\d{1,2}"
)
_RUN = re.compile(r"\d[\d./_-]{3,}(?: \d\d \d\d\b)?")
_UNIT = re.compile(r" ?(?:mm|cm|m[lL]|cc|HU|%|French|Fr\b|mg|mGy|kg|x \d)")
_VERSION = re.compile(r"(?:\b(?i:version|v|release|build)[ .]?)$")
_RANGE = re.compile(r"(\d{1,2})/(\d{1,2})(?= ?[-–] ?\d{1,2}/\d{1,2}/((?:19|20)?\d\d)(?!\d))")
_MONTH = re.compile(
    r"[JFMASONDjfmasond](?:[Aa][Nn]|[Ee][Bb]|[Aa][Rr]|[Pp][Rr]|[Aa][Yy]|[Uu][NnLlGg]|[Ee][Pp]|[Cc][Tt]|[Oo][Vv]|[Ee][Cc])"
    r"[A-Za-z]{0,6}"
)
_DAY_BEFORE = re.compile(r"(?<![\w./-])(\d{1,2})(st|nd|rd|th)?( of |, ?| |-|/|)$", re.IGNORECASE)
_YEAR_AFTER = re.compile(r"(\.?(?:, ?|\s| of |-|/|))((?:19|20)\d\d)(?![\w/-]|\.\d)")
_SHORT_YEAR_AFTER = re.compile(
    r"([-/]|[-/ ]?['’]|(?<=[a-z]{3})(?=\d\d(?:\W|$))| (?=\d\d(?:[,;)\n]|\.?$|\.\s| at\b| \d\d:)))(\d\d)"
    r"(?![\w/-]|\.\d)",
    re.IGNORECASE,
)
_DAY_YEAR_AFTER = re.compile(
    r"(\.? |[./-])(\d{1,2})(st|nd|rd|th)?(,? |,|/|-)((?:19|20)\d\d)(?![\w/-]|\.\d)", re.IGNORECASE
)
_DAYS_YEAR_AFTER = re.compile(
    r"(\.? )(\d{1,2})( ?[-–/] ?| and | & |, )(\d{1,2})(,? |,)((?:19|20)\d\d)(?![\w/-]|\.\d)"
)
_DAY_AFTER = re.compile(
    r"(\.? )(\d{1,2})(st|nd|rd|th)?(?![\w:/%-]|\.\d| ?(?:mm|cm|x|%|percent)\b)", re.IGNORECASE
)
_WEEKDAY_BEFORE = re.compile(rf"\b({'|'.join(_DAYS)})((?:,|,? the)? )$", re.IGNORECASE)
_CUE = re.compile(
    r"\b(?:dated|since|on|performed|obtained|as of|comparison:?|priors?:?|compared (?:to|with)"
    r"|(?:study|exam|examination|radiographs?|films?|ct|cxr|x-ray|mri|scan|report|images?) (?:of|from|dated))"
    r"[ \n]$",
    re.IGNORECASE,
)
_STRONG_CUE = re.compile(r"\b(?:dated|since)[ \n]$", re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"\s*(?:$|[,;:)\n]|\.(?!\d)|(?:at|and|which|show(?:s|ed|ing)|demonstrat\w+|is|was|were|there|the|for|by|with|when)\b)"
)
_SHORT_CUE = re.compile(
    r"\b(?:dated?:?|since|on|from|of|comparison:?|study|exam|prior|performed|vom|am|seit|del)[ \n]$",
    re.IGNORECASE,
)


def find_dates(text: str, *, shift_days: int, words: frozenset[str] | None = None) -> Iterator[Span]:
    """Yield the dates of a text, each with the date that stands for it.

    Where day and month could be either, a date of the same text that can only be read one way decides;
    else the month comes first with slashes and hyphens (the order of the US), the day with dots. A date
    that the calendar lacks becomes ``[date]``. Years alone stay. ``words``, every run of letters of the text
    in lower case, spares the search for months where there are none.
    """
    yield from _numeric(text, shift_days)
    if words is None or not words.isdisjoint(_MONTH_OF):
        yield from _named(text, shift_days)


def _numeric(text: str, days: int) -> Iterator[Span]:
    found = [
        match
        for run in _RUN.finditer(text)
        if _could_be_date(run[0])
        for match in _NUMERIC.finditer(text, run.start(), run.end())
        if _stands_alone(text, match.start(), match.end())
    ]
    found = [
        match
        for match in found
        if not (
            _UNIT.match(text, match.end()) or _VERSION.search(text, max(0, match.start() - 9), match.start())
        )
    ]
    day_first = _day_first(found)
    if any(match[1] == "/" for match in found):
        yield from _ranges(text, days)
    for match in found:
        shown: str | None
        if match[2]:
            shown = _written(days, (match[0][:4], match[0][5:7], match[0][8:]), "ymd", match[2])
        elif match[1]:
            shown = _three_parts(text, match, days, day_first=day_first)
        elif "/" in match[0] or "-" in match[0]:
            shown = _two_parts(text, match, days)
        else:
            shown = _compact(match[0], days)
        if shown is not None:
            yield from _with_weekday(text, match.start(), match.end(), shown)


def _could_be_date(run: str) -> bool:
    """Sort out plain numbers and decimals before the pattern of dates is tried."""
    return (
        "/" in run
        or "_" in run
        or " " in run
        or "-" in run
        or run.count(".") > 1
        or len(run) in (8, 9, 12, 14)
    )


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if text[start:end].isdigit() and end - start >= 8:  # IMG_20150312_101500
        before, after = before.replace("_", " "), after.replace("_", " ")
    if before and (before[-1].isalnum() or before[-1] == "_"):
        return False
    if before[-1:] and before[-1] in "./-" and before[:-1].isalnum() and not before[-2:].endswith("-"):
        return False
    if not after:
        return True
    if after[0].isalnum() or after[0] == "_":
        return after[0] == "T" and after[1:].isdigit()
    return not (after[0] in "./" and after[1:].isdigit())


def _day_first(found: list[re.Match[str]]) -> bool:
    for match in found:
        parts = re.split(r"[/-]", match[0])
        if match[1] in ("/", "-") and len(parts) == 3 and len(parts[0]) <= 2:
            if 12 < int(parts[0]) <= 31 and int(parts[1]) <= 12:
                return True
            if 12 < int(parts[1]) <= 31:
                return False
    return False


def _ranges(text: str, days: int) -> Iterator[Span]:
    """Yield the first date of 03/12-03/14/2015, which takes its year from the second."""
    for match in _RANGE.finditer(text):
        before = text[max(0, match.start() - 1) : match.start()]
        if not before.isdigit() and before != "/" and int(match[1]) <= 12:
            shown = _written(days, (match[1], match[2], match[3]), "mdy", "/")
            yield Span(*match.span(), "date", shown if shown == "[date]" else shown.rpartition("/")[0])


def _three_parts(text: str, match: re.Match[str], days: int, *, day_first: bool) -> str | None:
    separator = match[1]
    a, b, c = match[0].split(separator)
    if len(a) == 4:
        if len(c) > 2 or not a.startswith(("19", "20")):
            return None
        return _written(days, (a, b, c), "ymd", separator)
    if len(a) > 2 or len(c) == 3 or (len(c) == 4 and not c.startswith(("18", "19", "20"))):
        return None
    cue = _SHORT_CUE.search(text[max(0, match.start() - 14) : match.start()])
    if len(c) == 2 and separator == "." and not len(a) == len(b) == 2 and not cue:  # 1.2.15 numbers a heading
        return None
    if len(c) == 2 and separator == "-" and not cue:
        return None  # ribs 10-11-12
    first, second = int(a), int(b)
    if not 1 <= first <= 31 or not 1 <= second <= 31 or min(first, second) > 12:
        return None
    if separator == ".":
        order = "mdy" if second > 12 else "dmy"
    elif first > 12 or (day_first and second <= 12):
        order = "dmy"
    else:
        order = "mdy"
    return _written(days, (a, b, c), order, separator)


def _written(days: int, parts: tuple[str, str, str], order: str, separator: str) -> str:
    old = dict(zip(order, parts, strict=True))
    moved = _moved(_full_year(old["y"]), int(old["m"]), int(old["d"]), days)
    if moved is None:
        return "[date]"
    # 03/12 and 12/11 are written with two digits, 3/12 is not.
    padded = old["m"][0] == "0" or old["d"][0] == "0" or len(old["m"]) == len(old["d"]) == 2
    width = 2 if padded else 1
    new = {
        "y": f"{moved.year:04}"[-len(old["y"]) :],
        "m": f"{moved.month:0{width}}",
        "d": f"{moved.day:0{width}}",
    }
    return separator.join(new[letter] for letter in order)


def _two_parts(text: str, match: re.Match[str], days: int) -> str | None:
    a, b = re.split("[/-]", match[0])
    if len(b) == 4 or len(a) == 4:
        year, month = (b, a) if len(b) == 4 else (a, b)
        separator = match[0][len(a)]
        moved = _moved(int(year), int(month), 15, days) if 1 <= int(month) <= 12 else None
        if moved is None:
            return None
        shown = (
            f"{moved.month:02}" if len(month) == 2 and (month[0] == "0" or len(a) == 4) else str(moved.month)
        )
        return separator.join((shown, str(moved.year)) if len(b) == 4 else (str(moved.year), shown))
    first, second = int(a), int(b)
    before = text[max(0, match.start() - 24) : match.start()]
    cue = _STRONG_CUE if (first, second) in _FRACTIONS else _CUE
    if not cue.search(before) or not _CLAUSE_END.match(text, match.end()):
        return None
    month, day = (second, first) if first > 12 else (first, second)
    moved = _moved(_LEAP, month, day, days)
    if moved is None:
        return None
    width = 2 if "0" in (a[0], b[0]) else 1
    new = (moved.day, moved.month) if first > 12 else (moved.month, moved.day)
    return "/".join(f"{part:0{width}}" for part in new)


def _compact(digits: str, days: int) -> str | None:
    moved = _moved(int(digits[:4]), int(digits[4:6]), int(digits[6:8]), days)
    if moved is None or (len(digits) > 8 and int(digits[8:10]) > 23):
        return None
    return f"{moved.year:04}{moved.month:02}{moved.day:02}{digits[8:]}"


def _full_year(year: str) -> int:
    return int(year) if len(year) == 4 else int(year) + (2000 if int(year) < 70 else 1900)


def _moved(year: int, month: int, day: int, days: int) -> datetime.date | None:
    try:
        return datetime.date(year, month, day) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return None


def _named(text: str, days: int) -> Iterator[Span]:
    for match in _MONTH.finditer(text):
        month = _MONTH_OF.get(match[0].lower())
        start, end = match.span()
        if month is None or (start and text[start - 1].isalpha()):
            continue
        day = _DAY_BEFORE.search(text, max(0, start - 16), start) if _digit_near(text, start) else None
        span = _around(text, match[0], month, days, start=start, end=end, day=day)
        if span is not None:
            yield from span


def _digit_near(text: str, start: int) -> bool:
    return any(character.isdigit() for character in text[max(0, start - 7) : start])


def _around(
    text: str, word: str, month: int, days: int, *, start: int, end: int, day: re.Match[str] | None
) -> list[Span] | None:
    """Return the date around the name of a month, in the first of the forms that fits."""
    with_year = _with_year(text, word, month, days, start=start, end=end, day=day)
    if with_year is not None:
        return with_year
    if not word[0].isupper() or (word.lower() in _WORDS_TOO and word.isupper()):
        return None
    # "May 2 nodules" is no date: these words need a sign before or after them
    sure = word.lower() not in _WORDS_TOO or bool(_SHORT_CUE.search(text[max(0, start - 14) : start]))
    after = _DAY_AFTER.match(text, end)
    if after and (sure or _CLAUSE_END.match(text, after.end())):
        moved = _moved(_LEAP, month, int(after[2]), days)
        if moved is not None:
            shown = f"{_month(word, moved)}{after[1]}{_ordinal(moved.day, after[3], after[2])}"
            return [Span(start, after.end(), "date", shown)]
    if day is not None and day[3] in (" ", "-", " of "):
        moved = _moved(_LEAP, month, int(day[1]), days)
        if moved is not None:
            return [Span(day.start(), end, "date", f"{_day(day, moved)}{day[3]}{_month(word, moved)}")]
    return None


def _with_year(
    text: str, word: str, month: int, days: int, *, start: int, end: int, day: re.Match[str] | None
) -> list[Span] | None:
    if day is not None and (year := _YEAR_AFTER.match(text, end) or _SHORT_YEAR_AFTER.match(text, end)):
        moved = _moved(_full_year(year[2]), month, int(day[1]), days)
        if moved is None:
            return [Span(day.start(), year.end(), "date", "[date]")]
        shown = f"{_day(day, moved)}{day[3]}{_month(word, moved)}{year[1]}{str(moved.year)[-len(year[2]) :]}"
        return _with_weekday(text, day.start(), year.end(), shown, moved=moved)
    if span := _several_days(text, word, month, days, start=start, end=end):
        return [span]
    if after := _DAY_YEAR_AFTER.match(text, end):
        moved = _moved(int(after[5]), month, int(after[2]), days)
        if moved is None:
            return [Span(start, after.end(), "date", "[date]")]
        number = _ordinal(moved.day, after[3], after[2])
        shown = f"{_month(word, moved)}{after[1]}{number}{after[4]}{moved.year}"
        return _with_weekday(text, start, after.end(), shown, moved=moved)
    if year := _YEAR_AFTER.match(text, end):
        moved = _moved(int(year[2]), month, 15, days)
        if moved is not None and (year[1] or word[0].isupper()):
            return [Span(start, year.end(), "date", f"{_month(word, moved)}{year[1]}{moved.year}")]
        return []
    return None


def _several_days(text: str, word: str, month: int, days: int, *, start: int, end: int) -> Span | None:
    """Return March 12-14, 2015 moved, or taken out where it no longer lies in one month."""
    found = _DAYS_YEAR_AFTER.match(text, end)
    if found is None:
        return None
    first, last = (_moved(int(found[6]), month, int(found[i]), days) for i in (2, 4))
    shown = "[date]"
    if first and last and (first.year, first.month) == (last.year, last.month):
        shown = f"{_month(word, first)}{found[1]}{first.day}{found[3]}{last.day}{found[5]}{first.year}"
    return Span(start, found.end(), "date", shown)


def _day(match: re.Match[str], moved: datetime.date) -> str:
    return _ordinal(moved.day, match[2], match[1])


def _ordinal(day: int, suffix: str | None, before: str) -> str:
    number = f"{day:02}" if before.startswith("0") else str(day)
    if not suffix:
        return number
    right = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return number + (right.upper() if suffix.isupper() else right)


def _month(word: str, moved: datetime.date) -> str:
    name = MONTHS[moved.month - 1]
    short = (len(word) == 3 and word.lower() != "may") or word.lower() == "sept"
    name = name[:3] if short else name
    return name.upper() if word.isupper() else name.capitalize() if word[0].isupper() else name


def _with_weekday(
    text: str, start: int, end: int, shown: str, *, moved: datetime.date | None = None
) -> list[Span]:
    """Return the span, with the day of the week before it set right or, where nobody can, taken out."""
    weekday = (
        _WEEKDAY_BEFORE.search(text, max(0, start - 15), start)
        if "day" in text[max(0, start - 15) : start].lower()
        else None
    )
    if weekday is None:
        return [Span(start, end, "date", shown)]
    name = _DAYS[moved.weekday()] + weekday[2] if moved else ""
    name = name.upper() if weekday[1].isupper() else name
    return [Span(weekday.start(), end, "date", name + shown)]
