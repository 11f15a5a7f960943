"""Volumes of the store: chunks, patches, parts, damage, and curation of stores that hold them."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import zlib

import blosc2
import numpy as np
import pyarrow.parquet as pq
import pytest
import test_curation as films
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import StoreError, UsageError
from medvl.preprocess.checks import check_store
from medvl.preprocess.curation import append, select
from medvl.preprocess.export import export_datasets
from medvl.records import Box
from medvl.specs import VolumeSpec
from medvl.store import (
    Store,
    decode,
    index_bytes,
    index_digest,
    pack_volume,
    pixel_hash,
    read_parts_payload,
    unpack_volume,
    write_atomic,
    write_shard,
)
from medvl.store.volumes import CHUNK, read_patch

SHAPE = (70, 33, 40)
"""More than two chunks, one voxel more than a chunk, and less than two."""


def volume(number=0, shape=SHAPE):
    """Return noise in int16, so that every misplaced voxel shows."""
    return np.random.default_rng(number).integers(-1024, 3072, shape, dtype=np.int16)


def parts(number=0, shape=SHAPE):
    return np.random.default_rng(100 + number).integers(0, 11, shape, dtype=np.uint8)


def ct(number, **changes):
    affine = (1.5, 0.0, 0.0, -10.0, 0.0, 1.5, 0.0, -20.0, 0.0, 0.0, 3.0, 5.0, 0.0, 0.0, 0.0, 1.0)
    values = {
        "modality": "ct",
        "shape": SHAPE,
        "dtype": "int16",
        "source_shape": (80, 40, 50),
        "spacing_mm": (1.5, 1.5, 3.0),
        "affine_ras": affine,
        "pixel_hash": pixel_hash(volume(number)),
        "pixel_digest": VolumeSpec().digest,
        "boxes": (Box("nodule", 1, 2, 3, 4, 5.0, 6.0),),
        "part_voxels": {"lungs": 5, "heart": 1},
    }
    return films.record(number, **(values | changes))


def write_store(folder, numbers, *, with_parts=lambda number: True):
    """Return a store of volumes as prepare leaves it, as far as curation looks."""
    store = films.write_store(folder, numbers, pixels=VolumeSpec(), modality="ct")
    placed = []
    for number in sorted(numbers, key=lambda n: films.record(n).record_id):
        sample = (ct(number), volume(number), parts(number) if with_parts(number) else None)
        placed += write_shard(folder / "shards" / f"v{number:05d}.tar", [sample])
    for old in (folder / "shards").glob("0*.tar"):
        old.unlink()
    index = index_bytes(placed)
    write_atomic(folder / "index.parquet", index)
    manifest = dict(store.manifest) | {"index": {"rows": len(placed), "blake2b": index_digest(index)}}
    write_atomic(folder / "store.json", json.dumps(manifest).encode())
    return Store(folder)


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", range(3), with_parts=lambda number: number != 1)


def number_of(record):
    return next(n for n in range(20) if films.record(n).record_id == record.record_id)


# --- the payload --------------------------------------------------------------------------------


def test_the_layout_is_that_of_its_description():
    # read with struct, zlib and blosc2 alone, as the first lines of the file say
    array = volume(shape=(40, 5, 7))
    payload = pack_volume(array, chunk=(32, 4, 8))
    magic, version, kind, *sides = struct.unpack_from("<8sBB6I", payload)
    assert (magic, version, kind, sides) == (b"medvlvol", 1, 1, [40, 5, 7, 32, 4, 8])
    end = 34 + 8 * 4  # 2 × 2 × 1 chunks
    table = struct.unpack_from("<8I", payload, 34)
    assert zlib.crc32(payload[:end]) == struct.unpack_from("<I", payload, end)[0]
    place, found = end + 4, []
    for size, crc in zip(table[::2], table[1::2], strict=True):
        piece = payload[place : place + size]
        assert zlib.crc32(piece) == crc
        found.append(np.frombuffer(blosc2.decompress2(piece), np.int16))
        place += size
    assert place == len(payload)
    corners = [(slice(x, x + 32), slice(y, y + 4), slice(0, 7)) for x in (0, 32) for y in (0, 4)]
    for piece, corner in zip(found, corners, strict=True):
        assert np.array_equal(piece, array[corner].ravel())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_patch_is_that_part_of_the_volume(data):
    shape = data.draw(st.tuples(*[st.integers(1, 21)] * 3))
    chunk = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    kind = data.draw(st.sampled_from([np.int16, np.uint8]))
    array = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)  # the order in memory says nothing of the order on disk
    start = [data.draw(st.integers(0, size - 1)) for size in shape]
    stop = [data.draw(st.integers(low + 1, size)) for low, size in zip(start, shape, strict=True)]
    payload = pack_volume(array, chunk=chunk)
    assert payload == pack_volume(array.copy("C"), chunk=chunk)
    read = []

    def fetch(first, count):
        read.append(count)
        return payload[first : first + count]

    patch = read_patch(fetch, len(payload), shape=shape, dtype=kind.__name__, start=start, stop=stop)
    assert patch.dtype == kind and np.array_equal(patch, array[tuple(map(slice, start, stop))])
    assert np.array_equal(unpack_volume(payload), array)


def test_a_patch_reads_no_more_than_its_chunks():
    array = volume(shape=(96, 96, 96))
    payload, read = pack_volume(array), []

    def fetch(first, count):
        read.append(count)
        return payload[first : first + count]

    read_patch(fetch, len(payload), shape=None, dtype=None, start=(0, 0, 0), stop=(32, 32, 33))
    chunks = [pack_volume(array[:32, :32, low : low + 32]) for low in (0, 32)]
    head = 34 + 8 + 4
    assert len(read) == 2 and read[1] == sum(len(chunk) - head for chunk in chunks)


@pytest.mark.parametrize(
    ("start", "stop"),
    [((0, 0, 0), (0, 1, 1)), ((-1, 0, 0), (1, 1, 1)), ((0, 0, 0), (1, 1, 41)), ((0, 0), (1, 1))],
)
def test_a_patch_outside_of_the_volume_is_a_usage_error(store, start, stop):
    with pytest.raises(UsageError, match=r"a patch from \(.*\) to \(.*\) was asked for; .* \(70, 33, 40\)"):
        store.patch(store.records[0], start, stop)


def test_only_int16_and_uint8_with_voxels_are_packed():
    for array in (np.zeros((2, 2, 2), np.float32), np.zeros((0, 2, 2), np.int16)):
        with pytest.raises(StoreError, match="int16 or uint8 with at least 1 voxel, got"):
            pack_volume(array)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 255), st.booleans())
def test_damage_is_a_typed_error_or_changes_nothing(place, value, cut):
    array = volume(shape=(9, 8, 7))
    payload = bytearray(pack_volume(array, chunk=(4, 8, 7)))
    if cut:
        payload = payload[: place % len(payload)]
    else:
        payload[place % len(payload)] = value
    try:
        assert np.array_equal(unpack_volume(bytes(payload)), array)
    except StoreError as error:
        assert "volume" in str(error)


def forged(payload, **changes):
    """Return a payload with another start, whose checksum is made to fit."""
    names = ("magic", "version", "kind", "x", "y", "z", "a", "b", "c")
    values = dict(zip(names, struct.unpack_from("<8sBB6I", payload), strict=True)) | changes
    start = struct.pack("<8sBB6I", *values.values())
    chunks = np.prod([-(-values[n] // values[c]) for n, c in zip("xyz", "abc", strict=True)], dtype=object)
    end = min(34 + 8 * int(chunks), len(payload) - 4)
    body = start + payload[34:end]
    return body + zlib.crc32(body).to_bytes(4, "little") + payload[end + 4 :]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"magic": b"medvlvoX"}, "does not begin as a volume"),
        ({"version": 2}, "version 2 and type 1; this medvl reads version 1 with types 1, 2"),
        ({"kind": 9}, "version 1 and type 9"),
        ({"x": 30000, "y": 30000, "z": 30000}, r"announces \(30000, 30000, 30000\) voxels"),
        ({"x": 0}, r"announces \(0, 8, 7\) voxels"),
        ({"a": 30000, "b": 30000}, r"announces chunks of \(30000, 30000, 7\) voxels"),
        ({"x": 1000, "y": 1000, "a": 1, "b": 1, "c": 1}, "announces 7000000 chunks"),
        (
            {"x": 8},
            "holds 896 compressed bytes|does not hold 448 compressed bytes|chunk 2 of a volume|end at byte",
        ),
    ],
)
def test_a_forged_start_is_refused_before_it_takes_memory(changes, says):
    payload = forged(pack_volume(volume(shape=(9, 8, 7)), chunk=(4, 8, 7)), **changes)
    with pytest.raises(StoreError, match=says):
        unpack_volume(payload)


def test_a_chunk_of_another_size_than_its_place_is_refused():
    # the size and checksum of the chunk fit, but what is compressed in it does not
    array = volume(shape=(4, 4, 4))
    other = blosc2.compress2(np.zeros(2**20, np.uint8), typesize=1)
    head = pack_volume(array)[:34] + struct.pack("<2I", len(other), zlib.crc32(other))
    payload = head + zlib.crc32(head).to_bytes(4, "little") + other
    with pytest.raises(StoreError, match="chunk 0 of a volume does not hold 128 compressed bytes"):
        unpack_volume(payload)


def test_a_volume_other_than_its_record_says_is_refused():
    payload = pack_volume(volume())
    with pytest.raises(StoreError, match=r"holds int16 \(70, 33, 40\); its record says int16 \(1, 2, 3\)"):
        decode(payload, "vol.b2", shape=(1, 2, 3), dtype="int16")
    with pytest.raises(StoreError, match="its record says uint8"):
        decode(payload, "vol.b2", shape=SHAPE, dtype="uint8")


# --- the store ----------------------------------------------------------------------------------


def test_a_store_reads_volumes_patches_and_parts(store):
    assert store.pixel_spec == VolumeSpec()
    for record, found in store:
        number = number_of(record)
        assert record.payload == "vol.b2" and np.array_equal(found, volume(number))
        box = (slice(30, 66), slice(0, 33), slice(31, 33))
        low, high = [each.start for each in box], [each.stop for each in box]
        assert np.array_equal(store.patch(record, low, high), volume(number)[box])
        if number == 1:
            assert store.parts(record) is None and store.parts(record, low, high) is None
            assert read_parts_payload(store.path / "shards", record) == b""
        else:
            assert np.array_equal(store.parts(record), parts(number))
            assert np.array_equal(store.parts(record, low, high), parts(number)[box])
        placed = {f.name for f in dataclasses.fields(record)} & set(
            "shard offset size crc32 parts_offset parts_size parts_crc32 payload".split()
        )
        assert dataclasses.replace(record, **{n: getattr(ct(number), n) for n in placed}) == ct(number)
    assert len(store.where("modality == 'ct' and parts_size > 0")) == 2


# webdataset 1.0.2 leaves the shard open for the garbage collector to close.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_a_volume_with_its_parts_as_one_sample(store):
    import webdataset

    record = next(r for r in store.records if number_of(r) == 0)
    urls = [str(store.path / "shards" / record.shard)]
    (sample,) = webdataset.WebDataset(urls, shardshuffle=False)
    assert sample["__key__"] == record.record_id
    assert np.array_equal(unpack_volume(sample["vol.b2"]), volume(0))
    assert np.array_equal(unpack_volume(sample["parts.vol.b2"]), parts(0))


def test_patches_are_for_volumes(tmp_path):
    store = films.write_store(tmp_path / "films", range(1))
    with pytest.raises(UsageError, match=r"has a payload of kind 'npy\.b2', no volume"):
        store.patch(store.records[0], (0, 0, 0), (1, 1, 1))
    assert store.parts(store.records[0]) is None


def test_parts_of_another_shape_are_refused(tmp_path):
    with pytest.raises(StoreError, match=r"has \(70, 33, 40\) voxels and parts of \(70, 33, 41\)"):
        write_shard(tmp_path / "000000.tar", [(ct(0), volume(), parts(shape=(70, 33, 41)))])


@pytest.mark.parametrize(
    "change",
    [{"affine_ras": (float("nan"),) * 16}, {"boxes": (Box("nodule", 1, 2, 3, 4, 5.0, float("inf")),)}],
)
def test_an_affine_or_box_that_is_not_finite_is_refused(tmp_path, change):
    with pytest.raises(StoreError, match=r"a spacing, an affine or a box that is not finite: .*(nan|inf)"):
        write_shard(tmp_path / "000000.tar", [(ct(0, **change), volume(), None)])


def test_the_bytes_of_a_shard_depend_on_its_samples_alone(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        turned = np.asfortranarray(volume()) if name == "b" else volume()
        write_shard(tmp_path / name / "000000.tar", [(ct(0), turned, parts())])
    assert (tmp_path / "a/000000.tar").read_bytes() == (tmp_path / "b/000000.tar").read_bytes()


def test_damage_costs_the_patches_it_touches_and_no_other(store):
    record = next(r for r in store.records if number_of(r) == 0)
    shard = store.path / "shards" / record.shard
    with shard.open("r+b") as stream:  # the last byte belongs to the last chunk
        stream.seek(record.offset + record.size - 1)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([last ^ 1]))
    assert np.array_equal(store.patch(record, (0, 0, 0), CHUNK), volume(0)[:32, :32, :32])
    with pytest.raises(StoreError, match="chunk 11 of a volume is damaged: its checksum differs"):
        store.patch(record, (69, 32, 39), SHAPE)
    with pytest.raises(StoreError, match="is damaged"):
        store.pixels(record)
    assert np.array_equal(store.parts(record), parts(0))


# --- curation -----------------------------------------------------------------------------------


def assert_holds(path, numbers):
    store = Store(path)
    assert sorted(map(number_of, store.records)) == sorted(numbers)
    for record, found in store:
        number = number_of(record)
        assert np.array_equal(found, volume(number))
        expected = None if number == 1 else parts(number)
        assert np.array_equal(store.parts(record), expected)
        assert record.affine_ras == ct(number).affine_ras and record.boxes == ct(number).boxes
    found = check_store(store, deep=True)
    assert {check.name for check in found.checks if check.count} <= {"stray-shard"}


def test_select_carries_the_parts(store, tmp_path):
    wanted = [record.record_id for record in store.records if number_of(record) != 2]
    select(store, wanted, tmp_path / "small")
    assert_holds(tmp_path / "small", [0, 1])


def test_append_carries_the_parts(tmp_path):
    some = write_store(tmp_path / "some", range(2), with_parts=lambda number: number != 1)
    more = write_store(tmp_path / "more", range(2, 4))
    append(some.path, more.path)
    assert_holds(some.path, range(4))


def test_a_check_finds_damaged_and_missing_parts(store):
    record = next(r for r in store.records if number_of(r) == 2)
    shard = store.path / "shards" / record.shard
    data = bytearray(shard.read_bytes())
    data[record.parts_offset + record.parts_size - 1] ^= 1
    shard.write_bytes(data)
    assert not [c for c in check_store(store).checks if c.level == "problem"]
    (damaged,) = [c for c in check_store(store, deep=True).checks if c.level == "problem"]
    assert damaged.name == "damaged-payload" and damaged.groups == ((record.record_id,),)
    shard.write_bytes(data[: record.parts_offset + 1])  # the volume itself is whole
    (lost,) = [c for c in check_store(store).checks if c.level == "problem"]
    assert lost.name == "missing-shard"
    with pytest.raises(StoreError, match="is no volume: "):
        store.parts(record)
    with pytest.raises(StoreError, match=f"is damaged: 1 of {record.parts_size} bytes"):
        read_parts_payload(store.path / "shards", record)


def test_an_export_holds_volume_parts_and_affine(store, tmp_path):
    import io

    export_datasets(store, tmp_path / "out")
    rows = [row for path in (tmp_path / "out/data").glob("*") for row in pq.read_table(path).to_pylist()]
    by_id = {row["record_id"]: row for row in rows}
    for number in range(3):
        row = by_id[ct(number).record_id]
        assert np.array_equal(np.load(io.BytesIO(row["volume"])), volume(number))
        assert tuple(row["affine_ras"]) == ct(number).affine_ras
        assert row["boxes"] == [dataclasses.asdict(box) for box in ct(number).boxes]
        assert {each["part"]: each["voxels"] for each in row["part_voxels"]} == ct(number).part_voxels
        if number == 1:
            assert row["parts"] is None
        else:
            assert np.array_equal(np.load(io.BytesIO(row["parts"])), parts(number))
