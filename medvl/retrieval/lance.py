"""A LanceDB index of cases: exact where it can be, a graph above that, and real erasure."""

from __future__ import annotations

import functools
import itertools
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int, Shaped
from lancedb.index import HnswSq

from medvl.errors import IndexFileError, UsageError, nearest
from medvl.retrieval.vectors import SAME_SCORE, Against, Hit, Neighbours, index_schema, quoted, top

__all__ = ["EXACT_ROWS", "LanceIndex"]

EXACT_ROWS = 20_000
"""Up to this many candidate rows are compared one by one; above it the graph index answers."""

_CACHED_FILTERS = 8
_TABLE = "records"
_VECTORS = ("vector", "text_vector")
_HIT_COLUMNS = (
    "record_id", "study_id", "patient_id", "modality", "view", "laterality", "split", "findings", "report",
)  # fmt: skip


@dataclass(frozen=True)
class _Candidates:
    """The rows that a filter leaves, in memory for exact search, in the order of their ids."""

    record_ids: Shaped[np.ndarray, " rows"]
    row_ids: Int[np.ndarray, " rows"]
    vectors: Float32[np.ndarray, "rows dim"]


class LanceIndex:
    """An embedded LanceDB table (a folder, or an ``s3://`` address) behind the protocol.

    Search is exact when the table, or what a filter leaves of it, has at most ``EXACT_ROWS`` rows;
    above that an HNSW graph with scalar quantisation answers and the distances are computed again
    from the full vectors. Equal scores are ordered by record id.

    Args:
        uri: folder or address of the index.

    Raises:
        IndexFileError: there is no index of this format at ``uri``.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        if "://" not in self.uri and not Path(self.uri).is_dir():
            raise IndexFileError(
                "there is no index at this path.", hint="Make one: medvl index BUNDLE STORE INDEX"
            )
        self._database = lancedb.connect(self.uri)
        if _TABLE not in self._database.list_tables().tables:
            raise IndexFileError(
                f"this folder holds no table '{_TABLE}', so it is no medvl index.",
                hint="Make one: medvl index BUNDLE STORE INDEX",
            )
        self._table = self._database.open_table(_TABLE)
        self._version = -1
        self._cached: dict[tuple[str | None, str], _Candidates | None] = {}

    @classmethod
    def create(cls, uri: str | Path, *, dim: int, about: dict[str, Any]) -> LanceIndex:
        """Make an empty index.

        Args:
            uri: folder or address; the folder is made.
            dim: length of a vector.
            about: JSON values kept with the index: model digest, bundle path, versions.

        Raises:
            UsageError: ``uri`` is a file or a folder that holds something else.
        """
        if "://" not in str(uri):
            folder = Path(uri)
            foreign = folder.is_file() or (
                folder.is_dir() and any(path.suffix != ".lance" for path in folder.iterdir())
            )
            if foreign:
                raise UsageError(
                    "the index's path is a file, or a folder that holds other files.",
                    hint="Choose an empty or a new folder.",
                )
            folder.mkdir(parents=True, exist_ok=True)
        schema = index_schema(dim).with_metadata({"medvl": json.dumps(about, sort_keys=True)})
        lancedb.connect(str(uri)).create_table(_TABLE, schema=schema)
        return cls(uri)

    @classmethod
    def exists(cls, uri: str | Path) -> bool:
        """Say whether there is an index at ``uri``."""
        if "://" not in str(uri) and not Path(uri).is_dir():
            return False
        return _TABLE in lancedb.connect(str(uri)).list_tables().tables

    @property
    def about(self) -> dict[str, Any]:
        """What :meth:`create` was told."""
        return json.loads((self._table.schema.metadata or {}).get(b"medvl", b"{}"))

    @functools.cached_property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._table.schema.field("vector").type.list_size)

    def count(self, where: str | None = None) -> int:
        """Return the number of rows, or of those that ``where`` keeps."""
        return self._asked(where, self._table.count_rows, where)

    def upsert(self, rows: pa.Table) -> None:
        """Add rows; a row whose ``record_id`` is there already is replaced, never doubled."""
        self._table.merge_insert("record_id").when_matched_update_all().when_not_matched_insert_all().execute(
            rows
        )

    def build_graph(self) -> bool:
        """Build the graph index when the table is too large for exact search; say whether it was built."""
        if self.count() <= EXACT_ROWS:
            return False
        for name in _VECTORS:
            config = HnswSq(distance_type="cosine", num_partitions=1, m=16, ef_construction=100)
            self._table.create_index(name, config=config, replace=True)
        return True

    def search(
        self,
        query: Float32[np.ndarray, " dim"],
        *,
        k: int = 10,
        where: str | None = None,
        exclude_patients: Sequence[str] = (),
        against: Against = "image",
    ) -> list[Hit]:
        """Return the ``k`` cases of highest cosine with ``query``, best first.

        The arguments and errors are those of :meth:`neighbours`.
        """
        found = self.neighbours(query, k=k, where=where, exclude_patients=exclude_patients, against=against)
        if not len(found.row_ids):
            return []
        columns = ["_rowid", *_HIT_COLUMNS, "thumbnail"]
        rows = self._table.take_row_ids(found.row_ids.tolist()).select(columns).to_arrow().to_pylist()
        by_id = {row.pop("_rowid"): row for row in rows}
        return [
            _hit(rank, float(score), by_id[int(row_id)])
            for rank, (row_id, score) in enumerate(zip(found.row_ids, found.scores, strict=True), start=1)
        ]

    def neighbours(
        self,
        query: Float32[np.ndarray, " dim"],
        *,
        k: int = 10,
        where: str | None = None,
        exclude_patients: Sequence[str] = (),
        against: Against = "image",
    ) -> Neighbours:
        """Return the ids and cosines of the ``k`` rows nearest to ``query``.

        Args:
            query: a vector of the index's length; it is normalised here.
            k: hits at most.
            where: an SQL filter over the columns: ``"view = 'PA' AND split = 'test'"``.
            exclude_patients: patients whose records are left out, such as the query's own.
            against: compare with the cases' image or text vectors.

        Raises:
            UsageError: ``k`` < 1, a query of another length or not finite, or a filter that cannot be read.
        """
        unit = self._unit(query)
        if k < 1:
            raise UsageError(f"k is {k}; allowed are whole numbers from 1.")
        column = _VECTORS[0] if against == "image" else _VECTORS[1]
        clause = _and(where, exclude_patients)
        candidates = self._candidates(clause, column)
        if candidates is None:
            return self._graph(unit, k, clause, column)
        return _exact(candidates, unit, k)

    def measure_recall(self, queries: Float32[np.ndarray, "n dim"], *, k: int = 10) -> float:
        """Return the share of the exact top ``k`` that the search finds, mean over ``queries``."""
        everything, found = self._read(None, "vector"), 0
        for query in queries:
            exact = _exact(everything, self._unit(query), k)
            found += len(np.intersect1d(exact.record_ids, self.neighbours(query, k=k).record_ids))
        return found / (k * len(queries))

    def sample(self, n: int) -> Float32[np.ndarray, "n dim"]:
        """Return the image vectors of up to ``n`` rows, evenly spread over the table."""
        total = self.count()
        picked = np.linspace(0, total - 1, num=min(n, total)).astype(int)
        rows = self._table.take_offsets(picked.tolist()).select(["vector"]).to_arrow()
        return _matrix(rows["vector"], self.dim)

    def vector_of(self, record_id: str) -> Float32[np.ndarray, " dim"]:
        """Return the image vector of one record."""
        rows = self._table.search().where(f"record_id = {quoted(record_id)}").select(["vector"]).to_arrow()
        if rows.num_rows == 0:
            raise UsageError(f"the index has no record '{record_id}'.")
        return _matrix(rows["vector"], self.dim)[0]

    def erase(self, where: str) -> int:
        """Erase rows for good and return how many: their bytes leave every file of the index.

        A LanceDB delete only marks rows, and old versions keep them; so the surviving rows are
        written anew, every older version is removed, and a graph index is rebuilt without them.
        """
        gone = self.count(where)
        if gone == 0:
            return 0
        had_graph = bool(self._table.list_indices())
        self._table.delete(where)
        kept = self._table.to_arrow()
        self._table = self._database.create_table(
            _TABLE, data=kept, schema=self._table.schema, mode="overwrite"
        )
        self._cached.clear()
        if had_graph:
            self.build_graph()
        with warnings.catch_warnings():
            # Removing every older version is the purpose here, so its warning says nothing new.
            warnings.filterwarnings("ignore", message="optimize.cleanup_older_than=0. removes every version")
            self._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        self._table = self._database.open_table(_TABLE)
        return gone

    # ---------------------------------------------------------------- how a search is answered

    def _unit(self, query: Float32[np.ndarray, " dim"]) -> Float32[np.ndarray, " dim"]:
        if query.shape != (self.dim,) or not np.isfinite(query).all():
            raise UsageError(
                f"the query has shape {query.shape}; the index holds finite vectors of length {self.dim}.",
                hint="Embed the query with the bundle that made the index.",
            )
        norm = float(np.linalg.norm(query))
        if norm == 0:
            raise UsageError("the query is the zero vector; it has no direction to search in.")
        return (query / norm).astype(np.float32)

    def _candidates(self, clause: str | None, column: str) -> _Candidates | None:
        """Return the rows to compare one by one, or None where there are too many of them."""
        version = self._table.version
        if version != self._version or len(self._cached) >= _CACHED_FILTERS:
            self._cached.clear()
            self._version = version
        key = (clause, column)
        if key not in self._cached:
            few = self.count(clause) <= EXACT_ROWS
            self._cached[key] = self._read(clause, column) if few else None
        return self._cached[key]

    def _read(self, clause: str | None, column: str) -> _Candidates:
        scan = self._table.search().with_row_id(with_row_id=True).select(["_rowid", "record_id", column])
        if clause:
            scan = scan.where(clause)
        rows = self._asked(clause, scan.limit(self.count()).to_arrow)
        record_ids = rows["record_id"].to_numpy(zero_copy_only=False).astype(str)
        order = np.argsort(record_ids)  # so that equal scores come in the order of the ids
        row_ids = rows["_rowid"].to_numpy().astype(np.int64)
        return _Candidates(record_ids[order], row_ids[order], _matrix(rows[column], self.dim)[order])

    def _graph(
        self, unit: Float32[np.ndarray, " dim"], k: int, clause: str | None, column: str
    ) -> Neighbours:
        query: Any = self._table.search(unit, vector_column_name=column)
        query = query.distance_type("cosine").ef(max(128, 2 * k))
        if clause:
            query = query.where(clause, prefilter=True)
        query = (
            query.refine_factor(2)
            .limit(k)
            .with_row_id(with_row_id=True)
            .select(["_rowid", "record_id", "_distance"])
        )
        found = self._asked(clause, query.to_arrow)
        ids = found["record_id"].to_numpy(zero_copy_only=False).astype(str)
        scores = 1.0 - found["_distance"].to_numpy()
        order = np.lexsort((ids, -np.round(scores / SAME_SCORE)))
        return Neighbours(ids[order], found["_rowid"].to_numpy().astype(np.int64)[order], scores[order])

    def _asked(self, where: str | None, ask: Any, *arguments: Any) -> Any:
        """Run a query; a filter that the engine cannot read becomes a UsageError."""
        try:
            return ask(*arguments)
        except (ValueError, RuntimeError) as error:
            if where is None:
                raise IndexFileError(f"the index cannot be read: {_first_line(error)}") from error
            columns = [name for name in self._table.schema.names if name not in _VECTORS]
            raise UsageError(
                f"the filter {where!r} cannot be read: {_first_line(error).rstrip('.')}.",
                hint=f"Columns: {', '.join(columns)}. {_nearest_column(where, columns)}",
            ) from error


def _exact(candidates: _Candidates, unit: Float32[np.ndarray, " dim"], k: int) -> Neighbours:
    scores = candidates.vectors @ unit
    best = top(scores, k)
    return Neighbours(candidates.record_ids[best], candidates.row_ids[best], scores[best])


def _hit(rank: int, score: float, row: dict[str, Any]) -> Hit:
    row["findings"] = tuple(row["findings"] or ())
    row["thumbnail"] = row["thumbnail"] or b""
    return Hit(rank=rank, score=score, **row)


_KEYWORDS = frozenset(
    {"and", "or", "not", "in", "is", "null", "like", "between", "true", "false", "array_has"}
)


def _nearest_column(where: str, columns: Sequence[str]) -> str:
    words = re.findall(r"[A-Za-z_]+", re.sub(r"'[^']*'", "", where))
    unknown = [word for word in words if word not in columns and word.lower() not in _KEYWORDS]
    return (
        nearest(unknown[0], columns).partition(". ")[2] if unknown else "Write text values in single quotes."
    )


def _first_line(error: BaseException) -> str:
    line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return line.partition(" Did you mean")[0]  # the hint says it for the columns that may be named


def _and(where: str | None, exclude_patients: Sequence[str]) -> str | None:
    clauses = [f"({_whole(where)})"] if where else []
    if exclude_patients:
        clauses.append(f"patient_id NOT IN ({', '.join(map(quoted, exclude_patients))})")
    return " AND ".join(clauses) or None


def _whole(where: str) -> str:
    """Return a filter that stays inside the brackets put around it; else it could void the exclusion."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "", where)
    depth = list(itertools.accumulate({"(": 1, ")": -1}.get(letter, 0) for letter in bare)) or [0]
    if min(depth) < 0 or depth[-1] != 0 or re.search(r"--|/\*|[;'\"`]", bare):
        raise UsageError(
            f"the filter {where!r} cannot be read: brackets and quotes must close, "
            "comments and ';' may not be in it.",
            hint="Write for example \"view = 'PA' AND split = 'test'\".",
        )
    return where


def _matrix(column: pa.ChunkedArray, dim: int) -> Float32[np.ndarray, "rows dim"]:
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.zeros(0, np.float32), *parts]).reshape(-1, dim)
