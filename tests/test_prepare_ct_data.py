"""prepare of CT on real volumes and on phantoms: organs where they belong, traps as their truth says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from ctcases import UID, write_series, write_table

from medvl.phantoms.ct import write_ct_phantoms
from medvl.preprocess.checks import check_store
from medvl.preprocess.curation import select
from medvl.preprocess.pipeline import prepare
from medvl.records import Record
from medvl.specs import VolumeSpec
from medvl.store import Store

KEY = bytes(range(32))
SHARED = Path(__file__).parents[2] / "shared/data/ct"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not here")


def mean_hu(store: Store, record: Record, part: str) -> float:
    number = store.pixel_spec.parts.index(part) + 1
    return float(store.pixels(record)[store.parts(record) == number].mean())


def of_part(store: Store, record: Record, part: str) -> np.ndarray:
    """Return the middle of a part in RAS+ mm."""
    number = store.pixel_spec.parts.index(part) + 1
    index = np.argwhere(store.parts(record) == number).mean(axis=0)
    affine = np.array(record.affine_ras).reshape(4, 4)
    return affine[:3, :3] @ index + affine[:3, 3]


def check_anatomy(store: Store, record: Record) -> None:
    """Contrast-enhanced chest: lungs hold air, the heart blood with contrast, the liver soft tissue."""
    assert -900 < mean_hu(store, record, "lungs") < -700
    assert -950 < mean_hu(store, record, "airways") < -700
    assert 150 < mean_hu(store, record, "heart") < 450
    assert 40 < mean_hu(store, record, "liver") < 110
    assert mean_hu(store, record, "bones") > 150
    # RAS+: x grows to the right, y to the front, z to the top
    liver, spleen, heart, lungs = (of_part(store, record, p) for p in ("liver", "spleen", "heart", "lungs"))
    bones = of_part(store, record, "bones")
    assert liver[0] > spleen[0]
    assert heart[1] > bones[1]
    assert lungs[2] > liver[2]
    # 3 to 5 litres of lung, a quarter to a half of heart
    millilitres = {part: n * np.prod(record.spacing_mm) / 1000 for part, n in record.part_voxels.items()}
    assert 2500 < millilitres["lungs"] < 5500 and 250 < millilitres["heart"] < 800


@pytest.mark.data
@REAL
def test_the_real_volume_with_its_structures(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("chest_ct.nii.gz", "chest_ct_structures.nii.gz", "chest_ct_structures.csv"):
        (source / name).write_bytes((SHARED / "volumes" / name).read_bytes())
    write_table(source / "reports.csv", [{"image": "chest_ct.nii.gz", "text": "The lungs are clear."}])
    summary = prepare(source, tmp_path / "store", modality="ct", key=KEY, workers=1)
    assert summary.complete and summary.records == 1 and not summary.unpaired
    store = Store(tmp_path / "store")
    record = store.records[0]
    assert record.geometry == "ok" and record.source_shape == (256, 256, 133) and not record.notes
    assert record.spacing_mm == (1.5, 1.5, 3.0)
    check_anatomy(store, record)


@pytest.mark.data
@pytest.mark.slow
@REAL
def test_the_real_volume_as_a_dicom_series(tmp_path):
    """The volume, thinned to every second voxel, written as a series with a mask of its own."""
    scan = nibabel.load(SHARED / "volumes/chest_ct.nii.gz")
    mask = nibabel.load(SHARED / "volumes/chest_ct_structures.nii.gz")
    thin = (slice(None, None, 2),) * 2
    hu = np.asarray(scan.dataobj)[thin].astype(np.int16)
    affine = scan.affine @ np.diag([2.0, 2, 1, 1])
    steps = np.diagonal(affine)[:3]
    assert np.allclose(affine[:3, :3], np.diag(steps))  # so columns, rows and slices run along the axes
    lps = np.diag([-1.0, -1, 1, 1]) @ affine

    def geometry(dataset, k: int) -> None:
        place = lps @ [0, 0, k, 1]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in place[:3]]
        signs = np.sign(np.diagonal(lps)[:3])
        dataset.ImageOrientationPatient = [signs[0], 0, 0, 0, signs[1], 0]
        dataset.PixelSpacing = [abs(float(steps[1])), abs(float(steps[0]))]

    write_series(
        tmp_path / "source/dicom",
        study=1,
        series=1,
        zs=[0.0] * hu.shape[2],
        volume=hu.transpose(2, 1, 0),
        change=geometry,
    )
    folder = tmp_path / "source/masks"
    folder.mkdir()
    (folder / f"{UID}.1.1.nii.gz").write_bytes((SHARED / "volumes/chest_ct_structures.nii.gz").read_bytes())
    (folder / "labels.csv").write_bytes((SHARED / "volumes/chest_ct_structures.csv").read_bytes())
    spec = VolumeSpec(spacing_mm=None, crop="none")
    prepare(tmp_path / "source", tmp_path / "store", modality="ct", pixels=spec, key=KEY, workers=1)
    store = Store(tmp_path / "store")
    record = store.records[0]
    assert record.geometry == "ok" and len(store) == 1
    check_anatomy(store, record)
    # HU at places of the patient are those of the NIfTI
    stored, there = store.pixels(record), np.linalg.inv(affine) @ np.array(record.affine_ras).reshape(4, 4)
    for index in np.random.default_rng(0).integers(0, record.shape, (200, 3)):
        source = np.rint((there @ [*index, 1])[:3]).astype(int)
        assert stored[tuple(index)] == max(hu[tuple(source)], -1024)
    assert mask.shape == scan.shape


@pytest.mark.data
@REAL
def test_the_real_slices(tmp_path):
    summary = prepare(SHARED / "dicom", tmp_path / "store", modality="ct", key=KEY, workers=1)
    assert summary.records == 2 and not summary.failed
    store = Store(tmp_path / "store")
    for record in store.records:
        assert record.geometry == "ok" and record.source_shape[0] == 1
        assert any(note.startswith("one slice: ") for note in record.notes)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> tuple[Path, Store]:
    source = tmp_path_factory.mktemp("phantoms")
    write_ct_phantoms(source, n=8, seed=5, size_px=32, traps=0.6, workers=1)
    out = tmp_path_factory.mktemp("store") / "s"
    prepare(source, out, modality="ct", pixels=VolumeSpec(spacing_mm=(5, 5, 8)), key=KEY, workers=1)
    return source, Store(out)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_traps_of_phantoms_end_as_their_truth_says(phantoms):
    source, store = phantoms
    failures = [json.loads(line)["rule"] for line in (store.path / "failures.jsonl").read_text().splitlines()]
    traps = rows(source / "truth/traps.csv")
    assert len({trap["trap"] for trap in traps}) >= 4
    for trap in traps:
        if trap["expected"].startswith("rejected:"):
            reason = trap["expected"].removeprefix("rejected:")
            assert any(rule.partition(":")[2] == reason for rule in failures), trap["trap"]
    expected = len(rows(source / "truth/series.csv"))
    refused = sum(trap["records"] == "0" for trap in traps)
    assert len(store) in (expected, expected - refused)


def test_phantoms_keep_their_organs_labels_and_boxes(phantoms):
    _, store = phantoms
    for record in store.records:
        assert record.report and record.labels and record.part_voxels["lungs"] > 0
        assert mean_hu(store, record, "lungs") < -500 < 0 < mean_hu(store, record, "liver")
        for box in record.boxes:
            assert record.labels[box.label] == "present"
            low, high = (box.x0, box.y0, box.z0), (box.x1, box.y1, box.z1)
            assert all(0 <= a < b <= size for a, b, size in zip(low, high, record.shape, strict=True))
    found = {check.name: check for check in check_store(store, deep=True).checks}
    assert not [check.name for check in found.values() if check.level == "problem"]


def test_a_store_of_volumes_can_be_selected_from(phantoms, tmp_path):
    _, store = phantoms
    select(store, "source_kind == 'dicom'", tmp_path / "few")
    few = Store(tmp_path / "few")
    assert 0 < len(few) <= len(store)
    record = few.records[0]
    assert (few.parts(record) == store.parts(record)).all()
    assert "Extent from foot to head" in (tmp_path / "few/quality.html").read_text()
