"""Hostile and broken DICOM: each gives its typed error, with the value, cheaply, and names no one."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from medvl.errors import (
    BadElement,
    BadImage,
    DecodeError,
    DecompressionLimit,
    IncompleteDicom,
    InputError,
    MedvlError,
    NestingLimit,
    NotDicom,
    PixelLimit,
    TruncatedPixels,
)
from medvl.preprocess.decoders import _captured_stderr
from medvl.preprocess.dicom import read_dicom, read_header
from medvl.preprocess.limits import Limits, inflate
from medvl.preprocess.reading import read_image

CT = Path(get_testdata_file("CT_small.dcm", download=False))
MR = Path(get_testdata_file("MR_small.dcm", download=False))
J2K = Path(get_testdata_file("MR_small_jp2klossless.dcm", download=False))
JPEG_12_BIT = Path(get_testdata_file("JPGExtended.dcm", download=False))
DEFLATED = b"1.2.840.10008.1.2.1.99"
EXPLICIT = b"1.2.840.10008.1.2.1"


def changed(path: Path, *, source: Path = MR, **elements: object) -> Path:
    """Write ``source`` with other values; None deletes an element."""
    dataset = pydicom.dcmread(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the values are meant to be wrong
        for keyword, value in elements.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(path)
    return path


def meta(syntax: bytes) -> bytes:
    """Return preamble, prefix and the smallest file meta group with one transfer syntax."""
    syntax += b"\0" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    length = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(element))
    return b"\0" * 128 + b"DICM" + length + element


def nested(depth: int, *, defined: bool, implicit: bool = False) -> bytes:
    """Return ``depth`` sequences inside one another as explicit or implicit VR little endian."""
    head = struct.pack("<HH", 0x0008, 0x1140)
    if not defined:
        opening = (
            head
            + (b"" if implicit else b"SQ\0\0")
            + struct.pack("<LHHL", 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
        )
        closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        return opening * depth + closing * depth
    lengths = [0]
    for _ in range(depth):
        lengths.append(lengths[-1] + (16 if implicit else 20))
    parts = []
    for inner in reversed(lengths[:-1]):
        parts.append(head + (b"" if implicit else b"SQ\0\0") + struct.pack("<L", inner + 8))
        parts.append(struct.pack("<HHL", 0xFFFE, 0xE000, inner))
    return b"".join(parts)


# --- row 1, 2: not DICOM ---


@pytest.mark.parametrize("name", ["empty.dcm", "empty.png"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(NotDicom, match=r"empty \(0 bytes\)"):
        read_image(tmp_path / name)
    with pytest.raises(NotDicom, match=r"empty \(0 bytes\)"):
        read_header(tmp_path / name)


def test_a_bare_data_set_needs_lenient(tmp_path):
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(CT.read_bytes()[132:])  # the meta group stays: only preamble and prefix are gone
    with pytest.raises(NotDicom, match=r"no DICM prefix.*option 'lenient'"):
        read_image(bare)
    with pytest.raises(NotDicom, match=r"no DICM prefix.*option 'lenient'"):
        read_header(bare)
    np.testing.assert_array_equal(read_image(bare, lenient=True).array, read_image(CT).array)
    assert read_header(bare, lenient=True).modality == "CT"


@pytest.mark.parametrize("content", [b"hello world" * 40, b"\xff" * 3, b"%PDF-1.7"])
def test_something_else(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(BadImage, match=r"neither DICOM nor one of PNG, JPEG, TIFF, BMP|cannot be decoded"):
        read_image(tmp_path / "a.dcm")
    with pytest.raises(NotDicom, match=r"no DICM prefix"):
        read_header(tmp_path / "a.dcm")
    with pytest.raises(MedvlError):
        read_dicom(tmp_path / "a.dcm", lenient=True)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.dcm", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read: (No such file|Is a directory)"):
            read_image(path)
        with pytest.raises(InputError, match=r"cannot be read: (No such file|Is a directory)"):
            read_header(path)


# --- row 3, 4: cut short ---


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "Rows", "Columns", "BitsAllocated", "PixelData"]
)
def test_a_missing_element_is_named(tmp_path, keyword):
    path = changed(tmp_path / "a.dcm", **{keyword: None})
    with pytest.raises(IncompleteDicom, match=rf"lacks {keyword},"):
        read_image(path)
    if keyword.startswith("SOP"):
        assert read_image(path, lenient=True).array.shape == (1, 64, 64)


def test_a_header_cut_anywhere_is_refused(tmp_path):
    content = MR.read_bytes()
    pixels = content.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OW"))
    path = tmp_path / "cut.dcm"
    for size in range(133, pixels + 12, 23):
        path.write_bytes(content[:size])
        with pytest.raises((IncompleteDicom, InputError)):
            read_image(path)
    path.write_bytes(content[:138])
    with pytest.raises(IncompleteDicom, match=r"ends before its data set begins"):
        read_image(path)


@pytest.mark.parametrize("got", [0, 1, 4000, 8190])
def test_cut_inside_native_pixels(tmp_path, got):
    content = MR.read_bytes()
    start = content.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OW")) + 12
    (tmp_path / "a.dcm").write_bytes(content[: start + got])
    with pytest.raises(TruncatedPixels, match=rf"hold {got:,} bytes; the header promises 8,192"):
        read_image(tmp_path / "a.dcm")


def test_cut_inside_a_fragment(tmp_path):
    content = J2K.read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:-1000])
    with pytest.raises(
        TruncatedPixels, match=r"a fragment of the pixel data holds [\d,]+ bytes; its header promises"
    ):
        read_image(tmp_path / "a.dcm")
    start = content.index(struct.pack("<HH", 0x7FE0, 0x10)) + 12
    (tmp_path / "a.dcm").write_bytes(content[:start])
    with pytest.raises(TruncatedPixels, match=r"0 fragments; the header promises 1 frame"):
        read_image(tmp_path / "a.dcm")


# --- row 5, 6: headers that ask for too much ---


def test_rows_and_columns_beyond_the_limit(tmp_path):
    path = changed(tmp_path / "a.dcm", Rows=65535, Columns=65535, PixelData=b"\0" * 100)
    with pytest.raises(PixelLimit, match=r"65,535 × 65,535 pixels.*4,294,836,225 values; the limit"):
        read_image(path)
    assert read_header(path).rows == 65535


def test_frames_beyond_the_limit(tmp_path):
    path = changed(tmp_path / "a.dcm", NumberOfFrames=100_000)
    with pytest.raises(PixelLimit, match=r"100,000 frame\(s\).*409,600,000 values"):
        read_image(path, frame=0)
    path = changed(tmp_path / "b.dcm", NumberOfFrames=1000)
    with pytest.raises(TruncatedPixels, match=r"hold 8,192 bytes; the header promises 8,192,000"):
        read_image(path, frame=0)


def test_a_codestream_larger_than_its_header(tmp_path):
    dataset = pydicom.dcmread(J2K)
    frame = bytearray(dataset.PixelData)
    place = frame.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">2L", frame, place, 60000, 60000)
    dataset.PixelData = bytes(frame)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DecodeError, match=r"holds 60,000 × 60,000 pixels; the header announces 64 × 64"):
        read_image(tmp_path / "a.dcm")


def test_a_file_larger_than_the_limit():
    size = CT.stat().st_size
    with pytest.raises(InputError, match=rf"the file has {size:,} bytes; the limit is 1,000"):
        read_image(CT, limits=Limits(max_bytes=1000))


# --- row 7: deflate ---


def test_a_deflate_bomb_is_stopped_at_the_ratio(tmp_path):
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = b"\0" * 2**20
    bomb = b"".join(squeeze.compress(block) for _ in range(64)) + squeeze.flush()
    (tmp_path / "a.dcm").write_bytes(meta(DEFLATED) + bomb)
    with pytest.raises(DecompressionLimit, match=r"to more than 16,777,216 bytes; the limit is 100 times"):
        read_header(tmp_path / "a.dcm")
    with pytest.raises(DecompressionLimit, match=r"more than 1,000 bytes.* and 1,000 bytes"):
        inflate(io.BufferedReader(io.BytesIO(bomb)), limits=Limits(max_bytes=1000))


def test_damaged_deflate(tmp_path):
    (tmp_path / "a.dcm").write_bytes(meta(DEFLATED) + b"\xff" * 100)
    with pytest.raises(InputError, match=r"deflated data set is damaged: Error -3"):
        read_header(tmp_path / "a.dcm")


@given(st.binary(max_size=5000))
@settings(max_examples=50, deadline=None)
def test_inflate_is_zlib(data):
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = squeeze.compress(data) + squeeze.flush()
    assert bytes(inflate(io.BufferedReader(io.BytesIO(packed)), limits=Limits())) == data


def test_a_deflated_file_cut_short(tmp_path):
    dataset = pydicom.dcmread(MR)
    dataset.file_meta.TransferSyntaxUID = DEFLATED.decode()
    dataset.save_as(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    for part in (0.3, 0.6, 0.95):
        (tmp_path / "b.dcm").write_bytes(content[: int(len(content) * part)])
        with pytest.raises((IncompleteDicom, TruncatedPixels)):
            read_image(tmp_path / "b.dcm")


# --- row 8: nesting ---


@pytest.mark.parametrize("depth", [65, 200, 5000])
@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize("implicit", [True, False])
def test_deep_sequences(tmp_path, depth, defined, implicit):
    syntax = EXPLICIT[:-2] if implicit else EXPLICIT
    path = tmp_path / "a.dcm"
    path.write_bytes(meta(syntax) + nested(depth, defined=defined, implicit=implicit))
    for read in (read_header, read_image):
        with pytest.raises(NestingLimit, match=r"more than 64 deep"):
            read(path)


@pytest.mark.parametrize("defined", [True, False])
def test_allowed_depth(tmp_path, defined):
    path = tmp_path / "a.dcm"
    path.write_bytes(meta(EXPLICIT) + nested(64, defined=defined))
    assert not read_header(path).has_pixels
    with pytest.raises(NestingLimit, match=r"more than 3 deep"):
        read_header(path, limits=Limits(max_depth=3))


# --- memory of rows 5 to 8, in a fresh process ---


@pytest.mark.parametrize("kind", ["rows", "frames", "bomb", "deep"])
def test_memory_of_refusals(tmp_path, kind):
    path = tmp_path / "a.dcm"
    if kind == "rows":
        changed(path, Rows=65535, Columns=65535)
    elif kind == "frames":
        changed(path, NumberOfFrames=100_000)
    elif kind == "deep":
        path.write_bytes(meta(EXPLICIT) + nested(5000, defined=False))
    else:  # 498 kB that inflate to 512 MB
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        block = b"\0" * 2**20
        packed = b"".join(squeeze.compress(block) for _ in range(512)) + squeeze.flush()
        assert 450_000 < len(packed) < 550_000
        path.write_bytes(meta(DEFLATED) + packed)
    code = """
        import resource, sys, time
        from pathlib import Path
        from medvl.errors import MedvlError
        from medvl.preprocess.reading import read_image
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            read_image(Path(sys.argv[1]))
        except MedvlError as error:
            print(error.rule)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, check=True
    )
    rule, figures = run.stdout.splitlines()
    grown_kib, seconds = (float(word) for word in figures.split())
    assert (
        rule
        == {
            "rows": "PixelLimit",
            "frames": "PixelLimit",
            "bomb": "DecompressionLimit",
            "deep": "NestingLimit",
        }[kind]
    )
    assert grown_kib < 100 * 1024 and seconds < 5


# --- row 9: garbage for a codec ---


@pytest.mark.parametrize(
    "syntax, head",
    [
        ("1.2.840.10008.1.2.4.90", b""),
        ("1.2.840.10008.1.2.4.80", b"\xff\xd8\xff"),
        ("1.2.840.10008.1.2.4.70", b""),
        ("1.2.840.10008.1.2.4.50", b"\xff\xd8\xff"),
        ("1.2.840.10008.1.2.5", b""),
    ],
)
def test_garbage_codestreams(tmp_path, capfd, syntax, head):
    rng = np.random.default_rng(0)
    dataset = pydicom.dcmread(MR)
    if syntax.endswith(".50"):
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([head + rng.bytes(3000)])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DecodeError, match=r"no decoder could read the pixel data \(.*\); \w+: \w+"):
        read_image(tmp_path / "a.dcm")
    assert capfd.readouterr().err == ""


def test_damaged_j2k_keeps_native_words_off_the_terminal(tmp_path, capfd):
    dataset = pydicom.dcmread(J2K)
    frame = bytearray(dataset.PixelData)
    place = frame.index(b"\xff\x4f\xff\x51")
    frame[place + 60 : place + 1000] = b"\x5a" * 940
    dataset.PixelData = bytes(frame)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DecodeError, match=r"no decoder could read"):
        read_image(tmp_path / "a.dcm")
    assert capfd.readouterr().err == ""


def test_stderr_comes_back_after_a_codec(capfd):
    with _captured_stderr() as said:
        os.write(2, b"from native code")
        said.seek(0)
        assert said.read() == b"from native code"
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_decoding_with_a_closed_stderr():
    code = "import sys; from pathlib import Path; from medvl.preprocess.reading import read_image as r;"
    code += "print(r(Path(sys.argv[1])).array.shape)"
    command = f'exec "{sys.executable}" -c "{code}" "{J2K}" 2>&-'
    run = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(1, 64, 64)"


def test_12_bit_jpeg_names_the_opt_in_package():
    with pytest.raises(DecodeError, match=r"12-bit JPEG .*4.51.*pylibjpeg-libjpeg .*GPL"):
        read_image(JPEG_12_BIT)


def test_unknown_transfer_syntax(tmp_path):
    dataset = pydicom.dcmread(J2K)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DecodeError, match=r"no decoder is installed for the transfer syntax MPEG2.*4\.100\)"):
        read_image(tmp_path / "a.dcm")


def test_native_pixels_under_a_compressed_syntax(tmp_path):
    content = MR.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(DecodeError, match=r"RLE Lossless, but the pixel data have a defined length of 8,192"):
        read_image(tmp_path / "a.dcm")


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


# --- bytes at random ---


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_flipped_bytes_give_an_image_or_a_typed_error(tmp_path_factory, data):
    source = data.draw(st.sampled_from([MR, J2K]))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(132, min(3000, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.dcm"
    path.write_bytes(content)
    try:
        assert read_image(path).array.ndim == 3
    except MedvlError:
        pass
    try:
        read_header(path)
    except MedvlError:
        pass
