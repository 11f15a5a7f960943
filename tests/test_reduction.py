"""Near-duplicate reduction: the hash against another library, the choice against loops, the evidence kept."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from test_curation import record, write_store

from medvl.errors import UsageError
from medvl.notice import NOTICE
from medvl.preprocess.curation import select
from medvl.preprocess.reduction import dhash, near_pairs, reduce_pairs, reduce_slices
from medvl.records import Box
from medvl.specs import text_hash
from medvl.store import Store, index_bytes, index_digest, pixel_hash, write_atomic, write_shard


def smooth(seed, shape=(64, 72)):
    """Broad blobs: a picture whose hash survives small changes."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6)).astype(np.uint8)
    return np.asarray(Pillow.fromarray(small).resize(shape[::-1], Pillow.Resampling.BICUBIC))


# --- the hash -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(512, 420), (64, 64), (7, 300), (100, 9), (8, 5), (1, 1), (333, 1000)])
def test_the_hash_is_that_of_imagehash(shape):
    random = np.random.default_rng(0)
    pictures = np.stack([random.integers(0, 256, shape).astype(np.uint8), smooth(1, shape), smooth(2, shape)])
    for picture, value in zip(pictures, dhash(pictures), strict=True):
        expected = imagehash.dhash(Pillow.fromarray(picture)).hash.ravel()
        ours = [bool(int(value) >> (63 - bit) & 1) for bit in range(64)]
        assert ours == expected.tolist()


def test_the_hash_knows_size_noise_and_polarity():
    # what the reference chapter measured: 0 bits on a resize, about 63 on inverted polarity
    picture = smooth(3, (256, 256))
    half = np.asarray(Pillow.fromarray(picture).resize((128, 128), Pillow.Resampling.BOX))
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
    bits = [
        int(np.bitwise_count(dhash(picture[None])[0] ^ dhash(x[None])[0]))
        for x in (half, noisy, 255 - picture)
    ]
    assert bits[0] <= 1 and bits[1] <= 3 and bits[2] >= 60


# --- pairs --------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 3)), max_size=40), st.integers(0, 5))
def test_near_pairs_equal_a_loop(rows, distance):
    hashes = np.array([value for value, _ in rows], np.uint64)
    groups = np.array([group for _, group in rows], np.int64)
    for chosen in (None, groups):
        expected = [
            (i, j, bin(rows[i][0] ^ rows[j][0]).count("1"))
            for j in range(len(rows))
            for i in range(j)
            if (chosen is None or groups[i] == groups[j])
            and bin(rows[i][0] ^ rows[j][0]).count("1") <= distance
        ]
        near = near_pairs(hashes, distance=distance, groups=chosen)
        assert sorted(zip(*(part.tolist() for part in near), strict=True)) == sorted(expected)


def test_large_and_small_groups_give_the_same_pairs():
    # groups above 64 rows are compared in blocks, the others by shifts
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**8, 5000).astype(np.uint64)
    groups = np.repeat(np.arange(10), [4300, 100, 65, 64, 63, 2, 1, 5, 200, 200])
    order = random.permutation(5000)
    hashes, groups = hashes[order], groups[order]
    near = near_pairs(hashes, distance=0, groups=groups)
    same = [(h, g) for h, g in zip(hashes.tolist(), groups.tolist(), strict=True)]
    expected = sum(n * (n - 1) // 2 for n in np.unique(same, axis=0, return_counts=True)[1].tolist())
    assert len(near.first) == expected and (near.first < near.second).all()
    assert (hashes[near.first] == hashes[near.second]).all() and (
        groups[near.first] == groups[near.second]
    ).all()


# --- slices -------------------------------------------------------------------------------------


def test_slices_are_kept_when_they_differ_from_all_kept_before():
    random = np.random.default_rng(0)
    window = {"low": -1000.0, "high": 1000.0}
    base = [smooth(seed, (40, 48)).astype(np.int16) * 7 - 900 for seed in range(4)]
    order = [
        0,
        0,
        1,
        1,
        1,
        0,
        2,
        3,
        3,
    ]  # the second 0 of position 5 is like a kept one that is not its neighbour
    volume = np.stack([base[k] + random.integers(-2, 3, (40, 48)) for k in order], -1).astype(np.int16)
    shown = [
        np.rint(np.clip((volume[..., k] + 1000) * (255 / 2000), 0, 255)).astype(np.uint8) for k in range(9)
    ]
    kept: list[int] = []
    for k in range(9):  # the loop of the paper, with the independent hash
        mine = imagehash.dhash(Pillow.fromarray(shown[k]))
        if all(mine - imagehash.dhash(Pillow.fromarray(shown[j])) > 6 for j in kept):
            kept.append(k)
    assert reduce_slices(volume, **window).tolist() == kept == [0, 2, 6, 7]
    assert reduce_slices(volume, distance=63, **window).tolist() == [0]


# --- pairs of picture and report ----------------------------------------------------------------


def write_pairs(folder, changes):
    """Records of one patient and one study, all with nearly one picture, unless ``changes`` say otherwise."""
    store = write_store(folder, range(len(changes)))
    samples = []
    for number, change in enumerate(changes):
        seed = change.pop("seed", 0)
        noise = np.random.default_rng(number).integers(0, 3, (64, 72))
        array = np.clip(smooth(seed).astype(int) + noise, 0, 255).astype(np.uint8)
        base = {
            "record_id": f"r{number}",
            "patient_id": "p",
            "study_id": "s",
            "split": "train",
            "view": "PA",
            "labels": {},
            "report": "Clear.",
            "retrieval": ("Clear.",),
            "text_hash": text_hash("Clear."),
        }
        given_record = dataclasses.replace(record(number), **(base | change))
        samples.append(
            (dataclasses.replace(given_record, shape=array.shape, pixel_hash=pixel_hash(array)), array)
        )
    index = index_bytes(write_shard(store.path / "shards/000000.tar", samples))
    write_atomic(store.path / "index.parquet", index)
    manifest = store.manifest | {"index": {"blake2b": index_digest(index)}}
    write_atomic(store.path / "store.json", json.dumps(manifest).encode())
    return Store(store.path)


def text(words):
    return {"report": words, "retrieval": (words,), "text_hash": text_hash(words)}


BOX, NEAR, FAR = (
    (Box("nodule", *place),)
    for place in ((8.0, 8.0, 24.0, 24.0), (9.0, 8.0, 25.0, 24.0), (40.0, 8.0, 56.0, 24.0))
)
EFFUSION, NODULE = {"effusion": "present"}, {"nodule": "present"}


@pytest.mark.parametrize(
    ("second", "outcome", "reason"),
    [
        ({}, "dropped", "the same report"),
        ({"seed": 5}, None, ""),
        ({"patient_id": "q"}, None, ""),
        ({"split": "test"}, None, ""),
        ({"view": "LATERAL"}, "protected", "another view or side"),
        ({"laterality": "L"}, "protected", "another view or side"),
        (text("Small effusion."), "protected", "a report that says something else"),
        ({"report": "", "retrieval": (), "text_hash": ""}, "dropped", "no report of its own"),
        ({**text("Clear. "), "text_hash": "u"}, "protected", "a report that says something else"),
        ({"text_hash": "u"}, "dropped", "its sentences are among those of the kept one"),
        ({**text("Effusion."), "said": EFFUSION}, "dropped", "its findings are among those of the kept one"),
        ({**text("Mass."), "said": {"mass": "present"}}, "protected", "a report that says something else"),
        ({**text("No effusion."), "said": {"effusion": "absent"}}, "protected", "a report that says"),
        ({"labels": NODULE}, "dropped", "the same report"),
        ({"labels": {"nodule": "absent"}}, "protected", "a label that the kept one lacks"),
        ({"boxes": NEAR, "labels": NODULE}, "dropped", "the same report"),
        ({"boxes": FAR}, "protected", "a box that the kept one lacks"),
        (
            {"boxes": (dataclasses.replace(BOX[0], label="mass"),)},
            "protected",
            "a box that the kept one lacks",
        ),
        ({"study_id": "t"}, "protected", "last record of its study"),
        ({"geometry": "rejected:gap"}, None, ""),
    ],
)
def test_a_record_goes_only_when_the_kept_one_says_all_of_it(tmp_path, second, outcome, reason):
    first = {"boxes": BOX, "labels": NODULE, "said": EFFUSION}
    store = write_pairs(tmp_path / "s", [first, dict(second)])
    reduction = reduce_pairs(store)
    listed = {name: getattr(reduction, name) for name in ("dropped", "protected")}
    if outcome is None:
        assert listed == {"dropped": (), "protected": ()}
    else:
        (pairing,) = listed.pop(outcome)
        assert (pairing.record_id, pairing.kept_id) == ("r1", "r0") and pairing.reason.startswith(reason)
        assert 0 <= pairing.distance <= 6 and next(iter(listed.values())) == ()
    assert reduction.kept == (("r0",) if outcome == "dropped" else ("r0", "r1"))


def test_records_with_boxes_stay_whatever_their_id(tmp_path):
    store = write_pairs(tmp_path / "s", [{}, {"boxes": BOX}])
    assert reduce_pairs(store).kept == ("r1",)


def test_every_study_keeps_a_record(tmp_path):
    store = write_pairs(tmp_path / "s", [{"study_id": f"s{k // 3}"} for k in range(9)])
    reduction = reduce_pairs(store)
    studies = {r.record_id: r.study_id for r in store.records}
    assert sorted(studies[name] for name in reduction.kept) == ["s0", "s1", "s2"]
    assert len(reduction.dropped) == 6
    assert [p.reason for p in reduction.protected] == ["last record of its study"] * 2


def test_other_splits_are_left_alone_unless_asked(tmp_path):
    store = write_pairs(tmp_path / "s", [{"split": "test"}] * 1 + [{"split": "test"}])
    assert reduce_pairs(store).looked_at == 0 and len(reduce_pairs(store).kept) == 2
    assert reduce_pairs(store, splits=("test",)).kept == ("r0",)


def test_the_whole_store_can_be_compared(tmp_path):
    store = write_pairs(tmp_path / "s", [{"patient_id": f"p{k}"} for k in range(3)])
    assert len(reduce_pairs(store).kept) == 3 and len(reduce_pairs(store, within="store").kept) == 1


def test_the_report_says_what_went_and_what_stayed(tmp_path):
    store = write_pairs(tmp_path / "s", [{}, {}, {"view": "LATERAL"}])
    seen = []
    reduction = reduce_pairs(store, progress=lambda *args: seen.append(args))
    assert seen[-1] == (3, 3, "hashing pictures")
    lines = reduction.lines()
    assert lines[1:4] == [
        "2 records stay, 1 can go",
        "dropped: 1 × the same report",
        "protected: 1 × another view or side",
    ]
    assert lines[-1] == NOTICE
    values = json.loads(json.dumps(reduction.to_json()))
    assert values["dropped"][0]["kept_id"] == "r0" and values["notice"] == NOTICE
    rows = list(csv.DictReader(io.StringIO(reduction.table())))
    assert [(row["outcome"], row["record_id"]) for row in rows] == [("dropped", "r1"), ("protected", "r2")]
    select(store, reduction.kept, tmp_path / "small")
    assert [r.record_id for r in Store(tmp_path / "small").records] == ["r0", "r2"]


def test_wrong_options_are_named(tmp_path):
    store = write_pairs(tmp_path / "s", [{}])
    with pytest.raises(UsageError, match="the distance is 64; allowed are 0 to 63"):
        reduce_pairs(store, distance=64)
    with pytest.raises(UsageError, match=r"splits are \('dev',\).*Allowed: .*train, val, test"):
        reduce_pairs(store, splits=("dev",))
