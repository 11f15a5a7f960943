"""Text without accents, widths and invisible characters, and the way back to the places in the original."""

from __future__ import annotations

import functools
import unicodedata

__all__ = ["fold"]

_AS = {"’": "'", "‘": "'", "ʼ": "'", "‐": "-", "‑": "-", "–": "-", "ø": "o", "ł": "l", "đ": "d", "ı": "i"}
_AS |= {"ß": "ss", "æ": "ae", "œ": "oe", "þ": "th", "，": ","}


def fold(text: str) -> tuple[str, list[int] | None]:
    """Return a text in lower case without accents and invisible characters.

    Returns:
        The folded text, and for each of its characters the place in ``text`` that it comes from; None
        where the text is ASCII and every place is its own.

    Examples:
        >>> fold("José\u00a0O’BRIEN")[0]
        "jose o'brien"
        >>> fold("Müller")[1], fold("Doe")[1]
        ([0, 1, 2, 3, 4, 5], None)
    """
    if text.isascii():
        return text.lower(), None
    letters: list[str] = []
    places: list[int] = []
    for at, character in enumerate(text):
        plain = character.lower() if character.isascii() else _folded(character)
        letters.append(plain)
        places += [at] * len(plain)
    return "".join(letters), places


@functools.lru_cache(maxsize=8192)
def _folded(character: str) -> str:
    if "\uac00" <= character <= "\ud7af":  # a Hangul syllable is one letter here
        return character
    decomposed = unicodedata.normalize("NFKD", _AS.get(character.lower(), character)).lower()
    kept = (_AS.get(c, c) for c in decomposed if unicodedata.category(c) not in ("Mn", "Cf"))
    return "".join(kept)
