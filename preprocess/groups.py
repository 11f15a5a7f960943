"""Columns of the index as integer codes, so that questions about groups of equal values need no loop."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from medvl.records import Record

__all__ = ["Column", "Rows", "records_table"]

Rows: TypeAlias = Int[np.ndarray, " _"]

_LISTS = {"retrieval": pa.list_(pa.string()), "shape": pa.list_(pa.int32())}


class Column:
    """One column as integer codes, and its groups of equal values."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        encoded = column.combine_chunks().dictionary_encode()
        self.keys: pa.Array = encoded.dictionary
        self.codes: Rows = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    @functools.cached_property
    def _sorted(self) -> Rows:
        return np.argsort(self.codes, kind="stable")

    def groups(self, codes: Rows) -> list[Rows]:
        """Return the rows of some codes, in the order of their keys."""
        ordered = sorted(codes.tolist(), key=lambda code: self.keys[code].as_py())
        first = np.searchsorted(self.codes, ordered, "left", sorter=self._sorted)
        last = np.searchsorted(self.codes, ordered, "right", sorter=self._sorted)
        return [self._sorted[a:b] for a, b in zip(first, last, strict=True)]

    def code(self, key: str) -> int:
        """Return the code of a value, or -2 if no row has it."""
        found = pc.index(self.keys, key).as_py()
        return found if found >= 0 else -2

    def several(self) -> Rows:
        """Return the codes of more than one row."""
        return np.flatnonzero(np.bincount(self.codes[self.codes >= 0]) > 1)

    def differing(self, other: Column, *, where: Bool[np.ndarray, " rows"] | None = None) -> Rows:
        """Return the codes whose rows have more than one value in another column."""
        kept = self.codes >= 0 if where is None else where & (self.codes >= 0)
        codes, values = self.codes[kept], other.codes[kept]
        one_of_them = np.empty(len(self.keys), np.int64)
        one_of_them[codes] = values
        differs = np.zeros(len(self.keys), bool)
        differs[codes[values != one_of_them[codes]]] = True
        return np.flatnonzero(differs)


def records_table(records: Sequence[Record], names: Sequence[str]) -> pa.Table:
    """Return some columns of the index as they would be, had the records been stored."""
    columns = {}
    for name in names:
        values = [_cell(name, getattr(record, name)) for record in records]
        columns[name] = pa.chunked_array([pa.array(values, _LISTS.get(name, pa.string()))])
    return pa.table(columns)


def _cell(name: str, value: Any) -> Any:
    if name in ("labels", "said"):
        return json.dumps(value)
    if name == "boxes":
        return json.dumps([dataclasses.asdict(box) for box in value]) if value else "[]"
    return _plain(value)


def _plain(value: Any) -> Any:
    """Replace lone surrogates, which Arrow cannot hold."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
