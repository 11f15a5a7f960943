"""prepare of CT: one record a volume, the verdict of each series, boxes and HU at the right place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import layouttrees
import numpy as np
import pytest
from ctcases import (
    SHAPE,
    SPACING,
    UID,
    axial_hu,
    place_hu,
    write_nifti,
    write_series,
    write_table,
)

from medvl.errors import BadImage, BadTable, ConfigError, GapInSeries, IrregularSeries, MultiFrame, UsageError
from medvl.preprocess import planning
from medvl.preprocess.checks import check_records
from medvl.preprocess.pictures import show_volume
from medvl.preprocess.pipeline import prepare, preview
from medvl.preprocess.plan import Job
from medvl.preprocess.planning import Tables, header_map, pair_source, plan_jobs, volume_source
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.preprocess.sources.labels import read_boxes
from medvl.records import Box, Record
from medvl.specs import VolumeSpec
from medvl.store import Store

KEY = bytes(range(32))
PLAIN = VolumeSpec(spacing_mm=None, crop="none")
AFFINE = np.array([[-3.0, 0, 0, 12], [0, -2, 0, 8], [0, 0, 4, 100], [0, 0, 0, 1]])
"""Of the series as NIfTI (column, row, slice): LPS turned to RAS."""


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


# --- one volume ---------------------------------------------------------------------------------------------


def jobs_of(folder: Path, **options) -> list[Job]:
    volumes = volume_source(PLAIN, "ct", masks=options.pop("masks", None), structures=None)
    paired, _ = pair_source(folder, Tables(), modality="ct", volumes=volumes)
    return plan_jobs(folder, paired, ids=Pseudonyms(KEY), split=(0.8, 0.1, 0.1), seed=0)


@pytest.mark.parametrize(
    ("zs", "error", "options", "slices"),
    [
        ((100, 104, 108, 120, 124, 128), GapInSeries, {"allow_gaps": True}, 8),
        ((100, 104, 108.35, 112, 116), IrregularSeries, {"on_irregular": "resample"}, 5),
    ],
)
def test_irregular_series_are_mended_on_request(tmp_path, zs, error, options, slices):
    write_series(tmp_path / "x", study=1, series=1, zs=zs)
    (job,) = jobs_of(tmp_path)
    usual = {"allow_gaps": False, "on_irregular": "reject"}
    with pytest.raises(error, match="no regular volume"):
        show_volume(job, PLAIN, **usual)
    shown = show_volume(job, PLAIN, **(usual | options))
    assert shown.about["geometry"] == "resampled"
    # HU are linear along z, so linear interpolation is exact but for the rounding of each
    index = np.indices(shown.stored.shape).reshape(3, -1)
    affine = np.array(shown.about["affine_ras"]).reshape(4, 4)
    expected = place_hu(*(affine[:3, :3] @ index + affine[:3, 3:])).reshape(shown.stored.shape)
    assert shown.stored.shape[2] == slices
    assert np.abs(shown.stored - expected).max() <= 1


def test_two_series_in_one_folder_and_copies(tmp_path):
    write_series(tmp_path / "x", study=1, series=1)
    second = write_series(tmp_path / "y", study=1, series=2, zs=(100, 102, 104, 106))
    for path in second:
        path.rename(tmp_path / "x" / f"other_{path.name}")
    (tmp_path / "x/copy.dcm").write_bytes((tmp_path / "x/im000.dcm").read_bytes())
    jobs = jobs_of(tmp_path)
    assert sorted(len(job.series.slices) for job in jobs) == [4, 6]
    assert sorted(note for job in jobs for note in job.series.notes) == ["1 copies of instances left out"]


def test_acquisitions_that_repeat_a_region_are_two_volumes_of_one_series(tmp_path):
    for number in (1, 2):
        write_series(
            tmp_path / "x" / str(number),
            study=1,
            series=1,
            change=lambda d, k, n=number: (
                setattr(d, "AcquisitionNumber", n),
                setattr(d, "SOPInstanceUID", f"{UID}.9.{n}.{k}"),
            ),
        )
    jobs = jobs_of(tmp_path)
    assert len(jobs) == len({job.record_id for job in jobs}) == 2
    assert len({job.study_id for job in jobs}) == 1


def test_a_file_without_pixels_of_its_own_size_fails_alone(tmp_path):
    paths = write_series(tmp_path / "x", study=1, series=1)
    (tmp_path / "x/cut.dcm").write_bytes(paths[0].read_bytes()[:200])
    jobs = jobs_of(tmp_path)
    assert sorted(job.series is None for job in jobs) == [False, True]
    broken = next(job for job in jobs if job.series is None)
    with pytest.raises(Exception, match=r"SOPClassUID|cut off|ends before|cannot be parsed") as told:
        show_volume(broken, PLAIN, allow_gaps=False, on_irregular="reject")
    assert told.type.__module__ == "medvl.errors"


def test_nifti_needs_a_place_and_one_frame(tmp_path):
    import nibabel

    values = np.zeros((4, 5, 6), np.int16)
    image = nibabel.Nifti1Image(values, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(Exception, match="does not say how it lies"):
        show_volume(volume_job(tmp_path / "a.nii"), PLAIN, allow_gaps=False, on_irregular="reject")
    write_nifti(tmp_path / "b.nii", np.zeros((4, 5, 6, 3), np.int16), np.eye(4))
    with pytest.raises(MultiFrame, match="holds 3 volumes"):
        show_volume(volume_job(tmp_path / "b.nii"), PLAIN, allow_gaps=False, on_irregular="reject")


def test_values_that_are_no_hu_are_kept_with_a_note_or_refused(tmp_path):
    # stored values without their intercept: air at 24, tissue at 1064
    values = np.full((20, 20, 20), 24, np.int16)
    values[5:15, 5:15, 5:15] = 1064
    write_nifti(tmp_path / "a.nii.gz", values, np.eye(4))
    shown = show_volume(volume_job(tmp_path / "a.nii.gz"), PLAIN, allow_gaps=False, on_irregular="reject")
    assert (shown.stored == values).all()
    assert "was the rescale left out" in " ".join(shown.about["notes"])

    def bare(dataset, k: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    write_series(tmp_path / "d", study=1, series=1, change=bare)
    job = next(job for job in jobs_of(tmp_path) if job.series)
    with pytest.raises(BadImage, match="values of the series are modality_lut, not HU"):
        show_volume(job, PLAIN, allow_gaps=False, on_irregular="reject")


def test_boxes_outside_are_left_out_with_a_note(tmp_path):
    values = np.zeros((10, 10, 10), np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", values, np.diag([2.0, 2, 2, 1]))
    boxes = (
        Box("inside", 3, 3, 7, 7, 3, 7),
        Box("cut", -50, 3, 3, 7, 3, 7),
        Box("far", 90, 90, 99, 99, 90, 99),
    )
    shown = show_volume(volume_job(path, boxes=boxes), PLAIN, allow_gaps=False, on_irregular="reject")
    # edges at −1 + 2·i: 3 … 7 mm is 2 … 4
    assert shown.about["boxes"] == (Box("inside", 2, 2, 4, 4, 2, 4), Box("cut", 0, 2, 2, 4, 2, 4))
    assert "1 boxes lie outside" in shown.about["notes"][-1]


def test_a_table_of_structures_must_name_known_parts(tmp_path):
    (tmp_path / "parts.yaml").write_text("lung: [left_lung]\n")
    with pytest.raises(ConfigError, match="has a part 'lung'"):
        volume_source(VolumeSpec(), "ct", masks=None, structures=tmp_path / "parts.yaml")
    (tmp_path / "parts.yaml").write_text("lungs: left_lung\n")
    with pytest.raises(ConfigError, match="part 'lungs' of the table of structures is no list"):
        volume_source(VolumeSpec(), "ct", masks=None, structures=tmp_path / "parts.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0_mm": 9}, r"empty box: \(9.0, 0.0, 0.0\) to \(5.0, 5.0, 5.0\)"),
        ({"z1_mm": "far"}, "line 2 has a coordinate that is no number"),
        ({"z0_mm": "nan"}, "empty box"),
    ],
)
def test_boxes_must_be_boxes(tmp_path, change, message):
    box = {f"{axis}0_mm": 0 for axis in "xyz"} | {f"{axis}1_mm": 5 for axis in "xyz"}
    table = write_table(tmp_path / "boxes.csv", [{"image": "a", "label": "nodule", **box, **change}])
    with pytest.raises(BadTable, match=message):
        read_boxes(table, millimetres=True)


def test_boxes_of_volumes_are_in_millimetres_under_any_key(tmp_path):
    box = {f"{axis}0_mm": 0 for axis in "xyz"} | {f"{axis}1_mm": 5 for axis in "xyz"}
    rows = [
        {"image": "a", "study_uid": "", "label": "Nodule"},
        {"image": "", "study_uid": "1.2", "label": "n"},
    ]
    table = write_table(tmp_path / "boxes.csv", [row | box for row in rows])
    assert set(read_boxes(table, millimetres=True)) == {"a", "1.2"}
    assert read_boxes(table, millimetres=True)["a"] == (Box("nodule", 0, 0, 5, 5, 0, 5),)
    with pytest.raises(BadTable, match="lacks coordinates"):
        read_boxes(table)
    flat = write_table(
        tmp_path / "flat.csv", [{"image": "a", "label": "n", "x0": 0, "y0": 0, "x1": 1, "y1": 1}]
    )
    with pytest.raises(BadTable, match="lacks coordinates") as told:
        read_boxes(flat, millimetres=True)
    assert "x0_mm, y0_mm, z0_mm" in str(told.value)


def test_ct_rate_with_masks_of_a_folder(tmp_path):
    root = layouttrees.ct_rate(tmp_path / "source")
    stem = next(root.rglob("*.nii.gz")).name
    write_nifti(tmp_path / "masks" / stem, np.ones((2, 2, 2), np.uint8), np.eye(4))
    volumes = volume_source(PLAIN, "ct", masks=tmp_path / "masks", structures=None)
    paired, layout = pair_source(root, Tables(), modality="ct", volumes=volumes)
    assert layout == "ct-rate"
    assert {item.path.name for item in paired.items if item.mask} == {stem}
    assert {item.kind for item in paired.items} == {"nifti"}
    jobs = plan_jobs(root, paired, ids=Pseudonyms(KEY), split=(0.8, 0.1, 0.1), seed=0)
    assert len(jobs) == len(paired.items) and all(job.series is None for job in jobs)


def test_headers_read_by_processes_are_the_same(tmp_path, monkeypatch):
    write_series(tmp_path / "x", study=1, series=1)
    write_series(tmp_path / "y", study=2, series=1)
    (tmp_path / "x/cut.dcm").write_bytes(bytes(128) + b"DICM")
    volumes = volume_source(PLAIN, "ct", masks=None, structures=None)
    seen = []
    monkeypatch.setattr(planning, "_MANY_FILES", 1)
    monkeypatch.setattr(planning, "_FILES_AT_ONCE", 4)
    with header_map(volumes, 2, progress=lambda *told: seen.append(told)) as mapped:
        found, _ = pair_source(tmp_path, Tables(), modality="ct", volumes=volumes, map_headers=mapped)
    assert found == pair_source(tmp_path, Tables(), modality="ct", volumes=volumes)[0]
    assert seen[-1] == (12, 13, "reading headers")


def test_a_box_on_the_other_side_than_the_report_says(prepared):
    store, _ = prepared
    record = next(record for record in store.records if record.boxes)
    # the box lies at x = 8 … 10 of 12, to the patient's right, and the report says left
    said = replace(record, retrieval=("Lung nodule in the left lower lobe.",))
    right = replace(record, retrieval=("Lung nodule in the right lower lobe.",))
    checks = {check.name: check.count for check in check_records([said, right])}
    assert checks["box-side"] == 1


def test_a_table_may_name_the_series(tmp_path):
    write_series(tmp_path / "x", study=1, series=1)
    write_series(tmp_path / "y", study=1, series=2)
    write_table(
        tmp_path / "reports.csv",
        [{"SeriesInstanceUID": f"{UID}.1.{k}", "report": f"Nodule {k}. " * 3} for k in (1, 2)],
    )
    texts = {job.series.slices[0].series_uid[-1]: job.report for job in jobs_of(tmp_path)}
    assert texts["1"].startswith("Nodule 1") and texts["2"].startswith("Nodule 2")
