"""prepare of CT, one volume at a time: irregular series, NIfTI, tables, boxes, masks of a folder."""

from __future__ import annotations

from pathlib import Path

import layouttrees
import numpy as np
import pytest
from ctcases import (
    AFFINE,
    PLAIN,
    UID,
    place_hu,
    write_nifti,
    write_series,
    write_table,
)

from medvl.errors import BadImage, BadTable, ConfigError, GapInSeries, IrregularSeries, MultiFrame
from medvl.preprocess import planning
from medvl.preprocess.pictures import show_volume
from medvl.preprocess.plan import Job
from medvl.preprocess.planning import Tables, header_map, pair_source, plan_jobs, volume_source
from medvl.preprocess.pseudonyms import Pseudonyms
from medvl.preprocess.sources.labels import read_boxes
from medvl.records import Box
from medvl.specs import VolumeSpec

KEY = bytes(range(32))


def volume_job(path: Path, **values) -> Job:
    return Job("r", "s", "p", "train", str(path), "file-0", "", **values)


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
    with pytest.raises(MultiFrame, match=r"holds 3 volumes\. .*medvl ct prepare that is --frame"):
        show_volume(volume_job(tmp_path / "b.nii"), PLAIN, allow_gaps=False, on_irregular="reject")


def test_one_volume_of_four_axes_by_the_frame_of_the_spec(tmp_path):
    usual = {"allow_gaps": False, "on_irregular": "reject"}
    phases = place_hu(*np.indices((4, 5, 6))).astype(np.int16)[..., None] + np.array([0, 7, 20], np.int16)
    write_nifti(tmp_path / "b.nii", phases, AFFINE)
    write_nifti(tmp_path / "alone.nii", phases[..., 1], AFFINE)
    expected = show_volume(volume_job(tmp_path / "alone.nii"), PLAIN, **usual).stored
    second = PLAIN.model_copy(update={"frame": 1})
    for name in ("b.nii", "alone.nii"):  # a file with three axes is the volume that it is
        assert np.array_equal(show_volume(volume_job(tmp_path / name), second, **usual).stored, expected)
    with pytest.raises(MultiFrame, match=r"volume 3 was asked for; the file holds volumes 0 … 2"):
        show_volume(volume_job(tmp_path / "b.nii"), PLAIN.model_copy(update={"frame": 3}), **usual)
    with pytest.raises(ConfigError, match=r"frame is -1: .*greater than or equal to 0"):
        VolumeSpec.from_json({"frame": -1})


def test_the_frame_is_in_the_digest_only_where_it_is_chosen():
    """A store made before there was a frame keeps its digest."""
    assert "frame" not in VolumeSpec().model_dump(mode="json")
    assert VolumeSpec(frame=None) == VolumeSpec() and VolumeSpec().digest == "2e673bf323fca6ef"
    chosen = VolumeSpec(frame=0)
    assert chosen.digest != VolumeSpec().digest
    assert VolumeSpec.from_json(chosen.model_dump(mode="json")) == chosen


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


def test_a_table_may_name_the_series(tmp_path):
    write_series(tmp_path / "x", study=1, series=1)
    write_series(tmp_path / "y", study=1, series=2)
    write_table(
        tmp_path / "reports.csv",
        [{"SeriesInstanceUID": f"{UID}.1.{k}", "report": f"Nodule {k}. " * 3} for k in (1, 2)],
    )
    texts = {job.series.slices[0].series_uid[-1]: job.report for job in jobs_of(tmp_path)}
    assert texts["1"].startswith("Nodule 1") and texts["2"].startswith("Nodule 2")
