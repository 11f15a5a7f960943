"""Headers, deflated data and nesting that ask for too much are refused cheaply, before they are read."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap
import zlib

import pydicom
import pytest
from baddicom import CT, DEFLATED, EXPLICIT, J2K, MR, changed, meta, nested
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import (
    DecodeError,
    DecompressionLimit,
    IncompleteDicom,
    InputError,
    NestingLimit,
    PixelLimit,
    TruncatedPixels,
)
from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.dicom import read_header
from medvl.preprocess.reading.limits import Limits, inflate

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
