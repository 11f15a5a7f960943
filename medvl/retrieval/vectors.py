"""What an index of cases holds and answers, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Int, Shaped

__all__ = ["SAME_SCORE", "Against", "Hit", "Neighbours", "VectorIndex", "index_schema", "quoted", "top"]

SAME_SCORE = 1e-6
"""Scores that differ by less are equal, and their cases come in the order of their ids."""

Against = Literal["image", "text"]


@dataclass(frozen=True)
class Hit:
    """One case that a search found; ``score`` is the cosine of query and case."""

    rank: int
    score: float
    record_id: str
    study_id: str
    patient_id: str
    modality: str
    view: str | None
    laterality: str | None
    split: str
    findings: tuple[str, ...]
    report: str
    thumbnail: bytes = b""

    def to_json(self) -> dict[str, Any]:
        """Return plain values without the picture."""
        return {name: value for name, value in asdict(self).items() if name != "thumbnail"}


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of a query, best first: ids, the table's own row numbers, cosines."""

    record_ids: Shaped[np.ndarray, " hits"]
    row_ids: Int[np.ndarray, " hits"]
    scores: Float[np.ndarray, " hits"]


class VectorIndex(Protocol):
    """What a search engine must do; one conformance suite runs over every implementation."""

    @property
    def about(self) -> dict[str, Any]:
        """JSON values that the index was made with."""
        ...

    def count(self, where: str | None = None) -> int:
        """Return the number of rows that ``where`` keeps."""
        ...

    def upsert(self, rows: pa.Table) -> None:
        """Add rows, replacing those whose ``record_id`` is there."""
        ...

    def search(
        self,
        query: Float32[np.ndarray, " dim"],
        *,
        k: int,
        where: str | None,
        exclude_patients: Sequence[str],
        against: Against,
    ) -> list[Hit]:
        """Return the ``k`` cases of highest cosine, best first; equal scores in the order of the ids."""
        ...

    def erase(self, where: str) -> int:
        """Erase rows for good and return how many."""
        ...


def index_schema(dim: int) -> pa.Schema:
    """Return the columns of an index row; both vectors have unit length, a missing one is zero."""
    text, vector = pa.string(), pa.list_(pa.float32(), dim)
    return pa.schema(
        [
            ("record_id", text), ("study_id", text), ("patient_id", text), ("modality", text), ("view", text),
            ("laterality", text), ("split", text), ("findings", pa.list_(text)), ("report", text),
            ("text_hash", text), ("thumbnail", pa.binary()), ("vector", vector), ("text_vector", vector),
        ]
    )  # fmt: skip


def quoted(value: str) -> str:
    """Return a string as an SQL literal.

    Examples:
        >>> quoted("O'Hara")
        "'O''Hara'"
    """
    return "'" + value.replace("'", "''") + "'"


def top(scores: Float[np.ndarray, " rows"], k: int) -> Int[np.ndarray, " hits"]:
    """Return the positions of the ``k`` largest scores; scores equal to six decimals keep their order.

    A matrix product rounds equal rows differently by their place in a block, so equality to the
    last bit would make the order of equal cases depend on the size of the table.
    """
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold - SAME_SCORE)
    else:
        candidates = np.arange(len(scores))
    rounded = np.round(scores[candidates] / SAME_SCORE)
    return candidates[np.argsort(-rounded, kind="stable")][:k]
