"""From stored values to the display: overlays, polarity, windows and look-up tables, as pydicom has them."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from readingcases import golden

from medvl.preprocess.reading import read_image
from medvl.specs import PixelSpec

# --- overlays, presentation, polarity ---


@pytest.mark.traps(row=11)
def test_overlays_are_not_burned_in():
    path = golden("examples_overlay.dcm")
    dataset = pydicom.dcmread(path)
    assert np.count_nonzero(dataset.overlay_array(0x6000)) == 222
    np.testing.assert_array_equal(read_image(path).array[0], apply_modality_lut(dataset.pixel_array, dataset))


@pytest.mark.parametrize(
    "photometric, shape, noted",
    [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_presentation_lut_shape_against_photometric(tmp_path, photometric, shape, noted):
    dataset = pydicom.dcmread(golden("test_files/CT_small.dcm"))
    dataset.PhotometricInterpretation, dataset.PresentationLUTShape = photometric, shape
    dataset.save_as(tmp_path / "a.dcm")
    image = read_image(tmp_path / "a.dcm")
    assert image.photometric.value == photometric
    assert any(f"{shape} contradicts {photometric}" in note for note in image.notes) == noted


@pytest.mark.traps(row=8)
def test_inverting_pixels_and_photometric_gives_one_picture(tmp_path):
    dataset = pydicom.dcmread(golden("test_files/MR_small.dcm"))
    stored = dataset.pixel_array.astype(np.int32)
    dataset.WindowCenter, dataset.WindowWidth = 800, 1001
    dataset.save_as(tmp_path / "two.dcm")
    # LINEAR: inverting x → K − x maps the centre c to K − c + 1, as (c − 0.5) is the middle of the ramp
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PixelData = (4000 - stored).astype("<i2").tobytes()
    dataset.WindowCenter = 4000 - 800 + 1
    dataset.save_as(tmp_path / "one.dcm")
    spec = PixelSpec(longest_px=8192)
    one, two = (spec.apply(read_image(tmp_path / f"{n}.dcm")).astype(int) for n in ("one", "two"))
    assert np.abs(one - two).max() <= 1 and (one != two).mean() < 0.02  # a tie may round either way


# --- VOI against pydicom as the oracle ---


def display_oracle(dataset: pydicom.Dataset) -> np.ndarray:
    """Apply modality LUT, VOI and polarity with pydicom and NumPy; return display values 0…255."""
    values = apply_modality_lut(dataset.pixel_array, dataset)
    shown = apply_voi_lut(values, dataset, index=0).astype(np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:  # pydicom spreads a window over the output range of the modality LUT
        bits, signed = dataset.BitsStored, dataset.PixelRepresentation
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        low, high = low * slope + intercept, high * slope + intercept
    display = (shown - low) / (high - low) * 255
    return 255 - display if dataset.PhotometricInterpretation == "MONOCHROME1" else display


@pytest.mark.traps(row=7)
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("name", ["77654033/CR1/6154", "test_files/CT_small.dcm", "test_files/MR_small.dcm"])
def test_windows_as_pydicom_applies_them(tmp_path, name, function):
    dataset = pydicom.dcmread(golden(name))
    if "WindowCenter" not in dataset:
        dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.VOILUTFunction = function
    dataset.save_as(tmp_path / "a.dcm")
    expected = display_oracle(dataset)
    got = PixelSpec(longest_px=8192).apply(read_image(tmp_path / "a.dcm"))
    assert np.abs(got - expected).max() <= 0.5 + 2e-3  # rounded to 8 bits


@pytest.mark.parametrize("first, signed", [(0, 0), (100, 0), (-300, 1)])
@pytest.mark.parametrize("implicit", [False, True])
def test_a_modality_lut_as_pydicom_applies_it(tmp_path, first, signed, implicit):
    dataset = pydicom.dcmread(golden("test_files/MR_small.dcm"))
    rng = np.random.default_rng(first & 7)
    stored = rng.integers(-500 if signed else 0, 1500, (64, 64)).astype("<i2")
    dataset.PixelData, dataset.PixelRepresentation = stored.tobytes(), signed
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [700, first, 16])
    item.add_new("LUTData", "US", rng.integers(0, 2**16, 700).tolist())
    item.ModalityLUTType = "US"
    dataset.ModalityLUTSequence = [item]
    if implicit:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm")
    expected = apply_modality_lut(stored, dataset)
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array[0], expected)


@pytest.mark.traps(row=7)
@pytest.mark.parametrize("bits, dtype", [(8, "u1"), (12, "<u2"), (16, "<u2")])
def test_a_voi_lut_goes_before_the_window(tmp_path, bits, dtype):
    dataset = pydicom.dcmread(golden("test_files/MR_small.dcm"))
    rng = np.random.default_rng(bits)
    table = np.sort(rng.integers(0, 2**bits, 1000)).astype(dtype)
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [1000, 200, bits])
    item.add_new("LUTData", "OW", table.tobytes())
    dataset.VOILUTSequence = [item]
    dataset.WindowCenter, dataset.WindowWidth = 1, 1
    dataset.save_as(tmp_path / "a.dcm")
    got = PixelSpec(longest_px=8192).apply(read_image(tmp_path / "a.dcm"))
    index = np.clip(dataset.pixel_array.astype(int) - 200, 0, 999)  # PS3.3 C.11.2.1.1
    expected = table[index] / (2**bits - 1) * 255
    assert np.abs(got - expected).max() <= 0.5 + 1e-3
