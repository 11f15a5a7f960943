"""prepare of CT: one record a volume, the verdict of each series, boxes and HU at the right place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ctcases import (
    AFFINE,
    PLAIN,
    SHAPE,
    SPACING,
    UID,
    axial_hu,
    place_hu,
    write_nifti,
    write_series,
    write_table,
)

from medvl.errors import UsageError
from medvl.preprocess.checks import check_records
from medvl.preprocess.pipeline import prepare, preview
from medvl.preprocess.plan import Job
from medvl.records import Record
from medvl.store import Store

KEY = bytes(range(32))


def tilt(dataset, k: int) -> None:
    angle = np.radians(15)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(angle)), -float(np.sin(angle))]


def localizer(dataset, k: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def projection(dataset, k: int) -> None:
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"]


def other_modality(dataset, k: int) -> None:
    dataset.Modality = "PT"


def write_source(folder: Path) -> Path:
    """Write four studies: two reconstructions and a localizer; a hole and a tilt; NIfTI; another modality."""
    write_series(folder / "dicom/a/s1", study=1, series=1)
    thick = tuple(100.0 + 8 * k for k in range(4))
    write_series(folder / "dicom/a/s2", study=1, series=2, zs=thick)
    write_series(folder / "dicom/a/scout", study=1, series=3, zs=(100.0,), change=localizer)
    write_series(
        folder / "dicom/a/mip", study=1, series=4, zs=(100.0, 110.0, 120.0, 130.0), change=projection
    )
    write_series(folder / "dicom/b/hole", study=2, series=1, zs=(100, 104, 108, 120, 124, 128))
    write_series(folder / "dicom/b/tilt", study=2, series=2, change=tilt)
    write_series(folder / "dicom/c", study=3, series=1, change=other_modality)
    values = np.transpose(axial_hu([100.0 + 4 * k for k in range(SHAPE[0])]), (2, 1, 0))
    write_nifti(folder / "nifti/scan_7.nii.gz", values, AFFINE)
    write_nifti(folder / "nifti/two.nii.gz", np.stack([values, values], -1), AFFINE)
    (folder / "nifti/broken.nii.gz").write_bytes(b"\x1f\x8b\x08\x00" + bytes(40))
    report = "FINDINGS: No pleural effusion. Nodule of 8 mm in the left lower lobe of Mrs CANARY."
    write_table(
        folder / "reports.csv",
        [
            {"study_uid": f"{UID}.1", "image": "", "text": report, "split": "train"},
            {"study_uid": f"{UID}.2", "image": "", "text": "Normal.", "split": "val"},
            {"study_uid": "", "image": "scan_7.nii.gz", "text": "Emphysema.", "split": "test"},
        ],
    )
    write_table(
        folder / "labels.csv",
        [{"study_uid": f"{UID}.1", "lung_nodule": 1}, {"study_uid": "scan_7.nii.gz", "lung_nodule": 0}],
    )
    # 6 mm from the column centre at x = +6 (LPS −6): voxels 2 and 3 along x, of 3 mm
    box = {
        "label": "lung_nodule",
        "x0_mm": 1.5,
        "x1_mm": 7.5,
        "y0_mm": -1,
        "y1_mm": 5,
        "z0_mm": 102,
        "z1_mm": 110,
    }
    write_table(folder / "boxes.csv", [{"study_uid": f"{UID}.1", **box}])
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory) -> tuple[Store, object]:
    out = tmp_path_factory.mktemp("prepared") / "store"
    summary = prepare(source, out, modality="ct", pixels=PLAIN, key=KEY, workers=1)
    return Store(out), summary


def by_shape(store: Store) -> dict[tuple[int, ...], Record]:
    return {(*record.shape, record.source_kind): record for record in store.records}


def volume_job(path: Path, **values) -> Job:
    return Job("r", "s", "p", "train", str(path), "file-0", "", **values)


def test_records_and_failures(prepared):
    store, summary = prepared
    # two reconstructions of study 1 and the NIfTI; all else is refused with its reason
    assert sorted(record.shape for record in store.records) == [(12, 10, 4), (12, 10, 6), (12, 10, 6)]
    assert summary.failures == {
        "BadImage": 1,
        "GapInSeries:gap": 1,
        "IrregularSeries:derived": 1,
        "IrregularSeries:localizer": 1,
        "IrregularSeries:tilt": 1,
        "MultiFrame": 1,
    }
    assert summary.unpaired["other_modality"] == 1
    assert not summary.complete
    lines = [json.loads(line) for line in (store.path / "failures.jsonl").read_text().splitlines()]
    hole = next(line["message"] for line in lines if line["rule"] == "GapInSeries:gap")
    assert "missing slices" in hole and "spacing_max_mm 12" in hole and "missing 2" in hole


def test_hu_stand_where_they_were_measured(prepared):
    store, _ = prepared
    for record in store.records:
        affine = np.array(record.affine_ras).reshape(4, 4)
        # RAS+ axes: positive along the diagonal, nothing beside it
        assert np.allclose(affine[:3, :3], np.diag(np.abs(np.diagonal(affine)[:3])))
        index = np.indices(record.shape).reshape(3, -1)
        world = affine[:3, :3] @ index + affine[:3, 3:]
        expected = place_hu(*world).reshape(record.shape)
        assert (store.pixels(record) == expected).all()


def test_spacing_and_source_shape(prepared):
    store, _ = prepared
    dicom = by_shape(store)[12, 10, 6, "dicom"]
    assert dicom.spacing_mm == (SPACING[2], SPACING[1], SPACING[0])
    assert dicom.source_shape == SHAPE
    assert by_shape(store)[12, 10, 6, "nifti"].source_shape == (12, 10, 6)
    assert {record.geometry for record in store.records} == {"ok"}
    # nothing in the patient is near −1000 HU here, which hu_check says
    assert all("was the rescale left out" in " ".join(record.notes) for record in store.records)


def test_reconstructions_share_study_and_report(prepared):
    store, _ = prepared
    first, second = (by_shape(store)[12, 10, depth, "dicom"] for depth in (6, 4))
    assert first.study_id == second.study_id and first.patient_id == second.patient_id
    assert first.report == second.report != ""
    assert first.labels == second.labels == {"lung_nodule": "present"}
    assert first.said["pleural_effusion"] == "absent"
    assert "CANARY" not in first.report
    assert {record.split for record in (first, second)} == {"train"}
    nifti = by_shape(store)[12, 10, 6, "nifti"]
    assert (nifti.report, nifti.split, nifti.labels) == ("Emphysema.", "test", {"lung_nodule": "absent"})


def test_boxes_are_in_stored_voxels(prepared):
    # Stored x runs from RAS −21 (column 11) to 12 in steps of 3, voxel edges at −22.5 + 3·i: 1.5 … 7.5 mm is
    # 8 … 10; y from −10 in steps of 2, edges at −11 + 2·j, so −1 … 5 is 5 … 8; z edges at 98 + 4·k: 1 … 3.
    store, _ = prepared
    box = by_shape(store)[12, 10, 6, "dicom"].boxes[0]
    assert (box.label, box.x0, box.x1, box.y0, box.y1, box.z0, box.z1) == ("lung_nodule", 8, 10, 5, 8, 1, 3)
    # the other reconstruction has slices of 8 mm, edges at 96 + 8·k: 0.75 … 1.75
    thick = by_shape(store)[12, 10, 4, "dicom"].boxes[0]
    assert (thick.z0, thick.z1) == (0.75, 1.75)
    assert not by_shape(store)[12, 10, 6, "nifti"].boxes


def test_no_identifier_leaves_the_private_folder(prepared):
    store, _ = prepared
    names = (b"CANARY", b"PAT0001", b"ACC00001", UID.encode(), b"scan_7", b"19500101")
    for path in store.path.rglob("*"):
        if path.is_file() and "private" not in path.relative_to(store.path).parts:
            data = path.read_bytes()
            assert not [name for name in names if name in data], path.name


def tree_hash(out: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(
        p for p in out.rglob("*") if p.is_file() and "private" not in p.relative_to(out).parts
    ):
        digest.update(path.relative_to(out).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def test_bytes_depend_on_neither_workers_nor_interruption(source, prepared, tmp_path):
    store, _ = prepared
    out = tmp_path / "again"
    prepare(source, out, modality="ct", pixels=PLAIN, key=KEY, workers=2)
    assert tree_hash(out) == tree_hash(store.path)
    # as a kill leaves it: no manifest, one chunk without its part
    (out / "store.json").unlink()
    min((out / "private/parts").glob("*.json.gz")).unlink()
    summary = prepare(source, out, modality="ct", pixels=PLAIN, key=KEY, workers=1)
    assert 0 < summary.resumed < summary.files
    assert tree_hash(out) == tree_hash(store.path)


def test_other_options_are_refused(source, prepared):
    store, _ = prepared
    with pytest.raises(UsageError, match="allow gaps was False and is True"):
        prepare(source, store.path, modality="ct", pixels=PLAIN, key=KEY, allow_gaps=True)
    with pytest.raises(UsageError, match="modality is 'cxr' and the pixels are to follow a volume spec"):
        prepare(source, store.path, modality="cxr", pixels=PLAIN, key=KEY)
    with pytest.raises(UsageError, match="masks and structures belong to volumes; the modality is 'cxr'"):
        preview(source, store.path.parent / "never", modality="cxr", masks=source)


def test_quality_page_says_what_happened(prepared):
    page = (prepared[0].path / "quality.html").read_text()
    assert "rejected:gap" in page and "rejected:localizer" in page
    assert "Extent from foot to head" in page and "volumes read from dicom, geometry ok" in page
    assert page.count("data:image/jpeg;base64,") == 3


def test_a_box_on_the_other_side_than_the_report_says(prepared):
    store, _ = prepared
    record = next(record for record in store.records if record.boxes)
    # the box lies at x = 8 … 10 of 12, to the patient's right, and the report says left
    said = replace(record, retrieval=("Lung nodule in the left lower lobe.",))
    right = replace(record, retrieval=("Lung nodule in the right lower lobe.",))
    checks = {check.name: check.count for check in check_records([said, right])}
    assert checks["box-side"] == 1
