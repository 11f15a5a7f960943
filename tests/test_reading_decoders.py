"""Transfer syntaxes and decoders: what is installed, unused bits, syntaxes that are missing."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from readingcases import golden

from medvl.preprocess.reading import kind_of, read_image
from medvl.preprocess.reading.decoders import DECODERS, plugins
from medvl.preprocess.reading.dicom import read_header

# --- decoders ---


def test_every_default_syntax_has_a_decoder_installed():
    opt_in = {"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"}
    for syntax in DECODERS:
        if syntax not in opt_in:
            assert plugins(syntax), syntax
    assert plugins("1.2.840.10008.1.2.4.80")[0] == "pyjpegls"
    assert plugins("1.2.840.10008.1.2.4.50")[0] == "pillow"
    assert plugins("1.2.3") == ()


@pytest.mark.traps(row=18)
def test_deflated_reads_as_its_inflated_twin(tmp_path):
    path = golden("image_dfl.dcm")
    np.testing.assert_array_equal(read_image(path).array[0], pydicom.dcmread(path).pixel_array)
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm")
    np.testing.assert_array_equal(
        read_image(tmp_path / "deflated.dcm").array, read_image(golden("test_files/CT_small.dcm")).array
    )


@pytest.mark.parametrize("signed, high_bit", [(0, 11), (1, 11), (0, 15), (1, 15), (0, 13)])
def test_unused_bits_mean_nothing(tmp_path, signed, high_bit):
    """PS3.5 8.1.1: what lies outside BitsStored is ignored; the sign is that of the highest stored bit."""
    rng = np.random.default_rng(0)
    value = rng.integers(-2048 if signed else 0, 2048 if signed else 4096, (16, 16))
    low_bits = high_bit - 11
    noise = rng.integers(0, 2**16, value.shape)
    mask = ((1 << 12) - 1) << low_bits
    stored = ((value & 0xFFF) << low_bits) | (noise & ~mask & 0xFFFF)
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    dataset.Rows = dataset.Columns = 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, high_bit, signed
    dataset.RescaleIntercept = 0
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array[0], value)


def test_encapsulated_pixels_under_a_missing_transfer_syntax(tmp_path):
    dataset = pydicom.dcmread(golden("MR_small_jpeg_ls_lossless.dcm"))
    expected = read_image(golden("MR_small_jpeg_ls_lossless.dcm")).array
    path = tmp_path / "a.dcm"
    dataset.save_as(path)
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.4.80", b"\0" * 22)
    path.write_bytes(content)
    image = read_image(path)
    np.testing.assert_array_equal(image.array, expected)
    assert any("TransferSyntaxUID missing" in note for note in image.notes)
    assert any("read as JPEG-LS" in note for note in image.notes)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "rtdose.dcm"])
def test_missing_transfer_syntax_of_native_pixels(tmp_path, name):
    path = golden(f"test_files/{name}")
    dataset = pydicom.dcmread(path)
    syntax = str(dataset.file_meta.TransferSyntaxUID).encode()
    syntax += b"\0" * (len(syntax) % 2)
    content = path.read_bytes()
    assert content.count(b"UI" + len(syntax).to_bytes(2, "little") + syntax) == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(syntax, b"\0" * len(syntax), 1))
    frame = 3 if name == "rtdose.dcm" else None
    got, expected = read_image(tmp_path / "a.dcm", frame=frame), read_image(path, frame=frame)
    np.testing.assert_array_equal(got.array, expected.array)
    assert got.notes[0].startswith("TransferSyntaxUID missing, taken as")


def test_lenient_reads_bare_data_sets():
    for name in ("ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm"):
        path = golden(name)
        assert kind_of(path) in ("bare dicom", "unknown")
        assert read_header(path, lenient=True).notes
