"""Identifying words of a report replaced by what they were, and its dates moved by the patient's days."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from medvl.preprocess.deid.dates import Span, find_dates
from medvl.preprocess.deid.months import FOREIGN_MONTHS, find_foreign_dates
from medvl.preprocess.deid.names import find_names
from medvl.preprocess.deid.patterns import find_patterns

__all__ = ["deidentify_text"]


def deidentify_text(
    text: str, *, names: Sequence[str] = (), ids: Sequence[str] = (), shift_days: int = 0
) -> tuple[str, dict[str, int]]:
    """Replace what could identify a person; everything else stays byte by byte.

    The names and ids that a header or a table states are found in any rendering; others by what stands
    around them: a title, "signed by", a credential, "MRN", the form of a telephone number, an e-mail
    address, a street, a hospital. Each becomes a token, ``[name]``, ``[id]``, ``[phone]``, ``[email]``,
    ``[url]``, ``[address]`` or ``[hospital]``; an age over 89 becomes ``90+``; a date moves and keeps its
    format. A name that is also a word of reports (Small, Long, White) goes only where a title, the rest
    of the name or a capital inside a sentence says that it is one. What only a reader would recognise
    stays: this helps, and guarantees nothing.

    Args:
        text: a report, or any free text.
        names: of the patient and of staff, as DICOM person names (``DOE^JOHN``) or plain.
        ids: record, accession and telephone numbers; those under four characters are left to patterns.
        shift_days: how far dates move; 0 leaves them as they are.

    Returns:
        The clean text, and how many were replaced by kind, only kinds that occurred. A second pass with
        ``shift_days=0`` changes nothing.

    Examples:
        >>> text = "Mr. Doe, MRN 123456, seen by Dr. Ann Lee on 03/12/2015. Nodule of 4.2 cm, 3/4 of lobe."
        >>> deidentify_text(text, names=["DOE^JOHN"], shift_days=-10)[0]
        'Mr. [name], MRN [id], seen by Dr. [name] on 03/02/2015. Nodule of 4.2 cm, 3/4 of lobe.'
    """
    low = text.lower()
    if len(low) != len(text):  # İ has two letters in lower case: places must stay where they are
        low = "".join(letter.lower()[0] for letter in text)
    spans = list(find_names(text, low, names))
    spans += _given_ids(text, low, ids)
    words = frozenset(_LETTERS.findall(low))
    spans += find_patterns(text, low, words)
    if shift_days:
        spans += find_dates(text, shift_days=shift_days, words=words)
        if not words.isdisjoint(FOREIGN_MONTHS):
            spans += find_foreign_dates(text, shift_days=shift_days)
    if not spans:
        return text, {}
    return _replaced(text, spans)


def _replaced(text: str, spans: list[Span]) -> tuple[str, dict[str, int]]:
    pieces: list[str] = []
    counts: Counter[str] = Counter()
    at = 0
    for span in _joined(spans):
        if text[span.start : span.end] == span.shown:
            continue
        pieces += (text[at : span.start], span.shown)
        counts[span.kind] += 1
        at = span.end
    return "".join(pieces) + text[at:], dict(counts)


def _joined(spans: list[Span]) -> list[Span]:
    """Join spans that overlap; the longest names the kind, and a token wins over a moved date."""
    joined: list[Span] = []
    for span in sorted(spans):
        if not joined or span.start >= joined[-1].end:
            joined.append(span)
            continue
        last = joined[-1]
        main = max(last, span, key=lambda each: (each.shown.startswith("["), each.end - each.start))
        joined[-1] = Span(last.start, max(last.end, span.end), main.kind, main.shown)
    return joined


def _given_ids(text: str, low: str, ids: Sequence[str]) -> Iterator[Span]:
    compact = ""
    for number in ids:
        plain = number.strip().lower()
        for form in {plain, plain.lstrip("0")}:
            if len(form) < 4 or (form.isalpha() and len(form) < 6):
                continue
            yield from _as_written(low, form)
        core = "".join(filter(str.isalnum, plain)).lstrip("0")
        if not core.isascii() or len(core) < 5 or not _spaced(core):
            continue
        compact = compact or low.translate(_NO_GAPS)
        if core in compact:
            for match in _with_gaps(core).finditer(low):
                yield Span(*match.span(), "id", "[id]")


def _as_written(low: str, form: str) -> Iterator[Span]:
    start = low.find(form)
    while start >= 0:
        end = start + len(form)
        if not (start and low[start - 1].isalnum()) and not low[end : end + 1].isalnum():
            decimal = low[end : end + 1] == "." and low[end + 1 : end + 2].isdigit()
            if len(form) > 4 or not (decimal or low[max(0, start - 1) : start] == "."):
                yield Span(start, end, "id", "[id]")
        start = low.find(form, end)


def _spaced(core: str) -> bool:
    """Whether an identifier may be cut by blanks and hyphens and still be no measure and no date."""
    if core.isalpha():
        return False
    return not core.isdigit() or (len(core) > 6 and not _DAY.fullmatch(core))


@functools.lru_cache(maxsize=4096)
def _with_gaps(core: str) -> re.Pattern[str]:
    """Match an identifier in groups: 00-12-345, AB 1234; between letters and digits anything goes."""
    pieces = [core[0]]
    for before, letter in pairwise(core):
        pieces += ("[ _/-]?" if before.isdigit() == letter.isdigit() else "[ ._/#-]{0,2}", letter)
    return re.compile(rf"(?<![^\W_])(?:0[ _/-]?)*{''.join(pieces)}(?![^\W_])")


_LETTERS = re.compile(r"[^\W\d_]+")
_NO_GAPS = str.maketrans("", "", " ._/#-\n")
_DAY = re.compile(r"(?:19|20)\d\d(?:0\d|1[0-2])[0-3]\d")
