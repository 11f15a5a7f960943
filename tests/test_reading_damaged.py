"""Garbage for a codec and bytes flipped at random: a typed error, and no native words on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from baddicom import J2K, JPEG_12_BIT, MR
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate

from medvl.errors import (
    DecodeError,
    MedvlError,
)
from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.decoders import _captured_stderr
from medvl.preprocess.reading.dicom import read_header

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


# --- bytes at random ---


@pytest.mark.traps(row=17)
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
