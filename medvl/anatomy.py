"""Which parts of the body a sentence speaks of, and which part a finding belongs to.

The table ``anatomy.yaml`` holds the words. Terms match whole words: "smaller" holds no "small",
"cardiopulmonary" no "pulmonary"; of the terms that begin at one word the longest decides ("pulmonary artery"
is a vessel, "pulmonary" the lungs). On a film a sentence belongs to the part that it names first. A sentence
of CT may speak of several parts, and names others only as places: see :func:`named_parts`. One that names no
part leans on its heading or on the sentence before: see :func:`report_parts`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from medvl.config import read_config
from medvl.errors import ConfigError, nearest

__all__ = [
    "FINDING_PARTS",
    "PARTS",
    "Named",
    "PartsOf",
    "finding_parts",
    "named_parts",
    "report_parts",
    "sentence_parts",
]

_TABLE: dict[str, Any] = read_config(Path(__file__).with_name("anatomy.yaml"))
_REMEMBERED, _REMEMBERED_CHARS = 2**16, 512  # sentences whose parts are kept, and their longest
_READ_CHARS = 4096  # of a sentence; longer ones are no sentences, and reading them takes squared time

PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {modality: tuple(parts) for modality, parts in _TABLE["parts"].items()}
)
"""The parts of each modality; part number k is entry k − 1."""

FINDING_PARTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        modality: MappingProxyType(
            {
                finding: part
                for part, groups in parts.items()
                for group in groups
                for finding in _TABLE["findings"].get(group, ())
            }
        )
        for modality, parts in _TABLE["parts"].items()
    }
)
"""For each modality, the part of each finding that belongs to one."""


@dataclass(frozen=True)
class Named:
    """Words of a sentence that say of which part it speaks.

    Attributes:
        part: its number.
        start, end: of the words.
        rank: how exactly the words name it: 2 ("liver"), 1 in general ("abdomen"), 0 vaguely, for
            want of others ("nodule" the lungs).
    """

    part: int
    start: int
    end: int
    rank: int = 2


@dataclass(frozen=True)
class PartsOf:
    """The parts that a sentence of a report speaks of, and why.

    Attributes:
        parts: their numbers in the order in which they are named, each once; () for none.
        named: the words that say so; () where another sentence does.
        rule: ``"named"``, ``"heading"``, ``"leaning"`` (on the sentence before) or ``"none"``.
    """

    parts: tuple[int, ...]
    named: tuple[Named, ...]
    rule: Literal["named", "heading", "leaning", "none"]


def sentence_parts(sentences: Sequence[str], *, modality: str = "cxr") -> Int64[np.ndarray, " sentences"]:
    """Return the part that each sentence speaks of: k for part k of :data:`PARTS`, 0 for none.

    On a film that is the part named first, on CT the first of :func:`report_parts`.

    Args:
        sentences: of one report, in its order.
        modality: whose parts.

    Raises:
        ConfigError: a modality without parts.

    Examples:
        >>> sentence_parts(["The heart is smaller.", "Left effusion and atelectasis.", "Unchanged."]).tolist()
        [3, 2, 0]
    """
    _require_parts(modality)
    if modality in _TABLE["reading"]["modalities"]:
        first = [found.parts[0] if found.parts else 0 for found in report_parts(sentences, modality=modality)]
        return np.array(first, np.int64)
    return np.array([_part(sentence, modality) for sentence in sentences], np.int64)


def named_parts(sentence: str, *, modality: str = "ct") -> tuple[Named, ...]:
    """Return the words of a sentence that say of which parts it speaks, in their order.

    Words that only tell a place do not count, as long as others stand in the sentence:

    1. an opening that frames the sentence ("In the sections through the upper abdomen, …");
    2. what follows a relation, up to a comma ("adjacent to the fissure");
    3. an organ behind a finding that tells its part itself, or behind a device ("bronchiectasis in the left
       lung", "catheter … in the superior vena cava"), up to the next verb;
    4. a general word besides an exact one ("a nodule of the left adrenal gland");
    5. all organs around lymph nodes but those that put the nodes into the abdomen.

    Args:
        sentence: its words.
        modality: whose parts.

    Raises:
        ConfigError: a modality without parts.

    Examples:
        >>> text = "A stone in the gallbladder, and a nodule adjacent to the left kidney."
        >>> [(PARTS["ct"][named.part - 1], text[named.start : named.end]) for named in named_parts(text)]
        [('gallbladder', 'gallbladder')]
    """
    _require_parts(modality)
    return (_remembered_names if len(sentence) <= _REMEMBERED_CHARS else _names)(sentence, modality)


def report_parts(sentences: Sequence[str], *, modality: str = "ct") -> tuple[PartsOf, ...]:
    """Return the parts that each sentence of a report speaks of, and what says so.

    A sentence that names none, or only by general words, belongs to the heading that it stands under
    ("LIVER: Cyst. No stones."); without a heading, to the parts of the sentence before if it opens like one
    that leans on it ("It measures 4 mm.", "No focal lesion."). A heading holds until the next, or until a
    sentence names another part.

    Args:
        sentences: of one report, in its order.
        modality: whose parts.

    Raises:
        ConfigError: a modality without parts.

    Examples:
        >>> found = report_parts(["Liver: Normal.", "No mass.", "The spleen is large.", "It measures 15 cm."])
        >>> [(PARTS["ct"][each.parts[0] - 1], each.rule) for each in found]
        [('liver', 'named'), ('liver', 'heading'), ('spleen', 'named'), ('spleen', 'leaning')]
    """
    _require_parts(modality)
    found: list[PartsOf] = []
    heading: tuple[int, ...] = ()
    for sentence in sentences:
        names = named_parts(sentence, modality=modality)
        headed = _HEADING.match(sentence)
        parts = tuple(dict.fromkeys(name.part for name in names))
        exact = any(name.rank == 2 for name in names)
        above = found[-1].parts if found else ()
        if headed is not None and parts:
            opened = [n.part for n in named_parts(headed[1], modality=modality)]
            heading = tuple(dict.fromkeys(opened))
            found.append(PartsOf(parts, names, "named"))
        elif exact or _is_advice(sentence):
            heading = heading if set(parts) <= set(heading) else ()
            found.append(PartsOf(parts, names, "named" if parts else "none"))
        elif heading:
            found.append(PartsOf(heading, (), "heading"))
        elif above and _leans(sentence, above, names, modality):
            found.append(PartsOf(above, (), "leaning"))
        else:
            found.append(PartsOf(parts, names, "named" if parts else "none"))
    return tuple(found)


def finding_parts(findings: Sequence[str], *, modality: str = "cxr") -> tuple[int, ...]:
    """Return the number of the part of each finding, 0 for one that belongs to none.

    Args:
        findings: names of label columns, such as :func:`medvl.data.label_names` returns.
        modality: whose parts.

    Raises:
        ConfigError: a modality without parts.

    Examples:
        >>> finding_parts(["cardiomegaly", "no_finding", "pneumothorax"])
        (3, 0, 2)
    """
    _require_parts(modality)
    numbers = {part: number for number, part in enumerate(PARTS[modality], start=1)}
    known = FINDING_PARTS[modality]
    return tuple(numbers[known[finding]] if finding in known else 0 for finding in findings)


def _require_parts(modality: str) -> None:
    if modality not in PARTS:
        raise ConfigError(f"modality '{modality}' has no table of parts.", hint=nearest(modality, PARTS))


def _part(sentence: str, modality: str) -> int:
    # Reports repeat their sentences, and every epoch repeats all of them; a monster is not worth the memory.
    return (_remembered if len(sentence) <= _REMEMBERED_CHARS else _first_part)(sentence, modality)


def _first_part(sentence: str, modality: str) -> int:
    matcher = _matcher(modality)
    found = matcher.pattern.search(sentence.casefold())
    return 0 if found is None else matcher.numbers[matcher.term(found.group())]


_remembered = functools.lru_cache(maxsize=_REMEMBERED)(_first_part)
_GAP = r"[\s/-]+"
_READING: dict[str, Any] = _TABLE["reading"]
_GENERAL, _VAGUE, _EXACT, _NODES = (frozenset(_READING[k]) for k in ("general", "vague", "exact", "nodes"))


def _any_of(words: Sequence[str]) -> str:
    return "|".join(_GAP.join(map(re.escape, word.split())) for word in sorted(words, key=len, reverse=True))


_HEADING = re.compile(
    r"\W*(?!(?:in|on|at|when|within|as|during) )([a-z][a-z ,/&-]{2,60}):(?=\s|$)", re.IGNORECASE
)
_FRAME = re.compile(
    r"\W*(?:in|on|at|when|within|as far as|during)\b[^;:,]{0,140}?"
    r"\b(?:windows?|sections?|examin\w*|evaluat\w*|limits|scan|seen|observed)\b[^;:,]{0,80}[;:,]"
)
_RELATION = re.compile(rf"\b(?:{_any_of(_READING['relations'])})\b[^,;]*$")
_LEVEL = re.compile(rf"\b(?:{_any_of(_READING['levels'])})\b[^,;]*$")
_FLUID = frozenset(_READING["fluid"])
_LEANS = re.compile(rf"\W*(?:however,? |also,? )?(?:{_any_of(_READING['leaning'])})\b", re.IGNORECASE)
_LOW = re.compile(rf"\b(?:{_any_of(_READING['low'])})\b")
_ADVICE = re.compile(r"\b(?:recommend|correlat|suggest|advis)", re.IGNORECASE)
_PLACE = re.compile(
    r"(?:(?!,|;|\band\b|\bbut\b|\bwith\b).)*?"
    r"\b(?:in|of|at|within|on|along|into|to|inside|through|passes)\b"
)
_BREAK = re.compile(r";|\bbut\b|\bwith\b")
_JOINT = re.compile(r",|\band\b")
_VERB = r"(?:is|are|was|were|has|have|appears?|shows?)"
_SUBJECT = re.compile(rf"\W*(?:\w+\W+){{0,3}}?{_VERB}\b")
_VERBS = re.compile(rf"\b{_VERB}\b|;")


@dataclass(frozen=True)
class _Matcher:
    pattern: re.Pattern[str]
    numbers: Mapping[str, int]

    def term(self, words: str) -> str:
        """Return the term of the table that the words are."""
        term = " ".join(re.split(_GAP, words))
        return term if term in self.numbers else term.removesuffix("s")


@functools.cache
def _matcher(modality: str) -> _Matcher:
    """Return the pattern of all terms, the longest first, and the part number of each."""
    numbers = {
        term: number
        for number, groups in enumerate(_TABLE["parts"][modality].values(), start=1)
        for group in groups
        for term in _TABLE["terms"][group]
    }
    return _Matcher(re.compile(rf"(?<!\w)(?:{_any_of(sorted(numbers))})s?(?!\w)"), numbers)


@dataclass(frozen=True)
class _Word:
    """A term of the table in a sentence; ``rank`` 2 names its part exactly, 1 in general, 0 vaguely."""

    part: int
    start: int
    end: int
    term: str

    @property
    def rank(self) -> int:
        return 0 if self.term in _VAGUE else 1 if self.term in _GENERAL else 2

    @property
    def is_node(self) -> bool:
        return self.term in _NODES


def _names(sentence: str, modality: str) -> tuple[Named, ...]:
    sentence = sentence[:_READ_CHARS]
    text, matcher = sentence.casefold(), _matcher(modality)
    if len(text) != len(sentence):  # a letter that folds into two: spans must stay those of the sentence
        text = sentence.lower() if len(sentence.lower()) == len(sentence) else sentence
    words = [
        _Word(matcher.numbers[term], found.start(), found.end(), term)
        for found in matcher.pattern.finditer(text)
        if (term := matcher.term(found.group()))
    ]
    headed = _HEADING.match(text)
    opened = [word for word in words if headed is not None and word.end <= headed.end()]
    if opened:
        rest = _told(text, [word for word in words if word.start >= opened[-1].end], modality)
        inside = {word.part for word in rest if word.rank == 2} <= {word.part for word in opened}
        kept = opened if inside else rest
    else:
        kept = _told(text, words, modality)
    return tuple(Named(word.part, word.start, word.end, word.rank) for word in kept)


_remembered_names = functools.lru_cache(maxsize=_REMEMBERED)(_names)


def _told(text: str, words: list[_Word], modality: str) -> list[_Word]:
    """Leave out the words that only tell a place or a cause; all stay where none would."""
    framed = _FRAME.match(text)
    if framed is not None:
        inside = [word for word in words if word.start >= framed.end()]
        words = inside if any(word.rank == 2 for word in inside) else words
    devices = PARTS[modality].index("devices") + 1
    words = [word for word in words if not _RELATION.search(text, 0, word.start)] or words
    level = [word for word in words if not _LEVEL.search(text, 0, word.start)]
    words = level if any(word.rank == 2 for word in level) else words
    fluid = min((word.start for word in words if word.term in _FLUID), default=len(text))
    words = [word for word in words if word.term != "effusion" or word.start < fluid]
    for marker in [w for w in words if w.term in _EXACT or (w.part == devices and w.rank == 2)]:
        device = marker.part == devices
        words = [word for word in words if not _is_place(text, marker, word, device=device)]
    words = _around_nodes(text, words, modality)
    best = max((word.rank for word in words), default=2)
    return [word for word in words if word.rank == best]


def _is_place(text: str, marker: _Word, word: _Word, *, device: bool) -> bool:
    """Say whether an organ is only where the finding or the device before it lies."""
    if word.start < marker.end or word.part == marker.part or word.term in _EXACT:
        return False
    between = text[marker.end : word.start]
    place = _PLACE.match(between)
    if place is None or (not device and _BREAK.search(between)):
        return False
    joined = _JOINT.search(between, place.end())
    return joined is None or not _SUBJECT.match(text, word.end)


def _around_nodes(text: str, words: list[_Word], modality: str) -> list[_Word]:
    """Join the words around lymph nodes to them, and put the nodes into the mediastinum or the abdomen."""
    node = next((word for word in words if word.is_node), None)
    if node is None:
        return words
    abdomen = PARTS[modality].index("abdomen") + 1
    low = {abdomen, *range(PARTS[modality].index("devices") + 2, len(PARTS[modality]) + 1)}
    joined: list[_Word] = []
    others: list[_Word] = []
    for word in words:
        before = word.end <= node.start and not _VERBS.search(text, word.end, node.start)
        behind = word.start >= node.end and _PLACE.match(text[node.end : word.start])
        near = word.is_node or (word.term not in _EXACT and (before or behind))
        (joined if near else others).append(word)
    is_low = any(word.part in low for word in joined) or _LOW.search(text)
    part = abdomen if is_low else node.part
    return sorted([*others, _Word(part, node.start, node.end, node.term)], key=lambda word: word.start)


def _is_advice(sentence: str) -> bool:
    return _ADVICE.search(sentence) is not None


def _leans(sentence: str, above: Sequence[int], names: Sequence[Named], modality: str) -> bool:
    """Say whether a sentence that names no part, or only a vague one, goes on about the one before."""
    if _LEANS.match(sentence) is None or any(name.rank for name in names):
        return False
    return not names or max(above) > PARTS[modality].index("devices") + 1
