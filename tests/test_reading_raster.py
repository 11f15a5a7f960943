"""Raster files of every mode: depth, colour, rotation, transparency, pages, limits, damage."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from medvl.errors import BadImage, InputError, MedvlError, MultiFrame, PixelLimit
from medvl.images import Photometric, Unit
from medvl.preprocess.reading import kind_of, read_image
from medvl.preprocess.reading.limits import Limits
from medvl.specs import PixelSpec

RAMP = np.linspace(0, 255, 12 * 20).astype(np.uint8).reshape(12, 20)


def saved(path: Path, picture: Pillow.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    "form, name", [("PNG", "a.png"), ("BMP", "a.bmp"), ("TIFF", "a.tif"), ("PNG", "a.dcm")]
)
def test_grey_of_8_bits_whatever_the_extension(tmp_path, form, name):
    image = read_image(saved(tmp_path / name, Pillow.fromarray(RAMP), format=form))
    assert (image.unit, image.bits_stored, image.photometric) == (Unit.GREY, 8, Photometric.MONOCHROME2)
    np.testing.assert_array_equal(image.array, RAMP[None])
    np.testing.assert_array_equal(PixelSpec().apply(image), RAMP)  # display values stay as they are


def test_jpeg_grey_is_what_pillow_decodes(tmp_path):
    path = saved(tmp_path / "a.jpg", Pillow.fromarray(RAMP), quality=95)
    np.testing.assert_array_equal(read_image(path).array[0], np.asarray(Pillow.open(path)))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("top, bits", [(65535, 16), (4095, 12), (1000, 10), (200, 8)])
def test_deep_grey_finds_its_true_depth(tmp_path, name, top, bits):
    deep = np.linspace(0, top, RAMP.size).round().astype(np.uint16).reshape(RAMP.shape)
    image = read_image(saved(tmp_path / name, Pillow.fromarray(deep)))
    assert (image.unit, image.bits_stored) == (Unit.GREY, bits)
    np.testing.assert_array_equal(image.array[0], deep)
    assert PixelSpec().apply(image).max() == round(255 * top / (2**bits - 1))
    assert any(f"16-bit file of {bits}-bit values" in note for note in image.notes) == (bits < 16)


def test_white_is_zero_tiffs_are_flagged(tmp_path):
    deep = (RAMP.astype(np.uint16) << 8) | 0x80FF
    for photometric, expected in (
        ("minisblack", Photometric.MONOCHROME2),
        ("miniswhite", Photometric.MONOCHROME1),
    ):
        tifffile.imwrite(tmp_path / "a.tif", deep, photometric=photometric)
        image = read_image(tmp_path / "a.tif")
        assert image.photometric is expected
        np.testing.assert_array_equal(image.array[0], deep)
    # Pillow itself turns an 8-bit one round, so it must not be flagged as well
    tifffile.imwrite(tmp_path / "b.tif", RAMP, photometric="miniswhite")
    image = read_image(tmp_path / "b.tif")
    assert image.photometric is Photometric.MONOCHROME2
    np.testing.assert_array_equal(image.array[0], 255 - RAMP)


def test_float_tiff_has_no_display_range(tmp_path):
    values = np.linspace(-3, 7, RAMP.size, dtype=np.float32).reshape(RAMP.shape)
    tifffile.imwrite(tmp_path / "a.tif", values)
    image = read_image(tmp_path / "a.tif")
    assert image.unit is Unit.MODALITY_LUT and any("percentiles" in note for note in image.notes)
    np.testing.assert_array_equal(image.array[0], values)
    shown = PixelSpec(percentiles=(0, 100)).apply(image)
    assert (shown.min(), shown.max()) == (0, 255)


def test_a_colour_file_without_colour_is_grey(tmp_path):
    image = read_image(saved(tmp_path / "a.png", Pillow.fromarray(RAMP).convert("RGB")))
    assert image.unit is Unit.GREY and image.array.shape == (1, *RAMP.shape)
    image = read_image(saved(tmp_path / "b.png", Pillow.fromarray(RAMP).convert("RGBA")))
    assert image.unit is Unit.GREY and image.notes == ()


def test_colour_and_palette(tmp_path):
    colour = np.stack([RAMP, 255 - RAMP, RAMP // 2], -1)
    image = read_image(saved(tmp_path / "a.png", Pillow.fromarray(colour)))
    assert (image.unit, image.photometric) == (Unit.RGB8, Photometric.RGB)
    np.testing.assert_array_equal(image.array, np.moveaxis(colour, -1, 0))
    # luminance of ITU-R BT.601
    expected = np.rint(colour @ [0.299, 0.587, 0.114])
    assert np.abs(PixelSpec().apply(image) - expected).max() <= 1
    flat = Pillow.fromarray(np.where(RAMP[..., None] > 99, [255, 0, 0], [0, 0, 255]).astype(np.uint8))
    palette = flat.convert("P", palette=Pillow.Palette.ADAPTIVE, colors=2)
    image = read_image(saved(tmp_path / "p.png", palette))
    np.testing.assert_array_equal(image.array, np.moveaxis(np.asarray(flat), -1, 0))


def test_transparent_pixels_lie_over_black(tmp_path):
    layers = np.dstack([RAMP, RAMP, RAMP, np.where(RAMP > 128, 255, 0).astype(np.uint8)])
    image = read_image(saved(tmp_path / "a.png", Pillow.fromarray(layers)))
    np.testing.assert_array_equal(image.array[0], np.where(RAMP > 128, RAMP, 0))
    assert "transparent pixels laid over black" in image.notes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_carried_out(tmp_path, orientation):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    image = read_image(saved(tmp_path / "a.png", Pillow.fromarray(RAMP), exif=exif))
    upright = {  # Exif 2.32, tag 274: where row 0 and column 0 of the file lie
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.T,
        6: np.rot90(RAMP, -1),
        7: RAMP[::-1, ::-1].T,
        8: np.rot90(RAMP),
    }
    np.testing.assert_array_equal(image.array[0], upright[orientation])
    assert bool(image.notes) == (orientation != 1)


def test_one_bit_files_are_black_and_white(tmp_path):
    image = read_image(saved(tmp_path / "a.png", Pillow.fromarray(RAMP > 100)))
    np.testing.assert_array_equal(image.array[0], np.where(RAMP > 100, 255, 0))


def test_pages_need_a_choice(tmp_path):
    pages = [Pillow.fromarray(RAMP), Pillow.fromarray(255 - RAMP)]
    path = saved(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    with pytest.raises(MultiFrame, match=r"holds 2 pages\. Choose one with frame=0 … 1"):
        read_image(path)
    with pytest.raises(MultiFrame, match=r"page 2 was asked for; the file holds pages 0 … 1"):
        read_image(path, frame=2)
    np.testing.assert_array_equal(read_image(path, frame=1).array[0], 255 - RAMP)


# --- row 20 and damage ---


def png_header(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    about = struct.pack(">LLBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "side, message",
    [
        (60_000, "announces more than 178,956,970 pixels"),  # Pillow's own error
        (
            12_000,
            r"12,000 × 12,000 pixels.*144,000,000 values; the limit is 134,217,728",
        ),  # Pillow only warns
    ],
)
def test_png_bombs(tmp_path, side, message):
    (tmp_path / "a.png").write_bytes(png_header(side))
    assert (tmp_path / "a.png").stat().st_size < 1024
    with pytest.raises(PixelLimit, match=message):
        read_image(tmp_path / "a.png")


def test_raster_limits(tmp_path):
    path = saved(tmp_path / "a.png", Pillow.fromarray(RAMP))
    with pytest.raises(PixelLimit, match=r"12 × 20 pixels.*240 values; the limit is 100"):
        read_image(path, limits=Limits(max_pixels=100))
    with pytest.raises(InputError, match=r"bytes; the limit is 10"):
        read_image(path, limits=Limits(max_bytes=10))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP"])
def test_cut_files(tmp_path, form):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Pillow.fromarray(noise).save(buffer, form)
    content = buffer.getvalue()
    for part in (0.02, 0.3, 0.6, 0.9):
        (tmp_path / "a").write_bytes(content[: int(len(content) * part)])
        with pytest.raises(BadImage, match=r"cannot be decoded|neither DICOM nor"):
            read_image(tmp_path / "a")


def test_a_dicom_preamble_that_looks_like_a_tiff_is_dicom(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + b"\0" * 124 + b"DICM")
    assert kind_of(tmp_path / "a.tif") == "dicom"


@given(
    st.binary(max_size=400),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM"]),
)
@settings(max_examples=80, deadline=None)
def test_random_bytes_behind_a_signature(tmp_path_factory, data, signature):
    path = tmp_path_factory.getbasetemp() / "random.bin"
    path.write_bytes(signature + data)
    with pytest.raises(MedvlError):
        read_image(path)


@pytest.mark.data
def test_every_image_of_the_clinical_notes_reads(shared_data):
    paths = [
        p for p in sorted((shared_data / "cxr" / "clinical_notes").rglob("*")) if kind_or_none(p) == "raster"
    ]
    assert len(paths) > 100
    for path in paths[::7]:
        shown = PixelSpec(longest_px=64).apply(read_image(path))
        assert max(shown.shape) == 64 and shown.std() > 1


def kind_or_none(path: Path) -> str | None:
    return kind_of(path) if path.is_file() else None
