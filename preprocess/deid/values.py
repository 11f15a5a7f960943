"""Values that replace others: dates moved by days, and a harmless value for each VR."""

from __future__ import annotations

import datetime
import re
from typing import Any

__all__ = ["REMOVED", "cap_age", "dummy", "move_date"]

REMOVED = "REMOVED"

# PS3.5 6.2: DA is YYYYMMDD (YYYY.MM.DD in ACR-NEMA files); DT may stop early and end with an offset.
_DATE = re.compile(r"(\d{4})([-./]?)(\d\d)\2(\d\d)((?:\d\d){0,3}(?:\.\d{1,6})?)(?:[+-]\d{4})?")
_DUMMIES: dict[str, Any] = {
    "AE": REMOVED,
    "AS": "000Y",
    "AT": 0,
    "CS": REMOVED,
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "IS": "0",
    "LO": REMOVED,
    "LT": REMOVED,
    "PN": REMOVED,
    "SH": REMOVED,
    "ST": REMOVED,
    "TM": "000000",
    "UC": REMOVED,
    "UR": REMOVED,
    "UT": REMOVED,
    **dict.fromkeys(("FL", "FD"), 0.0),
    **dict.fromkeys(("SL", "SS", "SV", "UL", "US", "UV"), 0),
}


def dummy(vr: str) -> Any:
    r"""Return a value that any element of this VR may have and that says nothing.

    Examples:
        >>> dummy("PN"), dummy("DA"), dummy("US"), dummy("OB")
        ('REMOVED', '19000101', 0, b'\x00\x00')
    """
    return _DUMMIES.get(vr, bytes(8) if vr in ("OD", "OV") else bytes(4) if vr in ("OF", "OL") else b"\0\0")


def move_date(value: str, *, days: int) -> str | None:
    """Move a DA or DT value by whole days; its time stays, its offset from UTC is dropped.

    Returns:
        The moved value in the form it had, or None where it is no date that can be moved.

    Examples:
        >>> move_date("20150301", days=-1)
        '20150228'
        >>> move_date("20150301101500.5+0200", days=-1)
        '20150228101500.5'
        >>> move_date("2015.03.01", days=1)
        '2015.03.02'
        >>> move_date("yesterday", days=-1) is None
        True
    """
    match = _DATE.fullmatch(value.strip("\0 "))
    if match is None:
        return None
    year, separator, month, day, time = match.groups()
    try:
        moved = datetime.date(int(year), int(month), int(day)) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{moved.year:04}{separator}{moved.month:02}{separator}{moved.day:02}{time}"


def cap_age(value: str) -> str:
    """Return an age string (AS) with every age over 89 years as ``090Y``.

    Examples:
        >>> cap_age("093Y"), cap_age("089Y"), cap_age("1100M"), cap_age("about 95")
        ('090Y', '089Y', '090Y', '')
    """
    match = re.fullmatch(r"(\d{1,4})([DWMY])", value.strip("\0 "))
    if match is None:
        return ""
    years = int(match[1]) * {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1}[match[2]]
    return "090Y" if years >= 90 else value.strip("\0 ")
