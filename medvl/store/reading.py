"""A finished store, opened for reading: its manifest, its index, its pixels, and filters over them."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int16, Shaped, UInt8

from medvl.errors import StoreError, UsageError
from medvl.records import Record
from medvl.specs import PixelSpec, ReportSpec, VolumeSpec
from medvl.store.schema import AGAIN, FORMAT, INDEX_SCHEMA, finding_states, row_record
from medvl.store.shards import read_pixels, read_volume

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Store", "index_digest"]


class Store:
    """A record store opened for reading; cheap to pickle, safe to share between processes.

    Args:
        path: the folder that ``prepare`` wrote.

    Raises:
        StoreError: the folder is not a complete store of this format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._shards = self.path / "shards"
        manifest = self.path / "store.json"
        if not manifest.is_file() or not (self.path / "index.parquet").is_file():
            raise StoreError(
                "this folder is not a finished record store: store.json or index.parquet is missing.",
                hint="Run 'medvl <modality> prepare' again with the same arguments; it resumes.",
            )
        self.manifest: dict[str, Any] = _read_manifest(manifest)

    def __len__(self) -> int:
        """Return the number of records."""
        return self.table.num_rows

    @property
    def pixel_spec(self) -> PixelSpec | VolumeSpec:
        """The spec that made the stored arrays."""
        values = self._spec("pixels")
        return (VolumeSpec if values.get("kind") == "volume" else PixelSpec).from_json(values)

    @property
    def report_spec(self) -> ReportSpec:
        """The spec that made the text views."""
        return ReportSpec.from_json(self._spec("report"))

    def _spec(self, name: str) -> dict[str, Any]:
        try:
            return dict(self.manifest["specs"][name])
        except (KeyError, TypeError) as error:
            raise StoreError(f"store.json holds no {name} spec.", hint=AGAIN) from error

    @functools.cached_property
    def table(self) -> pa.Table:
        """The whole index as an Arrow table.

        Raises:
            StoreError: the index is damaged, or is not the one that the manifest describes.
        """
        return self.columns(*INDEX_SCHEMA.names)

    def columns(self, *names: str) -> pa.Table:
        """Return some columns of the index; the others are not decoded.

        Raises:
            StoreError: as for :attr:`table`.
        """
        if "table" in self.__dict__:
            return self.table.select(list(names))
        data = (self.path / "index.parquet").read_bytes()
        promised = self.manifest.get("index", {})
        found = index_digest(data)
        # While records are appended the manifest names two indexes: the one before and the one after.
        if promised.get("blake2b") is not None and found not in (promised["blake2b"], promised.get("next")):
            raise StoreError(
                f"index.parquet is damaged: its checksum is {found} instead of {promised['blake2b']}.",
                hint=AGAIN,
            )
        try:
            index = pq.ParquetFile(io.BytesIO(data))
            missing = [name for name in INDEX_SCHEMA.names if name not in index.schema_arrow.names]
            if missing:
                raise StoreError(f"the index lacks the columns {missing}.", hint=AGAIN)
            return index.read(columns=list(names)).select(list(names))
        except (pa.ArrowException, OSError) as error:
            raise StoreError("index.parquet is damaged: it is not a Parquet file.", hint=AGAIN) from error

    @functools.cached_property
    def records(self) -> Sequence[Record]:
        """All records in the order of the index, which is that of ``record_id``."""
        return tuple(row_record(row) for row in self.table.to_pylist())

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """The index as a data frame, with a column ``label_<finding>`` and ``said_<finding>`` for each state.

        Columns of ``labels``, ``said``, ``boxes``, … hold JSON as in the index.
        """
        frame = self.table.to_pandas()
        for prefix, name in (("label", "labels"), ("said", "said")):
            states = finding_states(self.table[name]).to_pandas()
            states.columns = [f"{prefix}_{finding}" for finding in states.columns]
            frame = frame.join(states)
        return frame

    def where(self, query: str) -> list[Record]:
        """Return the records for which a pandas expression over :attr:`frame` is true.

        Names that are no Python names go between backticks.

        Args:
            query: for example ``"split == 'test' and view == 'PA'"`` or ``"said_edema == 'present'"``.

        Raises:
            UsageError: the expression is not one, or names a column that is not there.
        """
        rows = np.flatnonzero(self.matches(query))
        return [row_record(row) for row in self.table.take(pa.array(rows)).to_pylist()]

    def matches(self, query: str) -> Bool[np.ndarray, " records"]:
        """Return for each record whether a pandas expression over :attr:`frame` is true; see :meth:`where`.

        Raises:
            UsageError: the expression is not one, or names a column that is not there.
        """
        hint = f"Columns: {', '.join(self.frame.columns)}."
        if "@" in query or "__" in query:  # names of the caller's own variables and of Python's internals
            raise UsageError(f"the filter {query!r} holds '@' or '__', which are not allowed.", hint=hint)
        try:
            found = self.frame.eval(query, engine="python")
        except (NameError, SyntaxError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"the filter {query!r} cannot be carried out: {error}.", hint=hint) from error
        if getattr(found, "shape", None) != (len(self.frame),) or found.dtype not in ("bool", "boolean"):
            raise UsageError(f"the filter {query!r} does not say yes or no to each record.", hint=hint)
        return found.to_numpy(bool, na_value=False)

    def pixels(
        self, record: Record, *, room: UInt8[np.ndarray, " bytes"] | None = None
    ) -> Shaped[np.ndarray, "..."]:
        """Read one stored array by its offset.

        Args:
            record: of this store.
            room: memory to read into, for those who are done with an array before they read the next one. An
                array that does not fit with some 128 bytes of header takes new memory, as all do if None.

        Raises:
            StoreError: the shard is missing, the payload is cut short, or its checksum differs.
        """
        return read_pixels(self._shards, record, room=room)

    def patch(self, record: Record, start: Sequence[int], stop: Sequence[int]) -> Int16[np.ndarray, "x y z"]:
        """Read a part of a stored volume; only the chunks that it touches are read and decompressed.

        Args:
            record: of a volume of this store.
            start: first voxel along each axis.
            stop: last voxel along each axis, exclusive.

        Raises:
            UsageError: the record is no volume, or the patch is empty or leaves it.
            StoreError: the shard is missing, or a chunk of the patch is damaged.
        """
        return read_volume(self._shards, record, start=start, stop=stop)

    def parts(
        self, record: Record, start: Sequence[int] | None = None, stop: Sequence[int] | None = None
    ) -> UInt8[np.ndarray, "x y z"] | None:
        """Read the numbers of the parts, of a patch or of the whole volume; None where they are not known.

        Raises:
            UsageError: the patch is empty or leaves the volume.
            StoreError: as for :meth:`patch`.
        """
        if not record.parts_size:
            return None
        return read_volume(self._shards, record, start=start, stop=stop, parts=True)

    def __iter__(self) -> Iterator[tuple[Record, Shaped[np.ndarray, "..."]]]:
        """Iterate over records and their arrays."""
        for record in self.records:
            yield record, self.pixels(record)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path alone; workers read the index again."""
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the store again."""
        self.__init__(state["path"])  # type: ignore[misc]


def index_digest(data: bytes) -> str:
    """Return the checksum of ``index.parquet`` that the manifest names."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreError("store.json is damaged: it is not JSON.", hint=AGAIN) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise StoreError(f"the store has format {got!r}; this version reads {FORMAT!r}.", hint=AGAIN)
    return manifest
