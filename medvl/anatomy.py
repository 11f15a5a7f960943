"""Which part of the body a sentence speaks of, and which part a finding belongs to.

The table ``anatomy.yaml`` holds the words. A sentence belongs to the part that it names *first*; of the terms
that begin at that word the longest decides ("pulmonary artery" is a vessel, "pulmonary" the lungs). Terms
match whole words: "smaller" holds no "small", "cardiopulmonary" no "pulmonary". A sentence that names no part
has part 0.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int64

from medvl.config import read_config
from medvl.errors import ConfigError, nearest

__all__ = ["FINDING_PARTS", "PARTS", "finding_parts", "sentence_parts"]

_TABLE: dict[str, Any] = read_config(Path(__file__).with_name("anatomy.yaml"))
_REMEMBERED, _REMEMBERED_CHARS = 2**16, 512  # sentences whose part is kept, and their longest

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


def sentence_parts(sentences: Sequence[str], *, modality: str = "cxr") -> Int64[np.ndarray, " sentences"]:
    """Return the part that each sentence speaks of: k for part k of :data:`PARTS`, 0 for none.

    Args:
        sentences: of one report, in any order.
        modality: whose parts.

    Raises:
        ConfigError: a modality without parts.

    Examples:
        >>> sentence_parts(["The heart is smaller.", "Left effusion and atelectasis.", "Unchanged."]).tolist()
        [3, 2, 0]
    """
    _require_parts(modality)
    return np.array([_part(sentence, modality) for sentence in sentences], np.int64)


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
    pattern, numbers = _matcher(modality)
    found = pattern.search(sentence.casefold())
    if found is None:
        return 0
    term = " ".join(re.split(_GAP, found.group()))
    return numbers.get(term) or numbers[term.removesuffix("s")]


_remembered = functools.lru_cache(maxsize=_REMEMBERED)(_first_part)
_GAP = r"[\s/-]+"


@functools.cache
def _matcher(modality: str) -> tuple[re.Pattern[str], dict[str, int]]:
    """Return the pattern of all terms, the longest first, and the part number of each."""
    numbers = {
        term: number
        for number, groups in enumerate(_TABLE["parts"][modality].values(), start=1)
        for group in groups
        for term in _TABLE["terms"][group]
    }
    ordered = sorted(numbers, key=lambda term: (-len(term), term))
    words = "|".join(_GAP.join(map(re.escape, term.split())) for term in ordered)
    return re.compile(rf"(?<!\w)(?:{words})s?(?!\w)"), numbers
