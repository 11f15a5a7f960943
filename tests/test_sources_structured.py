"""The text of structured reports: two that ship with pydicom, and some that highdicom writes."""

from __future__ import annotations

import datetime
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medvl.errors import InputError, NestingLimit
from medvl.preprocess.sources.structured import read_structured

CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS


def packaged(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


# --- files that ship with pydicom (PREPROCESS 1.4, row 16) --------------------------------------------------


@pytest.mark.traps(row=16)
def test_a_sentence_split_over_text_and_a_measurement_is_one_line():
    report = read_structured(packaged("test-SR.dcm"))
    # the dump of the file: TEXT "A mass of", NUM 3 cm, TEXT "was detected.", once running, once separate
    assert report.text.split("\n")[:2] == ["A mass of 3 cm was detected."] * 2
    assert report.text.split("\n")[2:6] == ["Sample Text", "A", "B", "C"]
    assert "20001206" not in report.text and "Sample Code" not in report.text
    assert {"Riesmeier^Jörg", "Observer^Verifying", "Test^S R"} <= set(report.names)
    assert (report.status, report.accessions, report.patient, report.date) == ("final", (), "", "")
    assert report.study_uids == ("1.2.276.0.7230010.3.1.4.2139363186.7819.982086466.2",)
    assert report.replaces == ("1.2.276.0.7230010.3.1.4.2139363186.7819.982086466.1",)
    assert report.left_out == {"context": 9, "reference": 1, "without words": 4}


@pytest.mark.traps(row=16)
def test_a_basic_text_report_without_observers():
    report = read_structured(packaged("reportsi.dcm"))
    assert report.text == "SECTION HEADING:\nEnter text"  # the observer's name and place say "Enter text" too
    assert report.status == "preliminary"  # PARTIAL and UNVERIFIED
    assert report.left_out == {"context": 4, "without words": 2}


# --- written by highdicom -----------------------------------------------------------------------------------


def code(meaning: str, value: str = "") -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(value or "".join(word[0] for word in meaning.split()).upper(), "99T", meaning)


def container(name: str, *items: hd.sr.ContentItem, running: bool = False) -> hd.sr.ContainerContentItem:
    item = hd.sr.ContainerContentItem(name=code(name), relationship_type=CONTAINS)
    item.ContinuityOfContent = "CONTINUOUS" if running else "SEPARATE"
    item.ContentSequence = list(items)
    return item


def words(name: str, value: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(name=code(name), value=value, relationship_type=CONTAINS)


def number(name: str, value: float, unit=codes.UCUM.Millimeter) -> hd.sr.NumContentItem:
    return hd.sr.NumContentItem(name=code(name), value=value, unit=unit, relationship_type=CONTAINS)


def written(path: Path, *items: hd.sr.ContentItem, **elements: str) -> Path:
    root = hd.sr.ContainerContentItem(name=code("Chest radiography report"))
    root.ContentSequence = list(items)
    image = pydicom.dcmread(packaged("CT_small.dcm"))
    image.AccessionNumber = "ACC7"
    image.PatientName = "DOE^JOHN"
    report = hd.sr.ComprehensiveSR(
        evidence=[image],
        content=root,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        is_complete=elements.pop("complete", "yes") == "yes",
        is_final=True,
        is_verified=True,
        institution_name="Hospital",
        institutional_department_name="Radiology",
        verifying_observer_name="ROE^JANE",
        verifying_organization="Hospital",
    )
    for keyword, value in elements.items():
        setattr(report, keyword, value)
    report.save_as(path)
    return path


@pytest.mark.filterwarnings("ignore:A value of type")
def test_sections_texts_codes_and_measurements(tmp_path):
    path = written(
        tmp_path / "sr.dcm",
        container("Indications for Procedure", words("Indication", "Cough.")),
        container(
            "Findings",
            words("Finding", "Clear lungs."),
            container("Lungs", words("Observation", "A nodule"), number("Diameter", 4.2)),
            hd.sr.CodeContentItem(
                name=code("Laterality"), value=code("Left upper lobe"), relationship_type=CONTAINS
            ),
        ),
        words("Impression", "Nodule."),
    )
    report = read_structured(path)
    assert report.text == (
        "INDICATIONS FOR PROCEDURE:\nCough.\nFINDINGS:\nClear lungs.\nLUNGS:\nA nodule\nDiameter: 4.2 mm\n"
        "FINDINGS:\nLaterality: Left upper lobe\nIMPRESSION:\nNodule."
    )
    image = pydicom.dcmread(packaged("CT_small.dcm"))
    assert (report.accessions, report.patient) == (("ACC7",), "1CT1")
    assert report.study_uids == (image.StudyInstanceUID,) and report.date == "20040119"
    assert {"DOE^JOHN", "ROE^JANE"} <= set(report.names) and {"ACC7", "1CT1"} <= set(report.ids)
    assert report.status == "final" and "DOE" not in repr(report)


def test_persons_and_times_leave_a_gap_in_running_text_and_nothing_elsewhere(tmp_path):
    person = hd.sr.PnameContentItem(name=code("Physician"), value="ROE^JANE", relationship_type=CONTAINS)
    day = hd.sr.DateContentItem(name=code("Day"), value=datetime.date(2024, 1, 2), relationship_type=CONTAINS)
    running = container("Findings", words("x", "Told to"), person, words("x", ", on"), day, running=True)
    report = read_structured(written(tmp_path / "sr.dcm", running, container("Discussion", person, day)))
    assert report.text == "FINDINGS:\nTold to ___, on ___"
    assert report.left_out == {"person or time": 2}


def test_a_partial_report_is_preliminary(tmp_path):
    path = written(tmp_path / "sr.dcm", words("Impression", "Nodule."), CompletionFlag="PARTIAL")
    assert read_structured(path).status == "preliminary"


def test_hostile_trees_are_refused(tmp_path):
    dataset = pydicom.dcmread(packaged("reportsi.dcm"))
    inner = Dataset()
    inner.ValueType, inner.RelationshipType, inner.TextValue = "TEXT", "CONTAINS", "deep"
    for _ in range(80):
        outer = Dataset()
        outer.ValueType, outer.RelationshipType, outer.ContentSequence = "CONTAINER", "CONTAINS", [inner]
        inner = outer
    dataset.ContentSequence = [inner]
    dataset.save_as(tmp_path / "deep.dcm")
    with pytest.raises(NestingLimit, match="nested more than 64 deep"):
        read_structured(tmp_path / "deep.dcm")
    flat = Dataset()
    flat.ValueType, flat.RelationshipType, flat.TextValue = "TEXT", "CONTAINS", "x"
    dataset.ContentSequence = [flat] * 20_001
    dataset.save_as(tmp_path / "wide.dcm")
    with pytest.raises(InputError, match="more than 20,000 content items"):
        read_structured(tmp_path / "wide.dcm")
