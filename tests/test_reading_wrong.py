"""Values that contradict the standard, hostile identifiers, character sets that lie."""

from __future__ import annotations

import struct

import pydicom
import pytest
from baddicom import changed

from medvl.errors import (
    BadElement,
    DecodeError,
)
from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.dicom import read_header

# --- row 10: hostile identifiers ---


@pytest.mark.parametrize(
    "identifier", ["../../../../etc/cron.d/x", "a\nb", "CON", "-rf", "x" * 4096, "a\\b", "p\0q", "\u202eevil"]
)
def test_identifiers_come_back_whole_and_never_in_messages(tmp_path, identifier):
    path = changed(tmp_path / "a.dcm", SpecificCharacterSet="ISO_IR 192", PatientID=identifier)
    assert read_header(path).patient_id == identifier
    path = changed(tmp_path / "b.dcm", PatientID=identifier, RescaleSlope="0")
    with pytest.raises(BadElement) as caught:
        read_image(path)
    assert identifier not in str(caught.value)


# --- row 13: values that contradict the standard ---


@pytest.mark.parametrize(
    "elements, message",
    [
        (
            {"RescaleSlope": "0", "RescaleIntercept": "0"},
            "RescaleSlope is 0; it must be a finite number other",
        ),
        ({"RescaleSlope": "NaN", "RescaleIntercept": "0"}, "RescaleSlope is nan; it must be finite"),
        ({"RescaleSlope": "1", "RescaleIntercept": "inf"}, "RescaleIntercept is inf; it must be finite"),
        ({"BitsStored": 17}, "BitsStored is 17; it must lie between 1 and .*, which is 16"),
        ({"BitsStored": 0}, "BitsStored is 0"),
        ({"BitsAllocated": 12}, "BitsAllocated is 12; allowed: 1, 8, 16, 32, 64"),
        ({"HighBit": 3}, "HighBit is 3; with BitsStored 16 it must be 15"),
        ({"PixelRepresentation": 2}, "PixelRepresentation is 2; allowed: 0, 1"),
        ({"SamplesPerPixel": 4}, "SamplesPerPixel is 4; allowed: 1, 3"),
        ({"Rows": 0}, "0 rows, 64 columns and 1 frames"),
        ({"PhotometricInterpretation": "CIELAB"}, None),
        ({"NumberOfFrames": "-3"}, "NumberOfFrames is -3; it must be an integer of at least 0"),
        ({"WindowCenter": "nan", "WindowWidth": "10"}, "WindowCenter is nan; it must be finite"),
    ],
)
def test_bad_values_are_named(tmp_path, elements, message):
    path = changed(tmp_path / "a.dcm", **elements)
    if message is None:
        with pytest.raises(DecodeError, match=r"photometric interpretation is 'CIELAB' with 1 sample\(s\)"):
            read_image(path)
        return
    with pytest.raises(BadElement, match=message):
        read_image(path)


def test_a_value_that_is_no_number(tmp_path):
    content = changed(tmp_path / "a.dcm", NumberOfFrames="1 ").read_bytes()
    place = content.index(struct.pack("<HH2s", 0x28, 8, b"IS"))
    (tmp_path / "a.dcm").write_bytes(content[: place + 8] + b"1A" + content[place + 10 :])
    with pytest.raises(BadElement, match=r"NumberOfFrames holds a value that"):
        read_header(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "width, function, taken", [("0", "LINEAR", 1.0), ("-5", "SIGMOID", 1.0), ("0.5", "LINEAR", 1.0)]
)
def test_window_widths_that_are_too_small(tmp_path, width, function, taken):
    path = changed(tmp_path / "a.dcm", WindowCenter="600", WindowWidth=width, VOILUTFunction=function)
    image = read_image(path)
    assert image.windows[0].width == taken
    assert f"window width {float(width):g} taken as 1" in image.notes


def test_windows_that_do_not_pair_up_and_unknown_functions(tmp_path):
    path = changed(tmp_path / "a.dcm", WindowCenter=[1, 2], WindowWidth=[3], VOILUTFunction="CUBIC")
    image = read_image(path)
    assert [(w.center, w.width, w.function) for w in image.windows] == [(1.0, 3.0, "LINEAR")]
    assert "unknown VOI LUT function taken as LINEAR" in image.notes
    assert any("2 window centers but 1 widths" in note for note in image.notes)


@pytest.mark.parametrize(
    "descriptor, data, message",
    [
        ([10, 0], [1] * 10, "VOILUTSequence lacks its LUTDescriptor of 3 values"),
        ([10, 0, 16], [1] * 9, "VOILUTSequence promises 10 entries and holds 9"),
        ([10, 0, 20], [1] * 10, "VOILUTSequence has entries of 20 bits; allowed: 8 to 16"),
    ],
)
def test_bad_look_up_tables(tmp_path, descriptor, data, message):
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "US", data)
    path = changed(tmp_path / "a.dcm", VOILUTSequence=[item])
    with pytest.raises(BadElement, match=message):
        read_image(path)


# --- row 14: character sets that lie ---


@pytest.mark.traps(row=15)
@pytest.mark.parametrize("declared", ["ISO_IR 100", "ISO 2022 IR 149", "ISO_IR 192", "NO SUCH SET"])
def test_character_sets_that_lie_never_crash(tmp_path, declared):
    path = changed(
        tmp_path / "a.dcm", SpecificCharacterSet=declared, PatientID="XXXXXX", AccessionNumber="A1"
    )
    path.write_bytes(path.read_bytes().replace(b"XXXXXX", "Ä\u20ac".encode() + b"\xff"))
    header = read_header(path)
    assert header.accession == "A1" and header.patient_id
    if declared in ("ISO_IR 192", "NO SUCH SET"):
        assert any("character set not as declared" in note for note in header.notes)
    assert read_image(path).array.shape == (1, 64, 64)


def test_nothing_of_the_header_is_logged_or_warned(tmp_path, caplog, recwarn):
    good = changed(tmp_path / "a.dcm", PatientID="XXXXXX", StudyInstanceUID="SECRET", Modality="SECRET")
    good.write_bytes(good.read_bytes().replace(b"XXXXXX", b"S\xffCRET"))
    bad = changed(tmp_path / "b.dcm", WindowCenter="123456", WindowWidth="1")
    bad.write_bytes(bad.read_bytes().replace(b"123456", b"SECRET"))
    caplog.clear()  # writing such files does log
    recwarn.clear()
    caplog.set_level("DEBUG")
    read_header(good)
    read_image(good)
    with pytest.raises(BadElement, match=r"WindowCenter holds a value that") as caught:
        read_image(bad)
    assert "SECRET" not in str(caught.value)
    assert not caplog.records and not list(recwarn)
