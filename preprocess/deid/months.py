"""Dates whose month is written in German, Spanish, French, Italian or Portuguese, moved by days."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator

from medvl.preprocess.deid.dates import MONTHS, Span

__all__ = ["FOREIGN_MONTHS", "find_foreign_dates"]

_LANGUAGES = tuple(
    tuple(names.split())
    for names in (
        "januar februar märz april mai juni juli august september oktober november dezember",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
    )
)
FOREIGN_MONTHS = frozenset(name for names in _LANGUAGES for name in names)
_MONTHS = sorted(FOREIGN_MONTHS, key=len, reverse=True)
_DATE = re.compile(
    rf"(\d{{1,2}})(\.|º|er|°)?( de |\. ?| )({'|'.join(_MONTHS)})(?:( del? |,? )((?:19|20)\d\d))?(?!\w)",
    re.IGNORECASE,
)
_LEAP = 2004


def find_foreign_dates(text: str, *, shift_days: int) -> Iterator[Span]:
    """Yield dates such as ``12. März 2015`` and ``12 de marzo de 2015`` with what they become.

    Examples:
        >>> [span] = find_foreign_dates("12. März 2015", shift_days=-20)
        >>> span.shown
        '20. Februar 2015'
    """
    for match in _DATE.finditer(text):
        before = text[max(0, match.start() - 1) : match.start()]
        if before.isalnum() or before in tuple("./-_"):
            continue
        day, mark, gap, month, join, year = match.groups(default="")
        if month.lower() in MONTHS and gap == " ":  # 12 April 2015 is English too
            continue
        names = _language_of(month.lower(), gap + join)
        try:
            date = datetime.date(int(year or _LEAP), names.index(month.lower()) + 1, int(day))
            moved = date + datetime.timedelta(days=shift_days)
        except (ValueError, OverflowError):
            yield Span(*match.span(), "date", "[date]")
            continue
        name = names[moved.month - 1]
        name = name.upper() if month.isupper() else name.capitalize() if month[0].isupper() else name
        number = f"{moved.day:02}" if day.startswith("0") else str(moved.day)
        shown = f"{number}{mark}{gap}{name}" + (f"{join}{moved.year}" if year else "")
        yield Span(*match.span(), "date", shown)


def _language_of(month: str, joins: str) -> tuple[str, ...]:
    """Return the months of the first language that has this one; "de" tells Spanish from German."""
    fitting = [names for names in _LANGUAGES if month in names]
    romance = [names for names in fitting if names[0] != "januar"]
    return romance[0] if " de " in joins and romance else fitting[0]
