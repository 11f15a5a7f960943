"""The record store: round trips, WebDataset readers, and every kind of damage."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import StoreError
from medvl.records import Box, Record, Section, Sentence
from medvl.specs import PixelSpec, ReportSpec
from medvl.store import (
    FORMAT,
    INDEX_SCHEMA,
    Store,
    index_bytes,
    pack,
    read_pixels,
    record_row,
    row_record,
    unpack,
    write_atomic,
    write_shard,
)


def record(number: int = 0, **changes) -> Record:
    values = {
        "record_id": f"{number:020x}",
        "study_id": "ab",
        "patient_id": "cd",
        "modality": "cxr",
        "split": "train",
        "source_kind": "dicom",
        "report": "FINDINGS: A 4.2 cm mass.",
        "retrieval": ("A 4.2 cm mass.",),
        "generation": ("A 4.2 cm mass.",),
        "text_hash": "t",
        "pixel_hash": "p",
        "pixel_digest": PixelSpec().digest,
        "report_digest": ReportSpec().digest,
        "shape": (3, 4),
        "dtype": "uint8",
        "source_shape": (6, 8),
        "spacing_mm": (0.2, 0.3),
        "spacing_frame": "patient",
        "sections": (Section("findings", 9, 24),),
        "sentences": (Sentence(10, 24, "findings", ("measure",)),),
        "labels": {"nodule": "present", "edema": "uncertain"},
        "boxes": (Box("nodule", 0.5, 1.0, 2.0, 3.0),),
        "notes": ("window width 0 taken as 1",),
    }
    return Record(**(values | changes))


def write_store(folder, samples):
    (folder / "shards").mkdir(parents=True)
    placed = write_shard(folder / "shards" / "000000.tar", samples)
    index = index_bytes(placed)
    write_atomic(folder / "index.parquet", index)
    manifest = {
        "format": FORMAT,
        "specs": {
            "pixels": PixelSpec().model_dump(mode="json"),
            "report": ReportSpec().model_dump(mode="json"),
        },
        "index": {"blake2b": hashlib.blake2b(index, digest_size=16).hexdigest()},
    }
    write_atomic(folder / "store.json", json.dumps(manifest).encode())
    return Store(folder)


def picture(number: int = 0):
    return np.random.default_rng(number).integers(0, 256, (3, 4), dtype=np.uint8)


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", [(record(k), picture(k)) for k in (2, 0, 1)])


def test_a_store_returns_what_was_written_ordered_by_id(store):
    assert [r.record_id for r in store.records] == [f"{k:020x}" for k in range(3)]
    assert len(store) == 3
    for number, (found, pixels) in enumerate(store):
        assert np.array_equal(pixels, picture(number))
        placed = {name: getattr(found, name) for name in ("shard", "offset", "size", "crc32")}
        assert found == dataclasses.replace(record(number), **placed)
    assert store.pixel_spec == PixelSpec() and store.report_spec == ReportSpec()


def test_a_pickled_store_opens_again(store):
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert again.records == store.records


# webdataset 1.0.2 leaves the shard open for the garbage collector to close.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_each_record_as_one_sample(store):
    import webdataset

    # A key ends at its first dot: three records must come back as three samples of three members.
    samples = list(webdataset.WebDataset(str(store.path / "shards" / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{k:020x}" for k in (2, 0, 1)]
    for sample, number in zip(samples, (2, 0, 1), strict=True):
        assert {name for name in sample if not name.startswith("__")} == {"npy.b2", "txt", "json"}
        assert np.array_equal(unpack(sample["npy.b2"]), picture(number))
        assert sample["txt"] == b"A 4.2 cm mass."
        assert json.loads(sample["json"])["labels"] == {"edema": "uncertain", "nodule": "present"}


def test_shard_bytes_depend_on_the_samples_alone(tmp_path):
    samples = [(record(k), picture(k)) for k in range(3)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "000000.tar", samples)
    assert (tmp_path / "a/000000.tar").read_bytes() == (tmp_path / "b/000000.tar").read_bytes()
    with tarfile.open(tmp_path / "a/000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_offsets_point_at_the_payload(store):
    data = (store.path / "shards" / "000000.tar").read_bytes()
    for found in store.records:
        assert np.array_equal(
            unpack(data[found.offset : found.offset + found.size]), picture(int(found.record_id, 16))
        )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["uint8", "int16", "uint16", "float32"]),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_pack_keeps_every_bit(dtype, shape, seed):
    array = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    again = unpack(pack(array))
    assert again.dtype == array.dtype and np.array_equal(again, array)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=3), st.text(min_size=1, max_size=9))
def test_any_text_survives_the_row(report, sentences, finding):
    given_record = record(report=report, retrieval=tuple(sentences), labels={finding: "absent"})
    assert row_record(record_row(given_record)) == given_record


def test_a_lone_surrogate_becomes_a_replacement_in_its_place(tmp_path):
    store = write_store(
        tmp_path / "s", [(record(report="No \ud800 mass.", retrieval=("\udfff x",)), picture())]
    )
    assert store.records[0].report == "No � mass."  # as long as before: spans still fit
    assert store.records[0].retrieval == ("� x",)


@pytest.mark.parametrize("wrong", ["1.2.840.1", "", "../x", "a b"])
def test_an_id_that_would_break_a_key_is_refused(tmp_path, wrong):
    with pytest.raises(StoreError, match="letters and digits") as caught:
        write_shard(tmp_path / "000000.tar", [(record(record_id=wrong), picture())])
    assert repr(wrong) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"spacing_mm": (float("nan"), 1.0)}, "nan"),
        ({"boxes": (Box("nodule", 0.0, 0.0, float("inf"), 1.0),)}, "inf"),
    ],
)
def test_numbers_that_json_cannot_hold_are_refused(tmp_path, change, value):
    with pytest.raises(StoreError, match=f"not finite.*{value}"):
        write_shard(tmp_path / "000000.tar", [(record(**change), picture())])


def test_write_atomic_leaves_the_old_file_when_the_new_one_fails(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"


def test_an_unfinished_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"store\.json or index\.parquet is missing.*resumes"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "store.json is damaged: it is not JSON"),
        ("[1]", "format 'list'"),
        ('{"format": "medvl-store-0"}', "format 'medvl-store-0'; this version reads 'medvl-store-3'"),
        ('{"format": null}', "format None"),
    ],
)
def test_a_damaged_manifest_is_refused(store, text, says):
    (store.path / "store.json").write_text(text)
    with pytest.raises(StoreError, match=says):
        Store(store.path)


def test_a_manifest_without_specs_is_refused_when_they_are_asked_for(store):
    (store.path / "store.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(StoreError, match="no pixels spec"):
        _ = Store(store.path).pixel_spec


def test_one_flipped_byte_of_the_index_is_found(store):
    path = store.path / "index.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"index\.parquet is damaged: .* [0-9a-f]{32} instead of"):
        _ = Store(store.path).records


def without_checksum(store):
    manifest = store.manifest | {"index": {}}
    (store.path / "store.json").write_text(json.dumps(manifest))


def test_an_index_that_is_no_parquet_file_is_refused(store):
    without_checksum(store)
    (store.path / "index.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(StoreError, match="not a Parquet file"):
        _ = Store(store.path).records


def test_an_index_without_a_column_is_refused(store):
    without_checksum(store)
    stream = io.BytesIO()
    pq.write_table(store.table.drop(["crc32", "labels"]), stream)
    (store.path / "index.parquet").write_bytes(stream.getvalue())
    with pytest.raises(StoreError, match=r"lacks the columns \['labels', 'crc32'\]"):
        _ = Store(store.path).records


@pytest.mark.parametrize("cell", ["{", "null", '[{"label": "x"}]', "[1]"])
def test_a_row_that_is_no_record_is_refused(store, cell):
    without_checksum(store)
    rows = store.table.to_pylist()
    rows[0]["boxes"] = cell
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), stream)
    (store.path / "index.parquet").write_bytes(stream.getvalue())
    with pytest.raises(StoreError, match="cannot be read as a record"):
        _ = Store(store.path).records


def test_one_flipped_byte_of_a_payload_is_found(store):
    found = store.records[1]
    shard = store.path / "shards" / found.shard
    data = bytearray(shard.read_bytes())
    data[found.offset + found.size // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=f"record {found.record_id} .* instead of {found.crc32}"):
        store.pixels(found)
    assert np.array_equal(store.pixels(store.records[0]), picture(0))


def test_a_truncated_shard_is_found(store):
    found = store.records[2]
    shard = store.path / "shards" / found.shard
    shard.write_bytes(shard.read_bytes()[: found.offset + 5])
    with pytest.raises(StoreError, match=f"damaged: 5 of {found.size} bytes"):
        store.pixels(found)


def test_a_missing_shard_is_named(store):
    (store.path / "shards" / "000000.tar").unlink()
    with pytest.raises(StoreError, match=r"shard 000000\.tar is missing"):
        store.pixels(store.records[0])


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", "a/b.tar"])
def test_a_shard_name_cannot_leave_the_store(store, name):
    with pytest.raises(StoreError, match="not the name of a shard"):
        read_pixels(store.path / "shards", dataclasses.replace(store.records[0], shard=name))


def test_a_payload_that_is_no_array_is_refused():
    with pytest.raises(StoreError, match="7 bytes is not a packed array"):
        unpack(b"garbage")


def test_the_index_filters_as_a_data_frame(store):
    frame = store.table.to_pandas()
    assert list(frame[frame.split == "train"].record_id) == [r.record_id for r in store.records]
