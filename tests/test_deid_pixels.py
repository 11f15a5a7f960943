"""Burned-in text is painted over, refused or told; what needs no painting is copied bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from deidcases import planted
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread, examples

from medvl.errors import DecodeError
from medvl.preprocess.deid.audit import audit
from medvl.preprocess.deid.carriers import Carriers
from medvl.preprocess.deid.files import FileTask, clean_file
from medvl.preprocess.deid.pixels import paint_over, words_in_pixels
from medvl.preprocess.deid.profile import DEFAULT
from medvl.preprocess.reading.limits import DEFAULT_LIMITS
from medvl.preprocess.reading.part10 import opened
from medvl.records import TextRegion

pytest.importorskip("rapidocr")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A 12-bit film with a name and a side marker in its corner."""
    dataset = planted()
    canvas = Image.fromarray(np.full((512, 640), 60, np.uint8))
    pen = ImageDraw.Draw(canvas)
    pen.text((30, 24), "QUACKENBUSH 1931", fill=250, font=ImageFont.load_default(26))
    pen.text((590, 440), "L", fill=250, font=ImageFont.load_default(34))
    pixels = np.asarray(canvas).astype("<u2") * 16
    dataset.Rows, dataset.Columns, dataset.PixelRepresentation = 512, 640, 0
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelPaddingValue = None
    dataset.PixelData = pixels.tobytes()
    path = tmp_path_factory.mktemp("film") / "film.dcm"
    dataset.save_as(path)
    return path


def clean(path: Path, folder: Path, policy: str):
    target = folder / f"{policy}.dcm"
    task = FileTask(path, target, folder / f"{policy}.json", bytes(32), "p", (), (), DEFAULT, policy)
    return clean_file(task), target


def test_text_is_painted_over_and_the_rest_stays(film, tmp_path):
    outcome, target = clean(film, tmp_path, "mask")
    assert (outcome.refused, outcome.looked, outcome.masked) == ("", True, True)
    assert outcome.text_regions >= 1
    before, after = dcmread(film), dcmread(target)
    assert after.BurnedInAnnotation == "NO"
    assert "113101" in [item.CodeValue for item in after.DeidentificationMethodCodeSequence]
    changed = np.argwhere(before.pixel_array != after.pixel_array)
    top, left = changed.min(axis=0)
    bottom, right = changed.max(axis=0)
    assert 20 < top and bottom < 70 and 20 < left and right < 320  # the name, and not the marker
    assert not [words for words in words_in_pixels(target) if "QUACK" in words.upper()]


def test_kept_text_is_told(film, tmp_path):
    outcome, target = clean(film, tmp_path, "keep")
    after = dcmread(target)
    assert outcome.text_regions >= 1 and not outcome.masked
    assert after.BurnedInAnnotation == "YES"
    assert "113101" not in [item.CodeValue for item in after.DeidentificationMethodCodeSequence]
    assert after.PixelData == dcmread(film).PixelData


def test_a_film_with_text_can_be_refused(film, tmp_path):
    outcome, target = clean(film, tmp_path, "drop")
    assert outcome.refused == "BurnedInText" and not target.exists()
    assert "the policy is drop" in outcome.message and "QUACK" not in outcome.message


def test_the_audit_reads_pixels_when_asked(film, tmp_path):
    clean(film, tmp_path, "keep")
    carriers = Carriers()
    carriers.add("name", "QUACKENBUSH^ZEBEDEE")
    assert audit(carriers, tmp_path).clean
    found = audit(carriers, tmp_path, pixels="read").findings
    assert {(finding.kind, finding.place) for finding in found} == {("name", "pixels")}


def test_a_clean_film_keeps_its_bits_and_says_so(tmp_path):
    path = examples.get_path("ct")
    outcome, target = clean(path, tmp_path, "mask")
    assert outcome.looked and not outcome.text_regions
    assert dcmread(target).PixelData == dcmread(path).PixelData
    assert dcmread(target).BurnedInAnnotation == "NO"


@pytest.mark.traps
def test_a_real_compressed_picture_with_a_hospital_in_it(tmp_path):
    """examples_jpeg2k.dcm shows the hospital's name; no tag of its header says so."""
    path = examples.get_path("jpeg2k")
    outcome, target = clean(path, tmp_path, "mask")
    assert outcome.masked
    after = dcmread(target)
    assert after.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert after.PhotometricInterpretation == "RGB"
    assert after.pixel_array.shape == dcmread(path).pixel_array.shape
    assert not any("BAPTIST" in words.upper() for words in words_in_pixels(target))


def test_pixels_that_cannot_be_painted_over_are_refused(film, tmp_path):
    dataset = dcmread(film)
    dataset.BitsAllocated = dataset.BitsStored = 64
    dataset.HighBit = 63
    dataset.PixelData = bytes(512 * 640 * 8)
    dataset.save_as(tmp_path / "wide.dcm")
    region = TextRegion(30, 24, 300, 50, "text", 0.9, masked=False)
    with (
        opened(tmp_path / "wide.dcm", limits=DEFAULT_LIMITS) as part10,
        pytest.raises(DecodeError, match="text was found in pixels of 64 bits a value"),
    ):
        paint_over(part10, part10.dataset, (region,))


@pytest.mark.slow
def test_every_frame_is_painted_over(film, tmp_path):
    dataset = dcmread(film)
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData * 2
    dataset.save_as(tmp_path / "two.dcm")
    outcome, target = clean(tmp_path / "two.dcm", tmp_path, "mask")
    assert outcome.masked, outcome.message
    frames = dcmread(target).pixel_array
    assert frames.shape == (2, 512, 640) and np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], dcmread(film).pixel_array)
