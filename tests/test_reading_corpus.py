"""Every packaged fixture reads or gives a typed error; grey and colour values are those of pydicom."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut
from readingcases import FIXTURES, NICOM, golden, quiet

from medvl.errors import MedvlError
from medvl.images import Photometric, Unit
from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.dicom import read_header
from medvl.specs import PixelSpec

# --- colour (PREPROCESS §1.4, trap 9) ---


@pytest.mark.traps(row=9)
@pytest.mark.parametrize(
    "name, place, rgb",
    [
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", (5, 5), (253, 1, 0)),
        ("SC_rgb_rle.dcm", (5, 5), (255, 0, 0)),
        ("SC_ybr_full_422_uncompressed.dcm", (5, 5), (254, 0, 0)),
    ],
)
def test_colour_becomes_rgb(name, place, rgb):
    image = read_image(golden(name))
    assert image.unit is Unit.RGB8 and image.photometric is Photometric.RGB
    assert image.array.shape[0] == 3 and image.array.dtype == np.uint8
    assert tuple(int(v) for v in image.array[:, *place]) == rgb


def colour_fixtures() -> list[Path]:
    """Single-frame colour fixtures that pydicom itself decodes."""
    found = []
    for path in FIXTURES:
        dataset = quiet(path)
        if (
            "PixelData" in dataset
            and dataset.get("SamplesPerPixel") == 3
            and dataset.get("NumberOfFrames", 1) == 1
        ):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found += [path] if dataset.pixel_array.ndim == 3 else []
            except (AttributeError, ValueError, RuntimeError, TypeError, NotImplementedError):
                continue
    return found


COLOUR = colour_fixtures()


@pytest.mark.parametrize("path", COLOUR, ids=lambda p: p.name)
def test_colour_is_that_of_pydicom(path):
    dataset = quiet(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = dataset.pixel_array >> (dataset.BitsStored - 8)
    got = read_image(path, lenient=True).array
    assert got.dtype == np.uint8
    # two inverse cosine transforms may differ by 1 a channel, and by twice that after YBR → RGB
    assert np.abs(np.moveaxis(got, 0, -1).astype(int) - expected).max() <= 3


@pytest.mark.traps(row=9)
def test_palette_is_looked_up():
    path = golden("examples_palette.dcm")
    image = read_image(path)
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array
    red, green, blue = (
        np.frombuffer(dataset[f"{name}PaletteColorLookupTableData"].value, "<u2")
        for name in ("Red", "Green", "Blue")
    )
    first = dataset.RedPaletteColorLookupTableDescriptor[1]
    for channel, table in enumerate((red, green, blue)):
        index = np.clip(stored.astype(int) - first, 0, len(table) - 1)
        np.testing.assert_array_equal(image.array[channel], table[index] >> 8)


# --- the whole corpus ---


@pytest.mark.traps(row=17)
@pytest.mark.parametrize("lenient", [False, True])
def test_every_fixture_reads_or_gives_a_typed_error(lenient):
    read, refused = 0, 0
    for path in FIXTURES:
        try:
            image = read_image(path, lenient=lenient)
            read += 1
            assert image.array.ndim == 3 and image.array.size > 0
            PixelSpec(longest_px=64).apply(image)
        except MedvlError as error:
            refused += 1
            assert path.name not in str(error)
        try:
            read_header(path, lenient=lenient)
        except MedvlError:
            pass
    assert read >= (85 if lenient else 80) and refused > 0


def test_every_dicom_of_nibabel_reads_or_gives_a_typed_error(tmp_path):
    outcome = {}
    for path in sorted(NICOM.glob("*.dcm*")):
        if path.suffix == ".gz":
            path = tmp_path / path.stem
            path.write_bytes(gzip.decompress((NICOM / f"{path.name}.gz").read_bytes()))
        try:
            outcome[path.name] = read_image(path).array.shape
        except MedvlError as error:
            outcome[path.name] = error.rule
    assert outcome["siemens_dwi_0.dcm"] == (1, 896, 896)
    assert outcome["philips_mprage.dcm"] == "MultiFrame"
    assert outcome["csa_slice_norm.dcm"] == "IncompleteDicom"


def grey_fixtures() -> list[Path]:
    """Single-frame grey fixtures that pydicom itself decodes."""
    found = []
    for path in FIXTURES:
        dataset = quiet(path)
        if (
            "PixelData" not in dataset
            or dataset.get("SamplesPerPixel") != 1
            or "SOPInstanceUID" not in dataset
        ):
            continue
        if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if dataset.pixel_array.ndim == 2:
                    found.append(path)
        except (AttributeError, ValueError, RuntimeError, TypeError, NotImplementedError):
            continue
    return found


GREY = grey_fixtures()


@pytest.mark.traps(row=5)
@pytest.mark.parametrize("path", GREY, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_modality_values_are_those_of_pydicom(path):
    dataset = quiet(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = apply_modality_lut(dataset.pixel_array, dataset)
    got = read_image(path)
    np.testing.assert_allclose(got.array[0], expected, rtol=1e-6)
    integral = all(float(dataset.get(k, 0)).is_integer() for k in ("RescaleSlope", "RescaleIntercept"))
    fits = expected.min() >= -(2**15) and expected.max() < 2**15
    wide = expected.min() < -(2**31) or expected.max() >= 2**31
    assert got.array.dtype == (np.float32 if wide or not integral else np.int16 if fits else np.int32)


def test_the_oracle_sees_many_files():
    assert len(GREY) >= 55 and len(COLOUR) >= 20
