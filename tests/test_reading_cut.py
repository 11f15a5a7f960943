"""Files that are not DICOM, or are cut short: each gives its typed error."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from baddicom import CT, J2K, MR, changed

from medvl.errors import (
    BadImage,
    IncompleteDicom,
    InputError,
    MedvlError,
    NotDicom,
    TruncatedPixels,
)
from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.dicom import read_dicom, read_header

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
