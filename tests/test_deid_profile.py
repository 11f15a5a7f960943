"""Every row of PS3.15 Table E.1-1, at the top of a data set and nested, does what its code demands."""

from __future__ import annotations

import io
import re

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medvl.errors import UsageError
from medvl.preprocess.deid.header import clean_dataset
from medvl.preprocess.deid.profile import DEFAULT, OPTIONS, Profile, row_of, rows
from medvl.preprocess.deid.values import cap_age, dummy, move_date
from medvl.preprocess.pseudonyms import Pseudonyms

IDS = Pseudonyms(bytes(range(32)))
PATIENT = "P-0815"
SECRET = "SECRETQ7"
EVERYTHING = Profile(frozenset(OPTIONS))

# A value of each VR that can be found again.
VALUES = {
    "AE": SECRET,
    "AS": "093Y",
    "CS": SECRET,
    "DA": "20150312",
    "DS": "77.25",
    "DT": "20150312101500",
    "IS": "771234",
    "LO": SECRET,
    "LT": SECRET,
    "OB": SECRET.encode(),
    "PN": f"{SECRET}^JOHN",
    "SH": SECRET,
    "ST": SECRET,
    "TM": "101500",
    "UC": SECRET,
    "UI": "1.2.3.771234",
    "UN": SECRET.encode(),
    "UR": f"http://{SECRET}",
    "US": 7712,
    "UT": SECRET,
}


def example(tag: int, vr: str) -> DataElement:
    if vr != "SQ":
        return DataElement(tag, vr, VALUES[vr])
    item = Dataset()
    item.PatientName, item.CodeMeaning, item.CodeValue = VALUES["PN"], SECRET, SECRET
    item.ReferencedSOPInstanceUID = VALUES["UI"]
    return DataElement(tag, vr, [item])


def vr_of(tag: int) -> str:
    return dictionary_VR(tag).split(" or ")[0] if dictionary_has_tag(tag) else "LO"


def tag_of(written: str) -> int:
    if "gggg" in written:
        return 0x00091010
    digits = re.sub(r"[(),]", "", written.replace("50xx,xxxx", "5002,3000").replace("60xx", "6002"))
    return int(digits, 16)


def cleaned(element: DataElement, *, nested: bool, profile: Profile) -> Dataset:
    dataset = Dataset()
    dataset.add(element)
    if nested:
        inner, dataset = dataset, Dataset()
        dataset.ReferencedSeriesSequence = [inner]
    clean_dataset(dataset, ids=IDS, patient=PATIENT, profile=profile)
    return dataset.ReferencedSeriesSequence[0] if nested else dataset


def written(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    return stream.getvalue()


ROWS = [row for row in rows() if row.tag[1:5] not in ("0000", "0002", "0004")]
"""Command, file meta and directory groups have no place in an image's data set."""


@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
@pytest.mark.parametrize("row", ROWS, ids=[f"{row.tag} {row.keyword}" for row in ROWS])
def test_a_row_of_the_basic_profile(row, nested):
    """X: gone. Z: empty. D: a dummy. U: another UID. Where the code leaves a choice, the strictest type."""
    tag = tag_of(row.tag)
    special = tag >> 16 & 1 or tag >> 24 in (0x50, 0x60)
    vr = "OB" if special else vr_of(tag)
    dataset = cleaned(example(tag, vr), nested=nested, profile=Profile())
    set_by_the_cleaner = row.keyword in ("PatientName", "PatientID", "AccessionNumber")
    if row.basic == "X":
        assert tag not in dataset
        return
    element = dataset[tag]
    if set_by_the_cleaner:
        expected = IDS.accession(SECRET) if row.keyword == "AccessionNumber" else IDS.patient(PATIENT)
        assert str(element.value) == expected
    elif row.basic in ("Z", "X/Z"):
        assert not element.value
    elif row.basic == "U" or vr == "UI":
        assert element.value == IDS.uid(VALUES["UI"])
    elif vr == "SQ":
        assert element.value[0].ReferencedSOPInstanceUID == IDS.uid(VALUES["UI"])
        assert "PatientName" not in element.value[0] or SECRET not in str(element.value[0].PatientName)
    else:
        assert element.value == dummy(vr)
    assert SECRET.encode() not in written(dataset) or row.basic == "X/Z/U*"


@pytest.mark.parametrize("row", [row for row in ROWS if "dates" in row.options], ids=lambda row: row.keyword)
def test_a_row_of_the_modified_dates_option(row):
    tag = tag_of(row.tag)
    vr = vr_of(tag)
    dataset = cleaned(example(tag, vr), nested=True, profile=DEFAULT)
    days = IDS.shift_days(PATIENT)
    if vr in ("DA", "DT"):
        assert dataset[tag].value == move_date(VALUES[vr], days=days) != VALUES[vr]
    elif vr == "TM":
        assert dataset[tag].value == VALUES["TM"]
    else:  # the offset of the time zone and two binary stamps follow the basic profile
        assert tag not in dataset or dataset[tag].value != VALUES[vr]


@pytest.mark.parametrize("option", ["uids", "patient", "device", "institution"])
def test_rows_of_the_retain_options_keep_their_values(option):
    profile = Profile(frozenset({option}))
    kept = [row for row in ROWS if row.options.get(option) == "K" and row.keyword != "PatientAge"]
    assert len(kept) >= 8
    for row in kept:
        vr = vr_of(tag_of(row.tag))
        dataset = cleaned(example(tag_of(row.tag), vr), nested=True, profile=profile)
        if vr == "SQ":  # kept, and cleaned inside
            assert SECRET not in str(dataset[tag_of(row.tag)].value[0].get("PatientName", ""))
        else:
            assert dataset[tag_of(row.tag)].value == VALUES[vr]


def test_rows_of_the_clean_descriptors_option_lose_the_patient_and_keep_the_words():
    for row in ROWS:
        vr = "SQ" if "x" in row.tag else vr_of(tag_of(row.tag))
        if row.options.get("descriptors") != "C" or vr in ("SQ", "OB", "CS", "SH"):
            continue
        dataset = Dataset()
        dataset.PatientName = "MUSTERMANN^ERIKA"
        dataset.add(DataElement(tag_of(row.tag), vr, "CT of Erika Mustermann"))
        clean_dataset(dataset, ids=IDS, patient=PATIENT, profile=EVERYTHING)
        assert dataset[tag_of(row.tag)].value == "CT of [name]", row.keyword


def test_the_table_is_that_of_the_standard():
    # Table E.1-1 of edition 2026c: 656 rows, of which one stands for private and three for repeating groups.
    assert len(rows()) == len({row.tag for row in rows()}) == 656
    assert sum("x" in row.tag for row in rows()) == 3
    assert {row.basic for row in rows()} == {"X", "Z", "D", "U", "X/Z", "X/D", "Z/D", "X/Z/D", "X/Z/U*"}
    for row in rows():
        if "x" not in row.tag and "g" not in row.tag:
            assert keyword_for_tag(tag_of(row.tag)) == row.keyword
    assert sum(not row.keyword for row in rows()) < 30  # younger than the installed dictionary
    # Spot checks against the printed table.
    printed = {
        "PatientName": "Z",
        "PatientID": "Z/D",
        "PatientBirthDate": "Z",
        "PatientSex": "Z",
        "AccessionNumber": "Z",
        "StudyDate": "Z",
        "StudyDescription": "X",
        "PatientAge": "X",
        "OtherPatientIDs": "X",
        "InstitutionName": "X/Z/D",
        "SOPInstanceUID": "U",
        "ImageComments": "X",
        "ContentSequence": "D",
        "SourceImageSequence": "X/Z/U*",
    }
    assert {row.keyword: row.basic for row in rows() if row.keyword in printed} == printed


def test_codes_are_those_of_the_dictionary():
    codes = pytest.importorskip("pydicom.sr.codedict").codes.DCM
    for option, name in {
        "dates": "RetainLongitudinalTemporalInformationModifiedDatesOption",
        "patient": "RetainPatientCharacteristicsOption",
        "content": "CleanStructuredContentOption",
        "descriptors": "CleanDescriptorsOption",
        "device": "RetainDeviceIdentityOption",
        "institution": "RetainInstitutionIdentityOption",
        "uids": "RetainUidsOption",
    }.items():
        assert getattr(codes, name).value == OPTIONS[option][0]
        assert getattr(codes, name).meaning == OPTIONS[option][1]


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(
        UsageError, match=r"'date' is no option of the profile. Allowed: .* Did you mean 'dates'"
    ):
        Profile(frozenset({"date"}))


def test_repeating_groups_and_private_tags_have_rows():
    assert row_of(0x60020010) is None and row_of(0x60023000).keyword == "OverlayData"
    assert row_of(0x50080010).keyword == "CurveData"
    assert row_of(0x00091001).keyword == "PrivateAttributes"


@pytest.mark.parametrize(
    ("value", "moved"),
    [
        ("20150301", "20150219"),
        ("2015.03.01", "2015.02.19"),
        ("20150301101500.123456+0100", "20150219101500.123456"),
        ("00010105", None),
        ("20151340", None),
        ("20150101-20150202", None),
    ],
)
def test_dates_move_by_days_or_not_at_all(value, moved):
    assert move_date(value, days=-10) == moved


def test_ages():
    assert [cap_age(age) for age in ("093Y", "090Y", "089Y", "006M", "4710W", "93")] == [
        "090Y",
        "090Y",
        "089Y",
        "006M",
        "090Y",
        "",
    ]


def test_a_cleaned_data_set_can_be_written_and_read(tmp_path):
    dataset = Dataset()
    for row in ROWS:
        tag = tag_of(row.tag)
        if not (tag >> 16 & 1 or tag >> 24 in (0x50, 0x60)):
            dataset.add(example(tag, vr_of(tag)))
    clean_dataset(dataset, ids=IDS, patient=PATIENT)
    (tmp_path / "a.dcm").write_bytes(written(dataset))
    assert dcmread(tmp_path / "a.dcm", force=True).PatientIdentityRemoved == "YES"


def test_against_the_table_of_an_independent_tool():
    """dicom-anonymizer carries the same table, transcribed by others: tag by tag the same basic code."""
    theirs = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    names = "D Z X U Z_D X_Z X_D X_Z_D X_Z_U_STAR".split()
    codes = {
        tag: name.replace("_STAR", "*").replace("_", "/")
        for name in names
        for tag in getattr(theirs, f"{name}_TAGS")
        if len(tag) == 2
    }
    mine = {
        divmod(tag_of(row.tag), 2**16): row.basic
        for row in rows()
        if "x" not in row.tag and "g" not in row.tag
    }
    assert mine == codes
