"""Stores out of stores: what select and append keep, refuse, and survive."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from medvl.errors import StoreError, UsageError
from medvl.preprocess.checks import check_store
from medvl.preprocess.curation import append, select
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.records import Record
from medvl.specs import PixelSpec, ReportSpec, text_hash
from medvl.splits import split_of
from medvl.store import FORMAT, Store, index_bytes, index_digest, pixel_hash, write_atomic, write_shard

KEY = bytes(range(32))
IDS = Pseudonyms(KEY)


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (20, 24), dtype=np.uint8)


def record(number, *, patient=None, **changes):
    name = patient if patient is not None else f"patient {number // 2}"
    text = f"Case {number} is clear."
    values = {
        "record_id": IDS.record(f"{number}.dcm"),
        "study_id": IDS.study(f"study {number}"),
        "patient_id": IDS.patient(name),
        "modality": "cxr",
        "split": split_of(name),
        "source_kind": "dicom",
        "view": "PA" if number % 2 else "LATERAL",
        "report": text,
        "retrieval": (text,),
        "generation": (text,),
        "text_hash": text_hash(text),
        "pixel_hash": pixel_hash(picture(number)),
        "pixel_digest": PixelSpec().digest,
        "report_digest": ReportSpec().digest,
        "shape": (20, 24),
        "dtype": "uint8",
        "source_shape": (40, 48),
        "labels": {"nodule": "present" if number % 3 else "absent"},
    }
    return Record(**(values | changes))


def write_store(folder, numbers, *, key=KEY, per_shard=4, pixels=None, modality="cxr", changes=()):
    """A store as prepare leaves it, as far as curation looks."""
    (folder / "shards").mkdir(parents=True)
    (folder / "private").mkdir()
    samples = [(record(n, **dict(changes).get(n, {})), picture(n)) for n in numbers]
    placed = []
    for k in range(0, len(samples), per_shard):
        placed += write_shard(folder / "shards" / f"{k // per_shard:06d}.tar", samples[k : k + per_shard])
    index = index_bytes(placed)
    write_atomic(folder / "index.parquet", index)
    rows = [f"{r.record_id},file-{n},source/{n}.dcm" for r, n in zip(placed, numbers, strict=True)]
    (folder / "private" / "sources.csv").write_text("\n".join(["item,token,path", *rows, ""]))
    (folder / "private" / "key").write_text(key.hex())
    failed = [
        json.dumps({"item": f"x{n}", "token": f"t{n}", "rule": "NotDicom", "message": ""}) + "\n"
        for n in numbers[:1]
    ]
    (folder / "failures.jsonl").write_text("".join(failed))
    spec = pixels or PixelSpec()
    manifest = {
        "format": FORMAT,
        "modality": modality,
        "specs": {"pixels": spec.model_dump(mode="json"), "report": ReportSpec().model_dump(mode="json")},
        "digests": {"pixels": spec.digest, "report": ReportSpec().digest},
        "counts": {"files": len(numbers) + 1, "failed": 1, "unpaired": {"image_without_report": 2}},
        "labels": ["nodule"],
        "index": {"rows": len(placed), "blake2b": index_digest(index)},
    }
    write_atomic(folder / "store.json", json.dumps(manifest).encode())
    return Store(folder)


def tree(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
    return {
        p.relative_to(folder).as_posix(): hashlib.blake2b(p.read_bytes(), digest_size=8).hexdigest()
        for p in files
    }


def holds(path, numbers):
    """Whether a store holds exactly these records, each with its own picture, and nothing is wrong."""
    store = Store(path)
    assert sorted(r.record_id for r in store.records) == sorted(record(n).record_id for n in numbers)
    pictures = {record(n).record_id: picture(n) for n in numbers}
    assert all(np.array_equal(pixels, pictures[r.record_id]) for r, pixels in store)
    found = check_store(store, deep=True)
    assert {c.name for c in found.checks if c.count} <= {"stray-shard"}
    return True


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", range(10))


# --- filter -------------------------------------------------------------------------------------


def test_where_is_a_pandas_filter_over_columns_and_findings(store):
    wanted = {record(n).record_id for n in range(10) if n % 2 and n % 3}
    found = store.where("view == 'PA' and label_nodule == 'present'")
    assert {r.record_id for r in found} == wanted
    assert found == [r for r in store.records if r.record_id in wanted]
    assert len(store.where("report.str.contains('Case [12] ')")) == 2


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("splitt == 'train'", "'splitt' is not defined.*Columns: record_id, study_id"),
        ("split ==", "cannot be carried out"),
        ("split", "does not say yes or no"),
        ("1 == 1", "does not say yes or no"),
        ("@os.system('x') == 1", "holds '@' or '__'"),
        ("split.__class__ == 1", "holds '@' or '__'"),
    ],
)
def test_a_filter_that_is_none_is_refused(store, query, says):
    with pytest.raises(UsageError, match=says) as caught:
        store.where(query)
    assert repr(query) in str(caught.value)


# --- select -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ids", "mask", "query"])
def test_a_selection_is_a_whole_store(store, tmp_path, how):
    mask = np.array([r.view == "PA" for r in store.records])
    choice = {
        "ids": [r.record_id for r in store.records if r.view == "PA"],
        "mask": mask,
        "query": "view == 'PA'",
    }[how]
    summary = select(store, choice, tmp_path / "small", shard_records=2)
    assert holds(tmp_path / "small", [1, 3, 5, 7, 9])
    small = Store(tmp_path / "small")
    counts = small.manifest["counts"]
    assert (summary.records, summary.patients, summary.left_out) == (5, 5, 5)
    assert counts["records"] == 5 and counts["files"] == 5 and counts["failed"] == 0
    assert sum(counts["splits"].values()) == 5 == small.manifest["index"]["rows"]
    assert small.pixel_spec == store.pixel_spec and len(list((small.path / "shards").iterdir())) == 3
    assert not (small.path / "private").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert "5 records left out" in summary.lines() and summary.to_json()["left_out"] == 5


def test_a_selection_of_everything_holds_the_same_bytes(tmp_path):
    store = write_store(tmp_path / "store", range(10), per_shard=64)
    ordered = sorted(store.records, key=lambda r: r.record_id)
    write_shard(tmp_path / "000000.tar", [(r, store.pixels(r)) for r in ordered])
    select(store, np.ones(10, bool), tmp_path / "all")
    assert (tmp_path / "all/shards/000000.tar").read_bytes() == (tmp_path / "000000.tar").read_bytes()


def test_select_refuses_what_it_cannot_choose(store, tmp_path):
    with pytest.raises(UsageError, match="1 of 2 ids are not in the store, for example 'zz'"):
        select(store, [store.records[0].record_id, "zz"], tmp_path / "out")
    with pytest.raises(UsageError, match="no record is chosen"):
        select(store, "view == 'AP'", tmp_path / "out")
    with pytest.raises(UsageError, match="the mask has 3 values; the store has 10 records"):
        select(store, np.ones(3, bool), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        select(store, "view == 'PA'", tmp_path / "full")
    assert not (tmp_path / "out").exists()


class Killed(BaseException):
    """What stands for kill -9: nothing catches it, and every file stays as it was at that moment."""


def killed_at(monkeypatch, call, step):
    """Run ``call`` until the ``step``-th time that bytes are to reach the disk; False when it ends before."""
    left = [step]

    def fsync(descriptor):
        left[0] -= 1
        if not left[0]:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        try:
            call()
        except Killed:
            return True
    return False


def test_a_killed_selection_leaves_nothing_and_can_be_repeated(store, tmp_path, monkeypatch):
    def call():
        return select(store, "view == 'PA'", tmp_path / "small", shard_records=2)

    step = 1
    while killed_at(monkeypatch, call, step):
        assert not (tmp_path / "small").exists()
        step += 1
    assert step == 13  # 3 shards, index, page, manifest: before and after each takes its name
    assert holds(tmp_path / "small", [1, 3, 5, 7, 9])


# --- append -------------------------------------------------------------------------------------


def test_append_joins_two_stores(store, tmp_path):
    write_store(tmp_path / "more", range(8, 16))
    summary = append(store.path, tmp_path / "more", shard_records=4)
    assert (summary.added, summary.there, summary.records, summary.moved) == (6, 2, 16, 0)
    assert holds(store.path, range(16))
    manifest = Store(store.path).manifest
    assert manifest["counts"]["records"] == manifest["index"]["rows"] == 16
    assert manifest["counts"]["failed"] == 2 and manifest["counts"]["files"] == 18
    assert manifest["counts"]["unpaired"] == {"image_without_report": 4}
    assert sum(manifest["counts"]["splits"].values()) == 16 and "next" not in manifest["index"]
    sources = (store.path / "private/sources.csv").read_text().splitlines()
    assert len(sources) == 17 and sources[0] == "item,token,path"
    assert (store.path / "private/sources.csv").stat().st_mode & 0o077 == 0
    assert "6 records added, 2 were there already; now 16" in summary.lines()[0]
    before = tree(store.path)
    again = append(store.path, tmp_path / "more")
    assert (again.added, again.there) == (0, 8) and tree(store.path) == before


def test_new_records_follow_their_patient(store, tmp_path):
    here = record(0).split
    there = "test" if here != "test" else "train"
    changes = {20: {"patient": "patient 0", "split": there}, 21: {"split": there}}
    write_store(tmp_path / "more", [20, 21], changes=changes)
    summary = append(store.path, tmp_path / "more")
    splits = {r.record_id: r.split for r in Store(store.path).records}
    assert summary.moved == 1 and "1 of the new records follow their patient" in summary.lines()[1]
    assert splits[record(20).record_id] == here and splits[record(21).record_id] == there
    assert next(c for c in check_store(Store(store.path)).checks if c.name == "patient-leak").count == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"key": bytes(32)}, "different pseudonym keys.*--key"),
        ({"modality": "ct"}, "modality is 'cxr' here and 'ct' there"),
        ({"pixels": PixelSpec(longest_px=256)}, "pixel spec is '[0-9a-f]{16}' here"),
        (
            {"changes": {3: {"pixel_hash": "other"}}},
            f"1 records are there with other .*{record(3).record_id}",
        ),
        ({"changes": {3: {"text_hash": "other"}}}, "with other pixels or another report"),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(store, tmp_path, options, says):
    write_store(tmp_path / "more", [2, 3], **options)
    before = tree(store.path)
    with pytest.raises(UsageError, match=says):
        append(store.path, tmp_path / "more")
    assert tree(store.path) == before


def test_append_needs_two_stores_and_their_keys(store, tmp_path):
    with pytest.raises(UsageError, match="cannot be appended to itself"):
        append(store.path, store.path)
    select(store, "view == 'PA'", tmp_path / "small")
    with pytest.raises(UsageError, match=r"no private/key.*Copy private/key"):
        append(store.path, tmp_path / "small")


def test_a_damaged_payload_stops_append_and_leaves_the_store(store, tmp_path):
    more = write_store(tmp_path / "more", [20, 21])
    shard = more.path / "shards" / "000000.tar"
    data = bytearray(shard.read_bytes())
    data[more.records[0].offset + 5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=f"record {more.records[0].record_id} .* is damaged"):
        append(store.path, more.path)
    assert holds(store.path, range(10))


def test_a_killed_append_leaves_a_whole_store_and_can_be_repeated(tmp_path, monkeypatch):
    old = write_store(tmp_path / "old", range(6))
    write_store(tmp_path / "more", range(6, 12))
    shutil.copytree(old.path, tmp_path / "reference")
    append(tmp_path / "reference", tmp_path / "more", shard_records=3)
    step, seen = 1, set()
    while True:
        path = tmp_path / f"copy{step}"
        shutil.copytree(old.path, path)
        if not killed_at(
            monkeypatch, lambda path=path: append(path, tmp_path / "more", shard_records=3), step
        ):
            break
        there = len(Store(path))
        seen.add(there)
        assert holds(path, range(there))  # the old records or all of them, never some
        append(path, tmp_path / "more", shard_records=3)
        temporary = [name for name in tree(path) if name.endswith(".tmp")]
        for name in temporary:  # what the kill left half-written: no reader looks at it
            (path / name).unlink()
        assert tree(path) == tree(tmp_path / "reference")
        step += 1
    assert (
        seen == {6, 12} and step == 17
    )  # sources, 2 shards, manifest, index, failures, manifest; twice each


def test_a_copied_record_keeps_its_codestream(tmp_path, store):
    from PIL import Image as Pillow

    from medvl.store import original_payload

    noisy = np.random.default_rng(0).normal(128, 9, (200, 240)).astype(np.uint8)
    Pillow.fromarray(noisy).save(tmp_path / "film.jpg", quality=60)
    with Pillow.open(tmp_path / "film.jpg") as film:
        array = np.asarray(film)
    payload, kind = original_payload(tmp_path / "film.jpg", array)
    given = dataclasses.replace(record(0), shape=(200, 240), pixel_hash=pixel_hash(array))
    folder = store.path
    placed = write_shard(folder / "shards" / "000000.tar", [(given, array, payload, kind)])
    index = index_bytes(placed)
    write_atomic(folder / "index.parquet", index)
    manifest = store.manifest | {"index": {"blake2b": index_digest(index)}}
    write_atomic(folder / "store.json", json.dumps(manifest).encode())
    select(Store(folder), [given.record_id], tmp_path / "small")
    small = Store(tmp_path / "small")
    assert small.records[0].payload == "jpg" and small.records[0].size == len(payload)
    assert np.array_equal(small.pixels(small.records[0]), array)
