"""A second, plain search for names and numbers, which shares no parser with what removed them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from medvl.preprocess.deid.words import ABBREVIATIONS, CLINICAL, COMMON, EPONYMS, NAMED_THINGS

__all__ = ["LEAST_LETTERS", "PlainSearch"]

LEAST_LETTERS = 4
"""Shorter components of names occur everywhere."""
_INSIDE = 7
"""From so many letters on a component counts inside other words too: ``johndoelittle``."""
_IN_BYTES = 6
_DIGITS_INSIDE = 10
"""From so many digits on a number counts inside longer ones; the digits of a UID hold any shorter one."""
_LETTERS = re.compile(r"[^\W\d_]+")
_RUN = re.compile(r"[^\W_]+")
_PRINTABLE = re.compile(rb"[\x20-\x7e]{6,}")
_HEX = re.compile("[a-f]+")
_ENCODINGS = ("utf-8", "gb18030", "iso2022_jp", "shift_jis", "euc_kr", "latin-1", "iso8859-5")
"""In which a header may spell a name that is not ASCII (PS3.3 C.12.1.1.2)."""
_WORDS = ABBREVIATIONS | CLINICAL | COMMON | EPONYMS | NAMED_THINGS


class PlainSearch:
    """Components of names and whole numbers, compared letter by letter without regard to case.

    A name is cut at whatever is no letter, and a text as well: no knowledge of DICOM names, titles or
    accents is used, so an error of the parser of names cannot hide here too.

    Args:
        names: as the originals wrote them.
        numbers: identifiers of patients and studies.
        ordinary: words that name nobody.

    Examples:
        >>> search = PlainSearch(["DOELITTLE^JOHN"], ["AB-1234567"], ordinary=())
        >>> sorted(set(search.found("x_doelittle9 and ab-1234567")))
        ['id', 'name']
        >>> list(search.found("little, john's and 1234567"))
        ['name']
    """

    def __init__(self, names: Iterable[str], numbers: Iterable[str], *, ordinary: Iterable[str]) -> None:
        words = _WORDS | set(ordinary)
        self._short: set[str] = set()
        self._wide: set[str] = set()
        self._inside: dict[str, set[str]] = defaultdict(set)
        self._exact: dict[str, set[str]] = defaultdict(set)
        for name in names:
            for part in _LETTERS.findall(name.casefold()):
                if not part.isascii():
                    if len(part) > 1:
                        self._wide.add(part)
                elif len(part) >= LEAST_LETTERS and part not in words:
                    self._short.add(part)
                    if len(part) >= _INSIDE and not any(part in word for word in words):
                        self._inside[part[:_INSIDE]].add(part)
        self._numbers: set[str] = set()
        for number in numbers:
            runs = _RUN.findall(number.casefold())
            if runs and len(runs[0]) and sum(map(len, runs)) >= 5 and any(map(str.isdigit, number)):
                self._exact[runs[0]].add(number.casefold().strip())
                glued = "".join(runs)
                if len(glued) >= (_DIGITS_INSIDE if glued.isdigit() else _INSIDE):
                    self._inside[glued[:_INSIDE]].add(glued)
                    self._numbers.add(glued)

    def found(self, text: str, *, least: int = LEAST_LETTERS) -> Iterator[str]:
        """Yield ``name`` and ``id``, once each value, for what is in a text."""
        low = text.casefold()
        words = set(_LETTERS.findall(low))
        seen: set[str] = set()
        for part in words & self._short:
            if len(part) >= least and not (_HEX.fullmatch(part) and not _alone(low, part)):
                seen.add(part)
                yield "name"
        runs = set(_RUN.findall(low))
        for part in self._within(runs | words) - seen:
            seen.add(part)
            yield "id" if part in self._numbers else "name"
        for number in (number for run in runs & self._exact.keys() for number in self._exact[run]):
            if "".join(_RUN.findall(number)) not in seen and _alone(low, number):
                yield "id"
        if not text.isascii():
            yield from ("name" for part in self._wide if part in low)

    def _within(self, runs: set[str]) -> set[str]:
        """Return the long values that are anywhere inside words."""
        found: set[str] = set()
        for run in runs if self._inside else ():
            for at in range(len(run) - _INSIDE + 1):
                parts = self._inside.get(run[at : at + _INSIDE], ())
                found.update(part for part in parts if run.startswith(part, at))
        return found

    def found_in_bytes(self, data: bytes) -> Iterator[str]:
        """Yield the same for bytes, whose printable runs are words; names of any encoding count."""
        printable = " ".join(run.decode("ascii") for run in _PRINTABLE.findall(data))
        yield from self.found(printable, least=_IN_BYTES)
        for part in self._wide:
            if any(form in data for form in _encoded(part)):
                yield "name"


def _alone(low: str, word: str) -> bool:
    """Whether a word stands somewhere without letters or digits on either side."""
    at = low.find(word)
    while at >= 0:
        end = at + len(word)
        if not (low[at - 1 : at].isalnum() or low[end : end + 1].isalnum()):
            return True
        at = low.find(word, at + 1)
    return False


def _encoded(part: str) -> set[bytes]:
    """Return the bytes of a word in each encoding that knows it, without those of two bytes."""
    forms: set[bytes] = set()
    for encoding in _ENCODINGS:
        for cased in (part, part.upper(), part.capitalize()):
            try:
                form = cased.encode(encoding)
            except UnicodeEncodeError:
                continue
            forms.add(form.removeprefix(b"\x1b$B").removesuffix(b"\x1b(B"))
    return {form for form in forms if len(form) > 3}
