"""Golden values of real files: units, frames, radiographs."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from readingcases import NICOM, golden

from medvl.errors import MultiFrame
from medvl.images import Photometric, Unit, Window
from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.dicom import read_dicom
from medvl.preprocess.reading.limits import DEFAULT_LIMITS, Limits
from medvl.specs import PixelSpec

# --- golden facts (STYLE.md): each number comes from the header's formula by hand ---


@pytest.mark.traps(row=7)
def test_ct_small_in_hounsfield_units_with_its_place():
    image = read_image(golden("test_files/CT_small.dcm"))
    assert (image.unit, image.array.dtype, image.array.shape) == (Unit.HU, np.int16, (1, 128, 128))
    assert image.array[0, 64, 64] == 1928 - 1024 and image.array[0, 0, 0] == 175 - 1024
    assert (image.array.min(), image.array.max()) == (-896, 1167)
    assert image.spacing_mm == (0.661468, 0.661468) and image.spacing_frame == "patient"
    # RAS = LPS with x and y negated; the first voxel's centre is ImagePositionPatient
    np.testing.assert_allclose(image.affine_ras[:3, 3], [158.135803, 179.035797, -75.699997])
    # rows run down the patient's back (+y in LPS), columns to the left (+x in LPS)
    np.testing.assert_allclose(image.affine_ras[:3, :2], [[0, -0.661468], [-0.661468, 0], [0, 0]])
    assert image.windows == ()


@pytest.mark.traps(row=13)
@pytest.mark.parametrize(
    "number, z, hu", [("17136", 103.019997, 905), ("17166", 104.269997, 1304), ("17196", 105.519997, 622)]
)
def test_ct2_value_at_a_world_point(number, z, hu):
    image = read_image(golden(f"77654033/CT2/{number}"))
    ras = np.array([125.0, 128.100006, z, 1.0])
    row, column, depth, _ = np.linalg.solve(image.affine_ras, ras)
    assert abs(depth) < 1e-4
    assert image.array[0, round(row), round(column)] == hu


@pytest.mark.traps(row=8)
def test_monochrome1_film_keeps_its_values_and_is_shown_the_right_way_round():
    path = golden("77654033/CR1/6154")
    image = read_image(path)
    assert image.photometric is Photometric.MONOCHROME1 and image.unit is Unit.MODALITY_LUT
    # slope 0.684, intercept 200: 1994 → 1563.896, 2515 → 1920.26
    assert image.array[0, 0, 0] == pytest.approx(1563.896, abs=1e-3)
    assert image.array[0, 8, 8] == pytest.approx(1920.26, abs=1e-3)
    assert image.array.dtype == np.float32
    assert image.windows[0] == Window(1600.0, 2800.0)
    assert image.spacing_mm == (0.1, 0.1) and image.spacing_frame == "detector"
    shown = PixelSpec(longest_px=8192).apply(image)
    assert shown[8, 8] < shown[0, 0]


@pytest.mark.traps(row=5)
def test_decimal_rescale_of_nibabel_is_integral():
    image = read_image(NICOM / "decimal_rescale.dcm", lenient=True)  # it lost its SOP UIDs
    dataset = pydicom.dcmread(NICOM / "decimal_rescale.dcm")
    assert (float(dataset.RescaleSlope), float(dataset.RescaleIntercept)) == (2.0, -4096.0)
    assert image.array.dtype.kind == "i"
    np.testing.assert_array_equal(image.array[0], dataset.pixel_array.astype(np.int64) * 2 - 4096)


@pytest.mark.traps(row=7)
def test_j2k_with_the_wrong_sign_flag():
    image = read_image(golden("J2K_pixelrep_mismatch.dcm"))
    assert (image.array.min(), image.array.max()) == (-2000, 1896)
    assert [window.width for window in image.windows] == [100, 100, 200]


@pytest.mark.traps(row=6)
def test_padding_is_known_in_modality_values():
    image = read_image(golden("693_J2KI.dcm"))
    dataset = pydicom.dcmread(golden("693_J2KI.dcm"), stop_before_pixels=True)
    expected = dataset.PixelPaddingValue * dataset.RescaleSlope + dataset.RescaleIntercept
    assert image.padding == (expected, expected)
    assert any("padding" in note for note in image.notes)


# --- frames ---


@pytest.mark.traps(row=10)
def test_many_frames_need_a_choice():
    path = golden("examples_ybr_color.dcm")
    with pytest.raises(MultiFrame, match=r"30 frames\. Choose one with frame=0 … 29"):
        read_image(path)
    with pytest.raises(MultiFrame, match="frame 30 was asked for; the file holds frames 0 … 29"):
        read_image(path, frame=30)
    assert read_image(path, frame=29).array.shape == (3, 240, 320)


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_rle.dcm", "rtdose_expb.dcm"])
def test_a_frame_is_the_frame_that_pydicom_decodes(name):
    path = golden(name)
    pixels = pydicom.dcmread(path).pixel_array
    last = len(pixels) - 1
    np.testing.assert_array_equal(read_image(path, frame=last).array[0], pixels[last])


@pytest.mark.traps(row=10)
def test_frame_macros_of_an_enhanced_object(tmp_path):
    source = NICOM / "philips_mprage.dcm.gz"
    path = tmp_path / "enhanced.dcm"
    path.write_bytes(gzip.decompress(source.read_bytes()))
    dataset = pydicom.dcmread(path)
    image = read_image(path, frame=175)
    own = dataset.PerFrameFunctionalGroupsSequence[175]
    expected = tuple(own.PixelMeasuresSequence[0].PixelSpacing)
    assert image.spacing_mm == expected
    position = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
    np.testing.assert_allclose(image.affine_ras[:3, 3], position * [-1, -1, 1])


# --- real radiographs ---


@pytest.mark.data
def test_shared_radiograph_lossless_and_lossy(shared_data):
    images = []
    for name in ("chest_cr_j2k_lossless.dcm", "chest_cr_j2k_lossy.dcm"):
        path = shared_data / "cxr" / "dicom" / name
        image, dataset = read_image(path), pydicom.dcmread(path, stop_before_pixels=True)
        images.append(image)
        assert image.photometric is Photometric.MONOCHROME1
        assert image.array.shape == (1, 1955, 1841)
        words = repr(image)
        for element in dataset.iterall():
            if element.VR in ("PN", "LO", "SH", "DA", "UI", "TM") and len(str(element.value)) > 4:
                assert str(element.value) not in words, element.keyword
        shown = PixelSpec().apply(image)
        assert shown.shape == (512, 482)  # 1841 · 512 / 1955 = 482.1
    lossless, lossy = (PixelSpec().apply(image).astype(int) for image in images)
    assert np.abs(lossless - lossy).mean() < 1.0
    corner, middle = lossless[:20, :20].mean(), lossless[150:350, 150:330].mean()
    assert corner != pytest.approx(middle, abs=5)


@pytest.mark.parametrize("keyword, bits", [("FloatPixelData", 32), ("DoubleFloatPixelData", 64)])
def test_float_pixels(tmp_path, keyword, bits):
    values = np.linspace(-2, 3, 64 * 64).reshape(64, 64).astype(f"<f{bits // 8}")
    dataset = pydicom.dcmread(golden("test_files/MR_small.dcm"))
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"):
        if name in dataset:
            del dataset[name]
    dataset.BitsAllocated = bits
    setattr(dataset, keyword, values.tobytes())
    dataset.save_as(tmp_path / "a.dcm")
    image = read_image(tmp_path / "a.dcm")
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array[0], values, rtol=1e-6)


def test_limits_are_values():
    assert DEFAULT_LIMITS == Limits() and Limits(max_depth=3).max_depth == 3
    assert read_dicom(golden("test_files/CT_small.dcm"), limits=Limits(max_depth=1)).array.shape == (
        1,
        128,
        128,
    )


def test_get_testdata_file_is_the_packaged_one():
    assert Path(get_testdata_file("CT_small.dcm", download=False)) == golden("test_files/CT_small.dcm")
