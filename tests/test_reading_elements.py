"""Elements read in blocks are those that pydicom reads one by one, whatever the file."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_files
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence
from readingcases import golden

from medvl.preprocess.reading import elements as reader
from medvl.preprocess.reading.elements import read_elements

PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)


def stop(tag, vr, length):
    return tag in PIXELS


def both(data: bytes, *, implicit=False, little=True):
    """Return what the block reader finds, and pydicom, each with the place where it stopped."""
    found = []
    for read in (
        lambda stream: read_elements(stream, implicit=implicit, little=little, stop=stop),
        lambda stream: read_dataset(stream, implicit, little, stop_when=stop),
    ):
        stream = io.BytesIO(data)
        found.append((read(stream), stream.tell()))
    return found


def same(one: Dataset, other: Dataset):
    assert list(one.keys()) == list(other.keys())
    for tag in one.keys():
        ours, theirs = one.get_item(tag), other.get_item(tag)
        assert type(ours) is type(theirs)
        assert ours == theirs
    assert one.original_encoding == other.original_encoding
    assert one.original_character_set == other.original_character_set


def body(dataset: Dataset, *, implicit=False) -> bytes:
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, implicit
    pydicom.filewriter.write_dataset(stream, dataset)
    return stream.getvalue()


FILES = sorted(
    Path(path)
    for path in get_testdata_files("**/*.dcm")
    if "test_files" in path and Path(path).stat().st_size < 2**20
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what it meets in these files
def test_every_packaged_file_reads_as_pydicom_reads_it(monkeypatch):
    quick = []
    inner = reader._quick
    monkeypatch.setattr(reader, "_quick", lambda *a, **k: quick.append(inner(*a, **k)) or quick[-1])
    read = 0
    for path in FILES:
        data = path.read_bytes()
        if data[128:132] != b"DICM":
            continue
        try:
            meta = pydicom.filereader.read_file_meta_info(path)
            syntax = str(meta.TransferSyntaxUID)
        except (pydicom.errors.InvalidDicomError, AttributeError):
            continue
        if syntax == "1.2.840.10008.1.2.1.99":
            continue
        start = (
            144 + meta.FileMetaInformationGroupLength if "FileMetaInformationGroupLength" in meta else None
        )
        if start is None:
            continue
        implicit, little = syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2"
        try:
            (ours, here), (theirs, there) = both(data[start:], implicit=implicit, little=little)
        except Exception as error:  # noqa: BLE001 - both must refuse it
            with pytest.raises(type(error)):
                read_dataset(io.BytesIO(data[start:]), implicit, little, stop_when=stop)
            continue
        same(ours, theirs)
        assert here == there
        read += 1
    assert read > 60
    assert sum(found is not None for found in quick) > 0.7 * read  # most never need pydicom's own reader


def odd_dataset() -> Dataset:
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "1", "é"
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Ä^B"
    dataset.ViewCodeSequence = Sequence([inner])
    dataset.add_new(0x00091010, "OB", b"\0" * 70_000)  # longer than a block
    dataset.AccessionNumber = ""
    dataset.ProcedureCodeSequence = Sequence([inner, inner])
    dataset.Rows = 4
    return dataset


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_and_long_values_are_those_of_pydicom(implicit, undefined):
    dataset = odd_dataset()
    for keyword in ("ViewCodeSequence", "ProcedureCodeSequence"):
        dataset[keyword].is_undefined_length = undefined
        for item in dataset[keyword].value:
            item.is_undefined_length_sequence_item = undefined
    pixels = struct.pack(
        "<HHL" if implicit else "<HH2sHL", *((0x7FE0, 0x10) + (() if implicit else (b"OW", 0))), 0
    )
    data = body(dataset, implicit=implicit) + pixels + b"\0" * 20
    (ours, here), (theirs, there) = both(data, implicit=implicit)
    same(ours, theirs)
    assert here == there == len(data) - 20 - len(pixels)
    assert ours.PatientName == theirs.PatientName == "Ä^B" and ours.ViewCodeSequence[0].CodeMeaning == "é"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_cut_anywhere_reads_as_pydicom_reads_it():
    data = body(odd_dataset())
    for end in [*range(0, 400, 7), *range(len(data) - 150, len(data))]:
        try:
            (ours, _), (theirs, _) = both(data[:end])
        except Exception as error:  # noqa: BLE001 - both must refuse it
            with pytest.raises(type(error)):
                read_dataset(io.BytesIO(data[:end]), False, True, stop_when=stop)
        else:
            same(ours, theirs)


@pytest.mark.filterwarnings("ignore:Expected .* VR, but found:UserWarning")
def test_a_wrong_transfer_syntax_is_left_to_pydicom():
    for said, written in ((True, False), (False, True)):
        data = body(odd_dataset(), implicit=written) + struct.pack("<HHL", 0x7FE0, 0x10, 0)
        (ours, _), (theirs, _) = both(data, implicit=said)
        same(ours, theirs)


def test_an_unknown_vr_is_left_to_pydicom():
    data = struct.pack("<HH2sH", 0x0009, 0x1010, b"ZZ", 2) + b"ab" + body(odd_dataset())[:200]
    (ours, here), (theirs, there) = both(data)
    same(ours, theirs)
    assert here == there and 0x00091010 in ours


def test_a_packaged_ct_needs_no_other_reader(monkeypatch):
    monkeypatch.setattr(reader, "read_dataset", None)
    data = golden("CT_small.dcm").read_bytes()
    stream = io.BytesIO(data)
    stream.seek(132)
    meta = read_elements(stream, implicit=False, little=True, stop=lambda tag, vr, length: tag >> 16 != 2)
    found = read_elements(stream, implicit=False, little=True, stop=stop)
    assert isinstance(meta["TransferSyntaxUID"], DataElement) and found.Rows == 128
