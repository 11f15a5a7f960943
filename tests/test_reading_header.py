"""What the header says: identifiers, view, laterality, and which spacing is meant."""

from __future__ import annotations

import warnings

import pydicom
import pytest
from pydicom.sr._snomed_dict import mapping as snomed_retired
from readingcases import golden

from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.dicom import VIEW_CODES, read_header

# --- header, view, laterality ---


def test_header_holds_what_pairing_needs():
    path = golden("77654033/CR1/6154")
    header, dataset = read_header(path), pydicom.dcmread(path)
    assert header.patient_id == dataset.PatientID and header.sop_uid == dataset.SOPInstanceUID
    assert header.study_uid == dataset.StudyInstanceUID and header.series_uid == dataset.SeriesInstanceUID
    assert (header.modality, header.rows, header.columns, header.frames) == (
        "CR",
        dataset.Rows,
        dataset.Columns,
        1,
    )
    assert header.transfer_syntax == dataset.file_meta.TransferSyntaxUID and header.has_pixels
    assert header.burned_in is None
    names = {field for field in type(header).__dataclass_fields__}
    assert not names & {"patient_name", "birth_date", "institution"}


def test_header_of_an_object_without_pixels():
    header = read_header(golden("reportsi.dcm"))
    assert (header.modality, header.rows, header.has_pixels) == ("SR", 0, False)


@pytest.mark.parametrize(
    "position, code, expected",
    [
        ("PA", None, "PA"),
        ("ap ", None, "AP"),
        ("LL", None, "LATERAL"),
        ("RLD", None, "RLD"),
        (None, "272479007", "PA"),
        (None, "R-10206", "AP"),
        (None, "399198007", "LATERAL"),
        (None, "399110001", None),
        ("PA", "399348003", "PA"),
        (None, None, None),
    ],
)
def test_view_from_position_or_code(tmp_path, position, code, expected):
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    if position is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lower case is not allowed, and that is the test
            dataset.ViewPosition = position
    if code is not None:
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "x"
        dataset.ViewCodeSequence = [item]
    dataset.save_as(tmp_path / "a.dcm")
    assert read_header(tmp_path / "a.dcm").view == expected
    assert read_image(tmp_path / "a.dcm").view == expected


def test_retired_view_codes_are_those_of_pydicoms_table():
    table = snomed_retired["SCT"]
    for new in ("399348003", "272479007", "399067008", "399173006", "399198007"):
        assert VIEW_CODES[table[new]] == VIEW_CODES[new]


@pytest.mark.parametrize(
    "image, series, expected", [("R", "L", "R"), ("", "L", "L"), ("U", "", None), ("b", "", "B")]
)
def test_laterality_of_the_image_before_that_of_the_series(tmp_path, image, series, expected):
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "b" is not a defined term, and that is the test
        dataset.ImageLaterality, dataset.Laterality = image, series
        dataset.save_as(tmp_path / "a.dcm")
    assert read_header(tmp_path / "a.dcm").laterality == expected


@pytest.mark.parametrize(
    "patient, detector, film, calibration, expected",
    [
        ([0.2, 0.3], None, None, None, ((0.2, 0.3), "patient")),
        ([0.1, 0.1], [0.1, 0.1], None, None, ((0.1, 0.1), "detector")),  # PS3.3 10.7.1: equal is uncorrected
        ([0.1, 0.1], [0.1, 0.1], None, "GEOMETRY", ((0.1, 0.1), "patient")),
        ([0.09, 0.09], [0.1, 0.1], None, None, ((0.09, 0.09), "patient")),
        (None, [0.14, 0.15], None, None, ((0.14, 0.15), "detector")),
        (None, None, [0.175, 0.175], None, ((0.175, 0.175), "detector")),
        (None, None, None, None, (None, None)),
    ],
)
def test_which_spacing_is_meant(tmp_path, patient, detector, film, calibration, expected):
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    del dataset.PixelSpacing
    for keyword, value in (
        ("PixelSpacing", patient),
        ("ImagerPixelSpacing", detector),
        ("NominalScannedPixelSpacing", film),
        ("PixelSpacingCalibrationType", calibration),
    ):
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / "a.dcm")
    image = read_image(tmp_path / "a.dcm")
    assert (image.spacing_mm, image.spacing_frame) == expected
