"""The columns of ``index.parquet``, and a record as a row of it and back."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from medvl.errors import StoreError
from medvl.records import Box, Change, Record, Section, Sentence, TextRegion

__all__ = ["AGAIN", "FORMAT", "INDEX_SCHEMA", "finding_states", "index_bytes", "record_row", "row_record"]

FORMAT = "medvl-store-3"

_TEXT = pa.string()
INDEX_SCHEMA = pa.schema(
    [
        ("record_id", _TEXT),
        ("study_id", _TEXT),
        ("patient_id", _TEXT),
        ("modality", _TEXT),
        ("split", _TEXT),
        ("source_kind", _TEXT),
        ("view", _TEXT),
        ("laterality", _TEXT),
        ("report", _TEXT),
        ("retrieval", pa.list_(_TEXT)),
        ("generation", pa.list_(_TEXT)),
        ("sections", _TEXT),
        ("sentences", _TEXT),
        ("changes", _TEXT),
        ("redactions", _TEXT),
        ("rewritten", pa.list_(_TEXT)),
        ("labels", _TEXT),
        ("said", _TEXT),
        ("boxes", _TEXT),
        ("text_regions", _TEXT),
        ("text_fraction", pa.float64()),
        ("text_hash", _TEXT),
        ("pixel_hash", _TEXT),
        ("pixel_digest", _TEXT),
        ("report_digest", _TEXT),
        ("shape", pa.list_(pa.int32())),
        ("dtype", _TEXT),
        ("source_shape", pa.list_(pa.int32())),
        ("spacing_mm", pa.list_(pa.float64())),
        ("spacing_frame", _TEXT),
        ("affine_ras", pa.list_(pa.float64())),
        ("inverted", pa.bool_()),
        ("geometry", _TEXT),
        ("notes", pa.list_(_TEXT)),
        ("payload", _TEXT),
        ("shard", _TEXT),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("crc32", pa.int64()),
        ("parts_offset", pa.int64()),
        ("parts_size", pa.int64()),
        ("parts_crc32", pa.int64()),
        ("part_voxels", _TEXT),
    ]
)
"""Columns of ``index.parquet``; those of ``_JSON_FIELDS`` hold JSON."""

_JSON_FIELDS: dict[str, type | None] = {
    "sections": Section,
    "sentences": Sentence,
    "boxes": Box,
    "changes": Change,
    "text_regions": TextRegion,
    "labels": None,
    "part_voxels": None,
    "redactions": None,
    "said": None,
}
AGAIN = "Prepare the store again."
"""What to do when a file of a store is damaged."""


def record_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of the index."""
    row = dataclasses.asdict(record)
    for name in _JSON_FIELDS:
        row[name] = json.dumps(row[name], sort_keys=True, ensure_ascii=False)
    return row


def row_record(row: dict[str, Any]) -> Record:
    """Return the record of an index row.

    Raises:
        StoreError: a column does not hold what the schema says.
    """
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, (list, np.ndarray)) else value for name, value in row.items()
    }
    try:
        for name, kind in _JSON_FIELDS.items():
            parsed: Any = json.loads(values[name])
            if kind is not None:
                parsed = tuple(kind(**{k: _tupled(v) for k, v in item.items()}) for item in parsed)
            values[name] = parsed
        return Record(**values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise StoreError("a row of the index cannot be read as a record.", hint=AGAIN) from error


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def index_bytes(records: Iterable[Record]) -> bytes:
    """Return ``index.parquet``: one row a record, ordered by ``record_id``."""
    rows = [record_row(record) for record in sorted(records, key=lambda record: record.record_id)]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), stream, compression="zstd")
    return stream.getvalue()


def finding_states(column: pa.ChunkedArray) -> pa.Table:
    """Return ``labels`` or ``said`` of many rows as one column of states a finding; null is unknown.

    Examples:
        >>> rows = pa.chunked_array([['{"edema": "absent"}', "{}", '{"mass": "uncertain"}']])
        >>> finding_states(rows).to_pydict()
        {'edema': ['absent', None, None], 'mass': [None, None, 'uncertain']}

    Raises:
        StoreError: a cell is not an object of strings.
    """
    cells = column.combine_chunks().dictionary_encode()  # films of one study share their labels
    lines = "\n".join(cells.dictionary.to_pylist()).encode()
    try:
        # Arrow reads ten times as many cells a second as json.loads does.
        options = pj.ReadOptions(block_size=max(len(lines) + 1, 1))
        found = pj.read_json(io.BytesIO(lines), read_options=options) if lines else pa.table({})
    except pa.ArrowException as error:
        raise StoreError("the labels of the index are not JSON.", hint=AGAIN) from error
    if any(kind != pa.string() for kind in found.schema.types):
        raise StoreError("the labels of the index are not states by finding.", hint=AGAIN)
    return found.select(sorted(found.column_names)).take(cells.indices) if found.num_columns else found
