"""One DICOM data set: no planted carrier is left, references and intervals survive, flags are set."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
from deidcases import PLANTED, TRACES, as_bytes, planted
from pydicom import dcmread, examples
from pydicom.dataset import Dataset

from medvl.errors import IncompleteDicom
from medvl.preprocess.deid.files import FileTask, clean_file
from medvl.preprocess.deid.header import clean_dataset, file_meta, identity_of
from medvl.preprocess.deid.profile import DEFAULT, OPTIONS, Profile
from medvl.preprocess.pseudonyms import Pseudonyms

IDS = Pseudonyms(bytes(range(32)))


def clean(
    data: bytes, folder: Path, *, name: str = "a", profile: Profile = DEFAULT, pixels: str = "off"
) -> Path:
    source, target = folder / f"{name}.in", folder / f"{name}.dcm"
    source.write_bytes(data)
    patient = PLANTED["PatientID"]
    task = FileTask(source, target, folder / f"{name}.json", IDS.key, patient, (), (), profile, pixels)
    outcome = clean_file(task)
    assert not outcome.refused, outcome.message
    return target


@pytest.mark.traps
def test_none_of_the_planted_carriers_is_left(tmp_path):
    before = as_bytes(planted())
    for trace in TRACES:
        assert trace.encode() in before, f"{trace} was not planted"
    after = clean(before, tmp_path).read_bytes()
    assert [trace for trace in TRACES if trace.lower().encode() in after.lower()] == []


def test_with_every_option_the_names_are_still_gone(tmp_path):
    profile = Profile(frozenset(OPTIONS) - {"uids", "institution"})
    after = clean(as_bytes(planted()), tmp_path, profile=profile).read_bytes().lower()
    left = {trace for trace in TRACES if trace.lower().encode() in after}
    assert left == {"rulefracture", "familyq", "NESTEDQ"}  # words of descriptions that name nobody
    assert b"ct for [name] rulefracture" in after


def test_the_file_is_whole(tmp_path):
    dataset = dcmread(clean(as_bytes(planted()), tmp_path))
    original = planted()
    assert dataset.preamble == bytes(128)
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert dataset.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
    assert dataset.SOPClassUID == original.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID
    assert "SourceApplicationEntityTitle" not in dataset.file_meta
    assert dataset.PixelData == original.PixelData
    for keyword in (
        "Rows",
        "PixelSpacing",
        "ImagePositionPatient",
        "RescaleSlope",
        "KVP",
        "ConvolutionKernel",
    ):
        assert dataset[keyword].value == original[keyword].value
    assert not [element for element in dataset.iterall() if element.tag.is_private]
    assert not [element for element in dataset.iterall() if element.tag.group >> 8 in (0x50, 0x60)]


def test_flags_say_what_was_done(tmp_path):
    dataset = dcmread(clean(as_bytes(planted()), tmp_path))
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.DeidentificationMethod.startswith("medvl ")
    assert [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence] == [
        "113100",
        "113107",
        "113108",
        "113104",
    ]
    assert {item.CodingSchemeDesignator for item in dataset.DeidentificationMethodCodeSequence} == {"DCM"}
    assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"
    assert "BurnedInAnnotation" not in dataset  # nobody looked
    assert (dataset.PatientAge, dataset.PatientSex, dataset.PatientBirthDate) == ("090Y", "O", "")
    assert dataset.PatientName == dataset.PatientID == IDS.patient(PLANTED["PatientID"])
    assert dataset.AccessionNumber == IDS.accession(PLANTED["AccessionNumber"])


def test_references_and_intervals_survive(tmp_path):
    first = dcmread(clean(as_bytes(planted(study=1, date="20150312")), tmp_path, name="1"))
    second = dcmread(clean(as_bytes(planted(study=2, date="20150426")), tmp_path, name="2"))
    assert first.SourceImageSequence[0].ReferencedSOPInstanceUID == second.SOPInstanceUID
    assert first.SourceImageSequence[0].ReferencedSOPClassUID == first.SOPClassUID
    assert first.StudyInstanceUID != second.StudyInstanceUID
    assert first.PatientID == second.PatientID
    days = [datetime.datetime.strptime(each.StudyDate, "%Y%m%d") for each in (first, second)]
    assert days[1] - days[0] == datetime.timedelta(days=45)
    assert first.StudyDate != "20150312"
    assert first.StudyTime == planted().StudyTime


def test_without_the_dates_option_dates_are_emptied(tmp_path):
    dataset = dcmread(clean(as_bytes(planted()), tmp_path, profile=Profile()))
    assert dataset.StudyDate == ""
    assert dataset.LongitudinalTemporalInformationModified == "REMOVED"
    assert "PatientAge" not in dataset


def test_what_the_table_does_not_name_is_handled_with_care():
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID = "QUACKENBUSH^ZEBEDEE", "MRNQ4711987"
    dataset.Manufacturer = "ACME for Quackenbush"  # LO outside the table: searched
    dataset.ScanOptions = "MRNQ4711987"  # CS cannot hold a token: taken out
    dataset.BodyPartExamined = "CHEST"
    dataset.add_new(0x00090000, "UL", 4)
    dataset.add_new(0x00080000, "UL", 4)
    dataset.add_new(0x00287777, "LO", "unknown")  # no dictionary knows it
    dataset.add_new(0x00209161, "UI", "1.2.3.4")  # ConcatenationUID
    dataset.add_new(0x00200052, "UI", "1.2.840.10008.1.4.1.1")  # a frame of reference of the standard
    clean_dataset(dataset, ids=IDS, patient="MRNQ4711987")
    assert dataset.Manufacturer == "ACME for [name]"
    assert "ScanOptions" not in dataset and 0x00287777 not in dataset
    assert 0x00090000 not in dataset and 0x00080000 not in dataset
    assert dataset.BodyPartExamined == "CHEST"
    assert dataset.ConcatenationUID == IDS.uid("1.2.3.4")
    assert dataset.FrameOfReferenceUID == "1.2.840.10008.1.4.1.1"


def test_the_words_of_a_structured_report_are_cleaned():
    dataset = Dataset()
    dataset.PatientName = "QUACKENBUSH^ZEBEDEE"
    item, person, stamp = Dataset(), Dataset(), Dataset()
    item.ValueType, item.TextValue = "TEXT", "Mr. Quackenbush, seen on 03/12/2015, has a nodule of 4.2 mm."
    person.ValueType, person.PersonName = "PNAME", "FEATHERSTONE^ORLANDO"
    stamp.ValueType, stamp.DateTime = "DATETIME", "20150312101500"
    dataset.ContentSequence = [item, person, stamp]
    clean_dataset(dataset, ids=IDS, patient="p")
    days = IDS.shift_days("p")
    moved = datetime.date(2015, 3, 12) + datetime.timedelta(days=days)
    assert item.TextValue == f"Mr. [name], seen on {moved:%m/%d/%Y}, has a nodule of 4.2 mm."
    assert person.PersonName == "REMOVED"
    assert stamp.DateTime == f"{moved:%Y%m%d}101500"


def test_identity_is_gathered_from_everywhere():
    names, numbers = identity_of(planted())
    assert {"QUACKENBUSH^ZEBEDEE", "FEATHERSTONE^ORLANDO", "PICKLEWORTH^MONA"} <= set(names)
    assert {"MRNQ4711987", "ACCQ990017", "OTHERQ5512"} <= set(numbers)


def test_a_file_without_class_is_refused():
    with pytest.raises(IncompleteDicom, match="the header lacks SOPClassUID, which a DICOM file must have"):
        file_meta(Dataset(), transfer_syntax="1.2.840.10008.1.2.1")


@pytest.mark.parametrize("name", ["ct", "mr", "jpeg2k", "rt_plan", "palette_color", "ybr_color", "overlay"])
def test_pixels_are_copied_bit_by_bit(name, tmp_path):
    path = examples.get_path(name)
    source = dcmread(path)
    target = tmp_path / "clean.dcm"
    task = FileTask(Path(path), target, tmp_path / "n.json", IDS.key, "p", (), (), DEFAULT, "off")
    assert not clean_file(task).refused
    dataset = dcmread(target)
    assert dataset.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
    assert dataset.get("PixelData") == source.get("PixelData")
    if "PixelData" in source:
        assert np.array_equal(dataset.pixel_array, source.pixel_array)


def test_bytes_behind_the_last_frame_and_bits_of_overlays_are_cut(tmp_path):
    dataset = planted()
    pixels = np.frombuffer(dataset.PixelData, "<u2")
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.PixelData = (pixels | 0x8000).astype("<u2").tobytes() + b"BEHINDQ!"
    del dataset[0x60003000]
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 15)
    after = dcmread(clean(as_bytes(dataset), tmp_path))
    assert len(after.PixelData) == 128 * 128 * 2
    assert np.array_equal(np.frombuffer(after.PixelData, "<u2"), pixels & 0x0FFF)


def test_a_deflated_file_stays_deflated(tmp_path):
    from pydicom.data import get_testdata_file

    path = Path(get_testdata_file("image_dfl.dcm", download=False))
    target = clean(path.read_bytes(), tmp_path)
    assert dcmread(target).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1.99"
    assert dcmread(target).PixelData == dcmread(path).PixelData


@pytest.mark.traps
def test_every_packaged_file_is_cleaned_or_refused(tmp_path):
    """pydicom's corpus, broken files included: a clean file that can be read, or a typed refusal."""
    from pydicom.data import get_testdata_file

    written = refused = 0
    folder = Path(get_testdata_file("CT_small.dcm", download=False)).parent
    for i, path in enumerate(sorted(folder.glob("*.dcm"))):
        target = tmp_path / f"{i}.dcm"
        outcome = clean_file(
            FileTask(path, target, tmp_path / f"{i}.json", IDS.key, "p", (), (), DEFAULT, "off")
        )
        if outcome.refused:
            refused += 1
            assert not target.exists()
            continue
        written += 1
        dataset = dcmread(target)
        assert dataset.PatientIdentityRemoved == "YES"
        assert not [element for element in dataset.iterall() if element.tag.is_private]
    assert written > 60 and refused > 2
