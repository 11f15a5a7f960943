"""Exports: what Hugging Face datasets, pandas and a spreadsheet find in them."""

from __future__ import annotations

import csv
import dataclasses
import io
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from test_curation import picture, record, write_store

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.preprocess.export import export_datasets, export_folder
from medvl.records import Box
from medvl.store import Store, index_bytes, index_digest, pixel_hash, write_atomic, write_shard

CHANGES = {
    0: {"boxes": (Box("nodule", 1.0, 2.0, 3.0, 4.5),), "spacing_mm": (0.5, 0.25), "split": "train"},
    1: {"report": "=cmd|' /C calc'!A0", "retrieval": ("@sum(1)", "Clear."), "split": "test"},
    2: {"said": {"edema": "unchanged"}, "labels": {}, "split": "val"},
    3: {"split": "train"},
}


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", range(7), changes=CHANGES)


def split_sizes(store):
    names = {"train": "train", "val": "validation", "test": "test"}
    found: dict[str, int] = {}
    for each in store.records:
        found[names[each.split]] = found.get(names[each.split], 0) + 1
    return found


@pytest.mark.parametrize("how", ["folder", "parquet"])
def test_datasets_loads_the_export(store, tmp_path, how):
    datasets = pytest.importorskip("datasets")
    summary = export_datasets(store, tmp_path / "out", shard_rows=2)
    if how == "folder":
        loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    else:
        files = {
            name: [str(p) for p in sorted((tmp_path / "out/data").glob(f"{name}-*"))]
            for name in split_sizes(store)
        }
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == split_sizes(store) == summary.splits
    rows = {row["record_id"]: row for part in loaded.values() for row in part}
    for number in range(7):
        expected, row = record(number, **CHANGES.get(number, {})), rows[record(number).record_id]
        assert np.array_equal(np.asarray(row["image"]), picture(number))
        assert row["text"] == " ".join(expected.retrieval) and row["report"] == expected.report
        assert row["retrieval"] == list(expected.retrieval)
        assert {each["finding"]: each["state"] for each in row["labels"]} == expected.labels
        assert {each["finding"]: each["state"] for each in row["said"]} == expected.said
        assert row["boxes"] == [dataclasses.asdict(box) for box in expected.boxes]
        assert row["spacing_mm"] == (list(expected.spacing_mm) if expected.spacing_mm else None)
    assert isinstance(loaded["train"].features["image"], datasets.Image)
    forbidden = {"path", "token", "name", "birth", "accession", "shard", "offset"}
    assert not forbidden & set(loaded["train"].column_names)


def test_files_are_split_and_say_what_they_are_for(store, tmp_path):
    seen = []
    summary = export_datasets(
        store, tmp_path / "out", shard_rows=2, progress=lambda *args: seen.append(args[:2])
    )
    train = sum(r.split == "train" for r in store.records)
    assert len(list((tmp_path / "out/data").glob(f"train-*-of-{-(-train // 2):05d}.parquet"))) == -(
        -train // 2
    )
    assert seen[-1] == (7, 7)
    assert NOTICE in (tmp_path / "out/README.md").read_text() and NOTICE in summary.lines()
    assert summary.to_json()["records"] == 7 and f"in {summary.files} files" in summary.lines()[0]


def test_a_volume_is_exported_as_an_array_file(tmp_path):
    store = write_store(tmp_path / "store", [0])
    volume = np.arange(2 * 5 * 6 * 7, dtype=np.int16).reshape(2, 5, 6, 7)
    given = dataclasses.replace(
        record(0), shape=volume.shape, dtype="int16", pixel_hash=pixel_hash(volume), split="train"
    )
    index = index_bytes(write_shard(store.path / "shards/000000.tar", [(given, volume)]))
    write_atomic(store.path / "index.parquet", index)
    manifest = (
        (store.path / "store.json")
        .read_text()
        .replace(store.manifest["index"]["blake2b"], index_digest(index))
    )
    (store.path / "store.json").write_text(manifest)
    export_datasets(Store(store.path), tmp_path / "out")
    row = pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet").to_pylist()[0]
    found = np.load(io.BytesIO(row["volume"]))
    assert found.dtype == np.int16 and np.array_equal(found, volume) and "image" not in row
    with pytest.raises(
        UsageError, match=r"1 records are no 8-bit pictures, the first is int16 \(2, 5, 6, 7\)"
    ):
        export_folder(Store(store.path), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_folder_of_pictures_with_a_table(store, tmp_path):
    from PIL import Image as Pillow

    summary = export_folder(store, tmp_path / "out")
    assert summary.splits == split_sizes(store) and NOTICE in (tmp_path / "out/README.md").read_text()
    read = 0
    for name in summary.splits:
        frame = pd.read_csv(tmp_path / "out" / name / "metadata.csv", keep_default_na=False)
        for row in frame.to_dict("records"):
            with Pillow.open(tmp_path / "out" / name / row["file_name"]) as film:
                number = next(n for n in range(7) if record(n).record_id == row["record_id"])
                assert np.array_equal(np.asarray(film), picture(number))
            assert row["label_nodule"] == record(number, **CHANGES.get(number, {})).labels.get("nodule", "")
            read += 1
    assert read == 7


def test_no_cell_is_a_formula(store, tmp_path):
    export_folder(store, tmp_path / "out")
    cells = []
    for path in (tmp_path / "out").rglob("metadata.csv"):
        with path.open(newline="") as stream:
            cells += [cell for row in csv.reader(stream) for cell in row]
    assert "'=cmd|' /C calc'!A0" in cells and "'@sum(1) Clear." in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_an_export_never_writes_into_a_used_folder(store, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").touch()
    for export in (export_datasets, export_folder):
        with pytest.raises(UsageError, match="not empty"):
            export(store, tmp_path / "used")
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["thesis.txt"]


def test_a_failed_export_leaves_nothing(store, tmp_path):
    (store.path / "shards/000001.tar").unlink()
    from medvl.errors import StoreError

    with pytest.raises(StoreError, match=r"000001\.tar is missing"):
        export_datasets(store, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.draft").exists()
