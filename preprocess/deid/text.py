"""Identifying words of a report replaced by what they were, and its dates moved by the patient's days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from medvl.preprocess.deid.dates import Span, find_dates
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
    spans = list(find_names(text, low, names))
    spans += _given_ids(text, low, ids)
    spans += find_patterns(text, low)
    if shift_days:
        spans += find_dates(text, shift_days=shift_days)
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
    for number in ids:
        plain = number.strip().lower()
        for form in {plain, plain.lstrip("0")}:
            if len(form) < 4 or (form.isalpha() and len(form) < 6):
                continue
            start = low.find(form)
            while start >= 0:
                end = start + len(form)
                if not (start and low[start - 1].isalnum()) and not low[end : end + 1].isalnum():
                    decimal = low[end : end + 1] == "." and low[end + 1 : end + 2].isdigit()
                    if len(form) > 4 or not (decimal or low[max(0, start - 1) : start] == "."):
                        yield Span(start, end, "id", "[id]")
                start = low.find(form, end)
