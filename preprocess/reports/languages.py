"""Which language a report seems to be in, by its commonest words."""

from __future__ import annotations

import functools
import re

from medvl.preprocess.reports.rules import PARSERS, parser_data

__all__ = ["guess_language"]

_LOOKED_AT = 4_000
_WORD = re.compile(r"[^\W\d_]+")


@functools.cache
def _common() -> dict[str, frozenset[str]]:
    """Return the commonest words of each language that a parser reads."""
    return {parser.partition("-")[0]: frozenset(parser_data(parser)["common"]) for parser in PARSERS}


def guess_language(text: str) -> str:
    """Return the language of a text, ``en``, ``es``, ``de``, or another that a parser reads; "" if unsure.

    The language with most of its commonest words in the text wins, if they are three at least, and half as
    many again as the next one's. This is meant for a note that the parser does not fit, not for choosing one.

    Examples:
        >>> guess_language("Im Vergleich zur Voruntersuchung ist der Erguss rechts nicht kleiner.")
        'de'
        >>> guess_language("No effusion.")
        ''
    """
    words = _WORD.findall(text[:_LOOKED_AT].lower())
    found = sorted(
        ((sum(map(common.__contains__, words)), name) for name, common in _common().items()), reverse=True
    )
    (most, name), (next_most, _) = found[0], found[1]
    return name if most >= 3 and most >= 1.5 * next_most else ""
