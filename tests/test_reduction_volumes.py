"""Slices that tell something new stay, the marked ones always; near-duplicate volumes of a study go."""

import csv
import dataclasses
import io
import itertools
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from medvl.errors import ConfigError, UsageError
from medvl.notice import NOTICE
from medvl.preprocess.checks import check_store
from medvl.preprocess.reduction import reduce_pairs, reduce_slices
from medvl.preprocess.reduction_hashes import dhash, near_pairs, volume_hash
from medvl.preprocess.reduction_slices import (
    THRESHOLDS,
    evidence_slices,
    reduce_store_slices,
    reduce_volume,
    shared_information,
)
from medvl.preprocess.reduction_store import write_slices
from medvl.records import Box, Record
from medvl.specs import ReportSpec
from medvl.store import FORMAT, INDEX_SCHEMA, Store, record_row, write_shard
from tests.tinyvolumes import SPEC, draw, write_volumes

AFFINE = (4.0, 0.0, 0.0, -40.0, 0.0, 4.0, 0.0, -40.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def smooth(seed, shape=(40, 36, 24), steps=6):
    """A volume that changes along its slices: a few random pictures, blended."""
    rng = np.random.default_rng(seed)
    knots = rng.uniform(-1000, 1000, (steps, *shape[:2]))
    places = np.linspace(0, steps - 1, shape[2])
    low = np.minimum(places.astype(int), steps - 2)
    share = places - low
    planes = [knots[k] * (1 - s) + knots[k + 1] * s for k, s in zip(low, share, strict=True)]
    return np.stack(planes, axis=-1).astype(np.int16)


def greedy(count, alike):
    """The choice by two loops: a slice goes when any kept one is alike."""
    kept = []
    for place in range(count):
        if not any(alike(place, other) for other in kept):
            kept.append(place)
    return tuple(kept)


@pytest.mark.parametrize("threshold", [2, 6, 20])
def test_hashes_are_those_of_the_displayed_slices(threshold):
    volume = smooth(0)
    shown = np.clip(np.floor((volume.astype(np.float32) + 1000) * np.float32(255 / 2000) + 0.5), 0, 255)
    # Radiological display: rows from front to back, columns along x.
    hashes = dhash(np.ascontiguousarray(shown.astype(np.uint8).transpose(2, 1, 0)[:, ::-1]))
    kept = greedy(24, lambda a, b: bin(int(hashes[a] ^ hashes[b])).count("1") <= threshold)
    found = reduce_volume(volume, threshold=threshold)
    assert found.kept == kept and 1 < len(kept) < 24
    assert {like.slice for like in found.dropped} == set(range(24)) - set(kept)
    for like in found.dropped:
        bits = [
            bin(int(hashes[like.slice] ^ hashes[other])).count("1") for other in kept if other < like.slice
        ]
        assert like.measure == min(bits) and like.kept in kept
    # The hash of two-axis pictures is the same choice on the turned volume.
    assert tuple(reduce_slices(np.swapaxes(volume, 0, 1)[::-1], distance=threshold)) == kept


def test_embeddings_are_compared_by_their_angle():
    vectors = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32)
    unit = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    kept = greedy(24, lambda a, b: unit[a] @ unit[b] >= 0.6)
    found = reduce_volume(smooth(0), method="embedding", threshold=0.6, vectors=vectors)
    assert found.kept == kept and 1 < len(kept) < 24
    # The length of a vector counts for nothing.
    longer = vectors * np.arange(1, 25, dtype=np.float32)[:, None]
    assert reduce_volume(smooth(0), method="embedding", threshold=0.6, vectors=longer) == found


def test_information_is_that_of_an_independent_library():
    rng = np.random.default_rng(2)
    mine, other = rng.integers(0, 16, (2, 5000)).astype(np.uint8)
    other[:3000] = mine[:3000] // 2
    expected = mutual_info_score(mine, other) / entropy(np.bincount(mine))
    assert shared_information(mine, other) == pytest.approx(expected, abs=1e-12)
    assert shared_information(mine, mine) == pytest.approx(1.0)
    # It is not symmetric: halved levels are told by the levels, not the other way round.
    assert shared_information(mine // 2, mine) == pytest.approx(1.0)
    assert shared_information(mine, mine // 2) == pytest.approx(3 / 4, abs=0.01)  # ln 8 of ln 16
    assert shared_information(np.zeros(9, np.uint8), np.arange(9).astype(np.uint8)) == 1.0


def test_slices_that_another_tells_go_by_information():
    volume = smooth(3)
    found = reduce_volume(volume, method="information")
    levels = np.clip((volume.astype(np.float32) + 1000) * np.float32(16 / 2000), 0, 15).astype(int)
    flat = levels.transpose(2, 0, 1).reshape(24, -1)

    def alike(a, b):
        told = mutual_info_score(flat[a], flat[b]) / entropy(np.bincount(flat[a]))
        return told >= THRESHOLDS["information"]

    assert found.kept == greedy(24, alike) and 1 < len(found.kept) < 24


@pytest.mark.parametrize("method", ["hash", "information"])
def test_equal_slices_are_one_and_noise_is_many(method):
    assert reduce_volume(np.full((32, 32, 9), 40, np.int16), method=method).kept == (0,)
    noise = np.random.default_rng(4).integers(-1000, 1000, (48, 48, 9)).astype(np.int16)
    assert reduce_volume(noise, method=method).kept == tuple(range(9))


def test_a_marked_slice_stays():
    volume = np.full((32, 32, 9), 40, np.int16)
    found = reduce_volume(volume, evidence=(7, 4, 4))
    assert found.kept == (4, 7) and found.evidence == (4, 7) and len(found.dropped) == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "hush"}, r"method is 'hush'.*'hash'"),
        ({"threshold": 64}, r"threshold of 'hash' is 64\..*0 to 63; usual is 6"),
        ({"method": "information", "threshold": 1.5}, r"'information' is 1\.5\..*0 to 1; usual is 0\.45"),
        ({"method": "embedding", "threshold": -2.0}, r"'embedding' is -2\.0\..*-1 to 1; usual is 0\.95"),
        ({"evidence": (24,)}, r"evidence names slices \[24\] of 24\..*0 to 23"),
        ({"method": "embedding"}, "there are 24 slices and none vectors"),
        ({"method": "embedding", "vectors": np.ones((3, 2), np.float32)}, "24 slices and 3 vectors"),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(ConfigError, match=said):
        reduce_volume(smooth(0), **options)


def write(path, changes):
    """A store of one drawn volume, again and again, each with a little noise and changes to its record."""
    volume, _, boxes, labels = draw(3, (24, 20, 16))
    samples = []
    for number, change in enumerate(changes):
        noise = np.random.default_rng(number).integers(-3, 4, volume.shape)
        record = Record(
            record_id=f"r{number}", study_id="s", patient_id="p", modality="ct", split="train",
            source_kind="nifti", report="", retrieval=(), generation=(), text_hash="", pixel_hash=str(number),
            pixel_digest=SPEC.digest, report_digest=ReportSpec().digest, shape=volume.shape, dtype="int16",
            source_shape=volume.shape, spacing_mm=(4.0, 4.0, 4.0), affine_ras=AFFINE, labels=labels,
            boxes=tuple(boxes),
        )  # fmt: skip
        noisy = np.clip(volume + noise, -1024, 3071).astype(np.int16)
        samples.append((dataclasses.replace(record, **change), noisy))
    (path / "shards").mkdir(parents=True)
    placed = write_shard(path / "shards" / "000000.tar", samples)
    table = pa.Table.from_pylist([record_row(record) for record in placed], schema=INDEX_SCHEMA)
    pq.write_table(table, path / "index.parquet")
    specs = {"pixels": SPEC.model_dump(mode="json"), "report": ReportSpec().model_dump(mode="json")}
    (path / "store.json").write_text(json.dumps({"format": FORMAT, "modality": "ct", "specs": specs}))
    return Store(path)


def test_a_hash_of_a_volume_tells_volumes_apart():
    hashes = []
    for seed, noise in itertools.product((0, 1, 2), (0, 1)):
        volume = smooth(seed, (45, 40, 40)) + np.random.default_rng(noise).integers(-9, 9, (45, 40, 40))
        hashes.append(volume_hash(volume))
    near = near_pairs(np.stack(hashes))
    assert list(zip(near.first.tolist(), near.second.tolist(), strict=True)) == [(0, 1), (2, 3), (4, 5)]
    assert near.distance.max() <= 48  # 6 of 64, in 512


def test_volume_hash_is_a_loop_over_the_grid():
    # Blocks of constant HU on the very grid of the hash: resampling by whole factors keeps the order of
    # neighbours that differ by much; the kernel's lobes may turn near ties.
    grid = np.random.default_rng(5).integers(0, 4, (9, 8, 8))
    volume = np.kron(grid, np.ones((8, 8, 8), int)) * 500 - 750
    bits = "".join(f"{int(word):064b}" for word in volume_hash(volume.astype(np.int16)))
    clear = 0
    for bit, (k, j, i) in zip(bits, itertools.product(range(8), repeat=3), strict=True):
        step = grid[i + 1, j, k] - grid[i, j, k]
        if abs(step) >= 2:
            clear += 1
            assert (bit == "1") == (step > 0)
    assert clear > 100


def test_reconstructions_of_a_study_go_and_the_finer_stays(tmp_path):
    store = write(tmp_path / "s", [{}, {}, {"study_id": "t"}])
    reduction = reduce_pairs(store)
    assert reduction.looked_at == 3 and len(reduction.dropped) == 1
    assert [p.reason for p in reduction.protected] == ["last record of its study"]
    assert reduction.dropped[0].reason == "no report of its own"


def test_other_reports_keep_their_volume(tmp_path):
    same = {"text_hash": "a", "retrieval": ("A cyst.",)}
    store = write(tmp_path / "s", [same, same | {"text_hash": "b", "retrieval": ("A stone.",)}])
    assert [p.reason for p in reduce_pairs(store).protected] == ["a report that says something else"]


def test_boxes_of_volumes_are_compared_in_the_patient(tmp_path):
    moved = (*AFFINE[:3], -48.0, *AFFINE[4:])
    box = (Box("lung_nodule", 10, 10, 14, 14, 10, 14),)
    shifted = (Box("lung_nodule", 12, 10, 16, 14, 10, 14),)  # 2 voxels on, in a grid that begins 2 before
    base = {"labels": {}, "said": {}, "boxes": box}
    store = write(tmp_path / "a", [base, base | {"boxes": shifted, "affine_ras": moved}])
    assert len(reduce_pairs(store).dropped) == 1
    store = write(
        tmp_path / "b", [base, base | {"boxes": shifted}]
    )  # half of 4 voxels off: overlap of a third
    assert [p.reason for p in reduce_pairs(store).protected] == ["a box that the kept one lacks"]


def test_a_store_is_reduced_slice_by_slice(tmp_path):
    boxes = (Box("lung_nodule", 8, 8, 12, 12, 9, 14),)
    store = write(tmp_path / "s", [{"boxes": boxes}, {"boxes": ()}, {"split": "test"}])
    seen = []
    reduction = reduce_store_slices(store, progress=lambda *args: seen.append(args))
    first, second, third = (r.record_id for r in store.records)
    assert set(reduction.volumes) == {first, second} and third not in reduction.volumes
    assert seen[-1] == (2, 2, "comparing slices")
    assert (
        evidence_slices(store.records[0].boxes, depth=store.records[0].shape[2]) == (11,)
        and 11 in reduction.volumes[first].kept
    )
    assert reduction.volumes[second] == reduce_volume(store.pixels(store.records[1]))
    values = json.loads(json.dumps(reduction.to_json()))
    assert values["slices"] == 32 and values["kept"] == reduction.kept and values["evidence"] == 1
    assert reduction.lines()[0].startswith("32 slices of 2 volumes (train) compared by hash, threshold 6")
    assert reduction.lines()[-1] == NOTICE
    rows = list(csv.DictReader(io.StringIO(reduction.table())))
    assert len(rows) == 32 and [row["slice"] for row in rows if row["outcome"] == "evidence"] == ["11"]
    gone = [row for row in rows if row["outcome"] == "dropped"]
    assert gone and all(float(row["measure"]) <= 6 and row["like"] for row in gone)
    by_angle = reduce_store_slices(
        store, method="embedding", vectors=lambda record, volume: np.eye(16, dtype=np.float32)
    )
    assert by_angle.volumes[second].kept == tuple(range(16))


def test_a_store_of_films_has_no_slices(tmp_path):
    store = write(tmp_path / "s", [{"split": "test"}])
    with pytest.raises(UsageError, match="no volume in train"):
        reduce_store_slices(store)


def test_kept_slices_become_a_store_of_thin_volumes(tmp_path):
    store = Store(write_volumes(tmp_path / "v", n=10))
    chosen = next(r for r in store.records if r.split == "train" and r.boxes and r.part_voxels)
    reduction = reduce_store_slices(store)
    seen = []
    summary = write_slices(store, reduction, tmp_path / "s", progress=lambda *args: seen.append(args))
    thin = Store(tmp_path / "s")
    assert summary.records == len(thin) == reduction.kept and summary.lines()[-1] == NOTICE
    assert summary.left_out == reduction.slices - reduction.kept > 0
    assert json.loads(json.dumps(summary.to_json()))["volumes"] == len(reduction.volumes)
    assert seen[-1] == (len(reduction.volumes), len(reduction.volumes), "writing slices")
    assert thin.pixel_spec == store.pixel_spec and thin.manifest["slices"]["method"] == "hash"
    mine = [r for r in thin.records if r.record_id.startswith(f"{chosen.record_id}z")]
    kept = reduction.volumes[chosen.record_id].kept
    assert [int(r.record_id.rpartition("z")[2]) for r in mine] == list(kept)
    volume, parts = store.pixels(chosen), store.parts(chosen)
    for record, place in zip(mine, kept, strict=True):
        assert np.array_equal(thin.pixels(record)[..., 0], volume[..., place])
        assert np.array_equal(thin.parts(record)[..., 0], parts[..., place])
        assert sum(record.part_voxels.values()) == int((parts[..., place] > 0).sum())
        assert (record.study_id, record.report, record.labels) == (chosen.study_id, chosen.report, {})
        # The slice lies where it lay: its only voxel plane has the height of voxel `place`.
        assert record.affine_ras[11] == pytest.approx(chosen.affine_ras[11] + 4.0 * place)
        marked = {b.label for b in chosen.boxes if b.z0 < place + 1 and b.z1 > place}
        assert {b.label for b in record.boxes} == marked
        assert all((b.z0, b.z1) == (0.0, 1.0) for b in record.boxes)
    assert {b.label for r in mine for b in r.boxes} == {b.label for b in chosen.boxes}
    table = (tmp_path / "s" / "slices.csv").read_text()
    assert table == reduction.table() and NOTICE in (tmp_path / "s" / "quality.html").read_text()
    assert check_store(thin).worst != "problem"
    with pytest.raises(UsageError, match=r"names \d+ volumes; the store holds 0 of them"):
        write_slices(thin, reduction, tmp_path / "again")


@pytest.mark.data
def test_reduction_of_a_real_volume():
    # A scan of 133 slices of 2.5 mm or so: the hash of the paper keeps about a sixth of them.
    path = Path(__file__).parents[2] / "shared" / "data" / "ct" / "volumes" / "chest_ct.nii.gz"
    if not path.is_file():
        pytest.skip("the shared volume is not here")
    image = nibabel.as_closest_canonical(nibabel.load(path))
    volume = np.asarray(image.dataobj).astype(np.int16)
    assert len(reduce_volume(volume).kept) == 21
    assert 15 <= len(reduce_volume(volume, method="information").kept) <= 33


def test_the_examples_of_the_page_run():
    page = (Path(__file__).parents[1] / "docs" / "reduction.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/reduction.md", "exec"), {})
