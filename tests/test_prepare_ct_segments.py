"""DICOM segmentations as masks: of the series that they name, and of others of that scan."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from ctcases import UID, write_series
from highdicom.sr.coding import CodedConcept
from maskcases import HEART, LUNG, NUMBER, expected, label_map, planned, shown

from medvl.errors import MultiFrame
from medvl.preprocess.structures_seg import read_segmentation


def write_seg(path: Path, slices: list[Path], kind: str = "BINARY", *, sparse: bool = True) -> None:
    """Write lung and heart as a DICOM segmentation with highdicom, which knows the standard by itself."""
    sources = [pydicom.dcmread(each) for each in slices]
    values = label_map().transpose(2, 1, 0)
    masks = np.stack([values == 4, values == 9], -1)
    array = masks.astype(np.float32) if kind == "FRACTIONAL" else masks.astype(np.uint8)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        "t", CodedConcept("123110", "DCM", "Artificial Intelligence"), "1"
    )

    def segment(number: int, label: str, code: CodedConcept) -> highdicom.seg.SegmentDescription:
        return highdicom.seg.SegmentDescription(
            number, label, CodedConcept("123037004", "SCT", "Anatomical Structure"), code,
            highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm,
        )  # fmt: skip

    made = highdicom.seg.Segmentation(
        sources,
        array,
        highdicom.seg.SegmentationTypeValues[kind],
        [
            segment(1, "Segment 1", CodedConcept("39607008", "SCT", "Lung")),
            segment(2, "Heart", CodedConcept("80891009", "SCT", "Heart")),
        ],
        series_instance_uid=f"{UID}.77",
        series_number=77,
        sop_instance_uid=f"{UID}.77.1",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=sparse,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
@pytest.mark.parametrize("sparse", [True, False])
def test_a_dicom_segmentation(tmp_path, kind, sparse):
    slices = write_series(tmp_path / "dicom", study=1, series=1)
    write_series(tmp_path / "other", study=1, series=2)
    write_seg(tmp_path / "seg/a.dcm", slices, kind, sparse=sparse)
    jobs, paired = planned(tmp_path)
    assert not [entry for entry in paired.unpaired if entry.reason != "image_without_report"]
    for job in jobs:  # the series that it names, and the other reconstruction of that scan
        assert job.mask is not None and job.mask.shared == (Path(job.path).parent.name == "other")
        volume = shown(job)
        assert (volume.parts == expected(volume.stored.shape, (LUNG, "lungs"), (HEART, "heart"))).all()
        assert any("drawn on another series" in note for note in volume.about["notes"]) == job.mask.shared


FINE = tuple(99.0 + 2 * k for k in range(12))
"""Twice as fine as a series of ctcases, whose slices lie from 100 to 120 mm, and half a slice off it."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("zs", "change", "served"),
    [
        (FINE, {}, True),
        ((*FINE, 123.0, 125.0), {}, True),  # one slice of the named series, 4 mm, may be missing
        ((*FINE, 123.0, 125.0, 127.0), {}, False),
        (tuple(z + 400 for z in FINE), {}, False),
        (FINE, {"FrameOfReferenceUID": f"{UID}.9.0"}, False),
        (FINE, {"FrameOfReferenceUID": ""}, False),
        (FINE, {"ImagePositionPatient": [30, -8, None]}, False),  # beside it
        (FINE, {"StudyInstanceUID": f"{UID}.5", "AccessionNumber": "OTHER"}, False),
    ],
)
def test_a_segmentation_serves_what_it_covers_in_its_frame_of_reference(tmp_path, zs, change, served):
    def changed(dataset, k):
        for keyword, value in change.items():
            if keyword == "ImagePositionPatient":
                value = [*value[:2], zs[k]]
            setattr(dataset, keyword, value)

    slices = write_series(tmp_path / "dicom", study=1, series=1)
    write_series(tmp_path / "other", study=1, series=2, zs=zs, change=changed)
    write_seg(tmp_path / "seg/a.dcm", slices)
    jobs, _ = planned(tmp_path)
    named, other = sorted(jobs, key=lambda job: Path(job.path).parent.name)
    assert named.mask is not None and not named.mask.shared
    assert (other.mask is not None) == served
    if served:
        volume = shown(other)
        affine = np.reshape(volume.about["affine_ras"], (4, 4))
        index = np.argwhere(volume.parts == NUMBER["heart"])
        z = affine[2, 2] * index[:, 2] + affine[2, 3]
        # The heart has slices 1 to 3, at 104, 108 and 112 mm, so its edges are at 102 and 114.
        assert (z.min(), z.max()) == (103, 113)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("sparse", [True, False])
def test_without_the_named_series_the_frames_say_what_was_looked_at(tmp_path, sparse):
    """The drawn frames end a slice before the series does: 5 of 6 slices hold lung or heart."""
    slices = write_series(tmp_path / "dicom", study=1, series=1)
    write_seg(tmp_path / "seg/a.dcm", slices, sparse=sparse)
    for path in slices:
        path.unlink()
    write_series(tmp_path / "other", study=1, series=2, zs=[100.0 + 4 * k for k in range(8)])
    (job,), paired = planned(tmp_path)
    assert job.mask is None
    assert [entry.reason for entry in paired.unpaired if "mask" in entry.reason] == ["mask_without_volume"]
    for path in (tmp_path / "other").iterdir():
        path.unlink()
    write_series(tmp_path / "other", study=1, series=2)
    (job,), paired = planned(tmp_path)
    assert job.mask is not None and job.mask.shared  # 1 slice past the drawn ones, or none
    assert not [entry for entry in paired.unpaired if "mask" in entry.reason]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_segmentation_off_the_stack_costs_a_note_and_not_the_volume(tmp_path):
    slices = write_series(tmp_path / "dicom", study=1, series=1)
    write_seg(tmp_path / "seg/a.dcm", slices)
    dataset = pydicom.dcmread(tmp_path / "seg/a.dcm")
    place = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    place.ImagePositionPatient[2] += 1.5
    dataset.save_as(tmp_path / "seg/a.dcm")
    with pytest.raises(MultiFrame, match="lie on no regular stack"):
        read_segmentation(tmp_path / "seg/a.dcm")
    (job,), _ = planned(tmp_path)
    volume = shown(job)
    assert volume.parts is None
    assert "mask not used: the frames of the segmentation lie on no regular stack." in volume.about["notes"]
