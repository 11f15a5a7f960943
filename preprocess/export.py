"""A record store for other tools: Parquet that Hugging Face ``datasets`` reads, or pictures and a table."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped
from PIL import Image as Pillow

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.preprocess.sources.cells import safe_cell
from medvl.progress import Progress
from medvl.records import Record
from medvl.splits import SPLITS
from medvl.store import Store, decode, new_folder, read_payload

__all__ = ["ExportSummary", "export_datasets", "export_folder"]

Pixels: TypeAlias = Literal["image", "volume"]

_NAMES = {"train": "train", "val": "validation", "test": "test"}
"""Split to the name that Hugging Face gives it."""
_ROW_GROUP = 100

_STATES = pa.list_(pa.struct([("finding", pa.string()), ("state", pa.string())]))
_SIDES = ("x0", "y0", "x1", "y1", "z0", "z1")
_BOXES = pa.list_(pa.struct([("label", pa.string()), *((side, pa.float64()) for side in _SIDES)]))
_PARTS = pa.list_(pa.struct([("part", pa.string()), ("voxels", pa.int64())]))
_COLUMNS: dict[str, pa.DataType] = {
    "record_id": pa.string(),
    "study_id": pa.string(),
    "patient_id": pa.string(),
    "modality": pa.string(),
    "view": pa.string(),
    "laterality": pa.string(),
    "report": pa.string(),
    "text": pa.string(),
    "retrieval": pa.list_(pa.string()),
    "generation": pa.list_(pa.string()),
    "labels": _STATES,
    "said": _STATES,
    "boxes": _BOXES,
    "spacing_mm": pa.list_(pa.float64()),
}
_VOLUME_COLUMNS: dict[str, pa.DataType] = {
    "volume": pa.binary(),
    "parts": pa.binary(),
    "part_voxels": _PARTS,
    "affine_ras": pa.list_(pa.float64()),
}
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes:
        out: the folder.
        kind: ``"datasets"`` or ``"folder"``.
        records: that it holds.
        splits: name of the split there to number of records.
        files: that were written.
        size: bytes of all of them.
    """

    out: Path
    kind: Literal["datasets", "folder"]
    records: int
    splits: dict[str, int]
    files: int
    size: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return dataclasses.asdict(self) | {"out": str(self.out), "notice": NOTICE}

    def lines(self) -> list[str]:
        """Return the summary for people."""
        counts = ", ".join(f"{count} {name}" for name, count in self.splits.items())
        call = "datasets.load_dataset" if self.kind == "datasets" else "pandas.read_csv, or load_dataset"
        return [
            f"{self.records} records ({counts}) in {self.files} files, {self.size / 2**20:.1f} MiB",
            f"read it with {call}",
            NOTICE,
        ]


def export_datasets(
    store: Store,
    out: str | Path,
    *,
    shard_rows: int = 2000,
    progress: Progress | None = None,
) -> ExportSummary:
    """Write Parquet files by split, with the features that ``datasets.load_dataset(out)`` decodes.

    8-bit pictures become an ``Image`` column: the source's own JPEG or PNG where the store has it, a PNG
    otherwise. Anything else becomes a column ``volume`` of ``.npy`` bytes, with ``parts`` (the number of each
    voxel's part, null where not known), ``part_voxels`` and ``affine_ras`` (stored voxel index to RAS+ mm,
    row by row). Labels are lists of finding and state. The ids are the store's keyed hashes; no column names
    a patient.

    Args:
        store: the store.
        out: a new folder.
        shard_rows: most records in a file.
        progress: called with records written, records in all, and the step.

    Raises:
        UsageError: ``out`` is not empty.
        StoreError: a payload is damaged.
    """
    out = Path(out)
    pixels: Pixels = "image" if all(_is_picture(record) for record in store.records) else "volume"
    schema = _schema(pixels)
    done = 0
    with new_folder(out) as draft:
        (draft / "data").mkdir()
        for name, records in _by_split(store):
            count = -(-len(records) // shard_rows)
            for number in range(count):
                some = records[number * shard_rows : (number + 1) * shard_rows]
                path = draft / "data" / f"{name}-{number:05d}-of-{count:05d}.parquet"
                with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                    for first in range(0, len(some), _ROW_GROUP):
                        rows = [_row(store, record, pixels) for record in some[first : first + _ROW_GROUP]]
                        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                        done += len(rows)
                        if progress is not None:
                            progress(done, len(store), "exporting")
        (draft / "README.md").write_text(_card(store), "utf-8")
    return _summary(store, out, "datasets")


def export_folder(store: Store, out: str | Path, *, progress: Progress | None = None) -> ExportSummary:
    """Write one folder a split with the pictures and a ``metadata.csv``, one row a picture.

    ``datasets`` reads it as an image folder, a spreadsheet opens the table: a cell that a spreadsheet would
    run as a formula gets an apostrophe before it.

    Args:
        store: a store of 8-bit pictures.
        out: a new folder.
        progress: called with records written, records in all, and the step.

    Raises:
        UsageError: ``out`` is not empty, or a record is not an 8-bit picture.
        StoreError: a payload is damaged.
    """
    out = Path(out)
    other = [record for record in store.records if not _is_picture(record)]
    if other:
        raise UsageError(
            f"{len(other)} records are no 8-bit pictures, the first is {other[0].dtype} {other[0].shape}.",
            hint="Export to Hugging Face datasets instead.",
        )
    findings = sorted({finding for record in store.records for finding in (*record.labels, *record.said)})
    done = 0
    with new_folder(out) as draft:
        (draft / "README.md").write_text(f"{NOTICE}\n", "utf-8")
        for name, records in _by_split(store):
            (draft / name / "images").mkdir(parents=True)
            with (draft / name / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(_folder_header(findings))
                for record in records:
                    payload, suffix = _picture(store, record)
                    file_name = f"images/{record.record_id}.{suffix}"
                    (draft / name / file_name).write_bytes(payload)
                    writer.writerow(_folder_row(record, file_name, findings))
                    done += 1
                    if progress is not None:
                        progress(done, len(store), "exporting")
    return _summary(store, out, "folder")


def _is_picture(record: Record) -> bool:
    return len(record.shape) == 2 and record.dtype == "uint8"


def _by_split(store: Store) -> Iterator[tuple[str, list[Record]]]:
    for split in SPLITS:
        records = [record for record in store.records if record.split == split]
        if records:
            yield _NAMES[split], records


def _schema(pixels: Pixels) -> pa.Schema:
    columns = ({"image": _PICTURE} if pixels == "image" else _VOLUME_COLUMNS) | _COLUMNS
    features = {name: _feature(kind) for name, kind in columns.items()}
    if pixels == "image":
        features["image"] = {"_type": "Image"}
    about = json.dumps({"info": {"features": features}})
    return pa.schema(list(columns.items()), metadata={"huggingface": about})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Return how ``datasets`` writes an Arrow type."""
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def _row(store: Store, record: Record, pixels: Pixels) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in _COLUMNS if name != "text"}
    row["text"] = " ".join(record.retrieval)
    for name in ("labels", "said"):
        states: Mapping[str, str] = row[name]
        row[name] = [{"finding": finding, "state": state} for finding, state in sorted(states.items())]
    row["boxes"] = [dataclasses.asdict(box) for box in record.boxes]
    if pixels == "image":
        payload, suffix = _picture(store, record)
        row["image"] = {"bytes": payload, "path": f"{record.record_id}.{suffix}"}
    else:
        parts = store.parts(record)
        row["volume"] = _npy(store.pixels(record))
        row["parts"] = None if parts is None else _npy(parts)
        row["part_voxels"] = [{"part": part, "voxels": n} for part, n in record.part_voxels.items()]
        row["affine_ras"] = record.affine_ras
    return row


def _npy(array: Shaped[np.ndarray, "..."]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _picture(store: Store, record: Record) -> tuple[bytes, str]:
    """Return a picture as a file: the codestream of its source, or a PNG."""
    payload = read_payload(store.path / "shards", record)
    if record.payload in ("jpg", "png"):
        return payload, record.payload
    stream = io.BytesIO()
    array = decode(payload, record.payload, shape=record.shape, dtype=record.dtype)
    Pillow.fromarray(array).save(stream, format="PNG")
    return stream.getvalue(), "png"


def _folder_header(findings: Sequence[str]) -> list[str]:
    ids = ["file_name", "record_id", "study_id", "patient_id", "view", "laterality", "text", "report"]
    return [
        safe_cell(name)
        for name in (*ids, *(f"label_{f}" for f in findings), *(f"said_{f}" for f in findings))
    ]


def _folder_row(record: Record, file_name: str, findings: Sequence[str]) -> list[str]:
    cells = [file_name, record.record_id, record.study_id, record.patient_id, record.view, record.laterality]
    cells += [" ".join(record.retrieval), record.report]
    cells += [states.get(finding) for states in (record.labels, record.said) for finding in findings]
    return [safe_cell(cell or "") for cell in cells]


def _card(store: Store) -> str:
    files = [f"  - split: {name}\n    path: data/{name}-*" for name, _ in _by_split(store)]
    digests = "".join(f"- {name} digest: `{value}`\n" for name, value in _digests(store).items())
    return (
        "---\nconfigs:\n- config_name: default\n  data_files:\n" + "\n".join(files) + "\n---\n"
        f"# {store.manifest.get('modality', 'image')} images with reports\n\n{NOTICE}\n\n"
        f"Exported from a record store of medvl.\n\n{digests}"
    )


def _digests(store: Store) -> dict[str, str]:
    return {"pixel spec": store.pixel_spec.digest, "report spec": store.report_spec.digest}


def _summary(store: Store, out: Path, kind: Literal["datasets", "folder"]) -> ExportSummary:
    files = [path for path in out.rglob("*") if path.is_file()]
    return ExportSummary(
        out=out,
        kind=kind,
        records=len(store),
        splits={name: len(records) for name, records in _by_split(store)},
        files=len(files),
        size=sum(path.stat().st_size for path in files),
    )
