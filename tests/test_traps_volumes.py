"""Volumes: spacing, rescale, padding and frames, on packaged files."""

from __future__ import annotations

import highdicom
import numpy as np
import pydicom
import pytest
from readingcases import golden
from seriescases import SIDE, enhanced, write_series, write_slice

from medvl.errors import IrregularSeries
from medvl.images import Unit
from medvl.preprocess.reading import read_image
from medvl.preprocess.reading.geometry import Geometry
from medvl.preprocess.reading.series import find_series, read_series


def only(paths):
    (series,) = find_series(paths)
    return series


# --- row 4: spacing ---


@pytest.mark.traps(row=4)
def test_the_spacing_is_that_of_the_positions(tmp_path):
    lies = {"SliceThickness": "7", "SpacingBetweenSlices": "20"}
    image, _ = read_series(only(write_series(tmp_path, (0, 2.5, 5, 7.5), **lies)))
    assert image.spacing_mm[0] == 2.5
    assert np.linalg.norm(image.affine_ras[:3, 0]) == pytest.approx(2.5)


@pytest.mark.traps(row=4)
def test_one_slice_says_what_stands_for_its_spacing(tmp_path):
    image, geometry = read_series(only([golden("693_J2KI.dcm")]))
    assert geometry.numbers == {"slices": 1}  # no spacing among the numbers: one slice has none
    assert image.spacing_mm[0] == 5 and any("thickness, 5 mm, stands for" in note for note in image.notes)
    path = write_slice(tmp_path / "a.dcm", 0, (0.0, 0.0, 0.0), SliceThickness=None)
    image, _ = read_series(only([path]))
    assert image.spacing_mm[0] == 1 and any("is unknown, 1 mm stands for it" in note for note in image.notes)


# --- row 5: rescale ---


@pytest.mark.traps(row=5)
def test_every_slice_has_its_own_rescale(tmp_path):
    paths = write_series(
        tmp_path,
        (0, 2.5, 5, 7.5),
        RescaleSlope=["1", "2", "4", "1"],
        RescaleIntercept=["-1024", "0", "-100", "0"],
    )
    image, _ = read_series(only(paths))
    assert image.array.dtype == np.int16 and image.unit is Unit.HU
    assert image.array[0, :, 5, 5].tolist() == [0, 100, 200, 300]


@pytest.mark.traps(row=5)
def test_a_fractional_slope_anywhere_makes_the_volume_float(tmp_path):
    paths = write_series(tmp_path, (0, 2.5, 5, 7.5), RescaleSlope=["1", "1", "0.5", "1"])
    image, _ = read_series(only(paths))
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array[0, :, 5, 5], [0, 100, 200, 300])


@pytest.mark.traps(row=5)
def test_values_beyond_16_bits_make_the_volume_int32(tmp_path):
    paths = write_series(tmp_path, (0, 2.5, 5, 7.5), RescaleSlope=["1", "1", "100", "1"], RescaleType="US")
    dataset = pydicom.dcmread(paths[2])
    dataset.PixelData = np.full((SIDE, SIDE), 30000, "<i2").tobytes()
    dataset.save_as(paths[2])
    image, _ = read_series(only(paths))
    assert image.array.dtype == np.int32 and image.array[0, 2, 0, 0] == 3_000_000 - 1024


# --- row 6: padding ---


@pytest.mark.traps(row=6)
def test_smeared_padding_is_clipped_not_masked():
    image, _ = read_series(only([golden("693_J2KI.dcm")]))
    stored = pydicom.dcmread(golden("693_J2KI.dcm"))
    values = read_image(golden("693_J2KI.dcm")).array[0]
    assert stored.PixelPaddingValue == -2000 and (values < -1024).sum() == 74_496
    assert (
        values == -2000 * stored.RescaleSlope + stored.RescaleIntercept
    ).sum() < 1000  # equality misses it
    assert image.array.min() == -1024 and (image.array == -1024).sum() >= 74_496
    np.testing.assert_array_equal(image.array[0, 0], np.maximum(values, -1024))
    assert "74,496 voxels below -1024 HU raised to it" in image.notes


# --- row 10: frames ---


@pytest.mark.traps(row=10)
def test_a_cine_is_no_volume():
    series = only([golden("examples_ybr_color.dcm")])
    assert series.geometry == Geometry("rejected:no_position", {"slices": 30})
    with pytest.raises(IrregularSeries, match=r"do not say where they lie \(slices 30\)"):
        read_series(series)


@pytest.mark.traps(row=10)
@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_rle.dcm", "rtdose_expb.dcm"])
def test_dose_frames_lie_on_their_grid(name):
    path = golden(name)
    image, geometry = read_series(only([path]))
    dataset = pydicom.dcmread(path)
    assert geometry.verdict == "ok" and image.spacing_mm == (5.0, 10.0, 10.0)
    np.testing.assert_array_equal(image.array[0], dataset.pixel_array)
    np.testing.assert_allclose(image.affine_ras[:3, 3], [-189.43125, -199.43125, -761.87])


@pytest.mark.traps(row=10)
def test_dose_frames_with_absolute_offsets_downwards(tmp_path):
    dataset = pydicom.dcmread(golden("rtdose.dcm"))
    dataset.GridFrameOffsetVector = [-761.87 - 5 * n for n in range(15)]  # PS3.3 C.8.8.3.2, second form
    dataset.save_as(tmp_path / "a.dcm")
    image, _ = read_series(only([tmp_path / "a.dcm"]))
    np.testing.assert_array_equal(image.array[0, ::-1], dataset.pixel_array)
    assert image.affine_ras[2, 3] == pytest.approx(-761.87 - 70)


@pytest.mark.traps(row=10)
def test_an_enhanced_volume_has_the_geometry_of_its_functional_groups(tmp_path):
    path = enhanced(tmp_path / "mprage.dcm")
    image, geometry = read_series(only([path]))
    assert image.array.shape == (1, 176, 256, 256) and geometry.verdict == "ok"
    oracle = highdicom.imread(path).get_volume()
    ends = []
    for affine, shape in ((oracle.affine, oracle.spatial_shape), (image.affine_ras, image.array.shape[1:])):
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        corners[:, :3] *= np.array(shape) - 1
        ends.append(np.array(sorted((corners @ affine.T)[:, :3].tolist())))
    ends[0] = np.array(sorted((ends[0] * [-1, -1, 1]).tolist()))  # LPS to RAS
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-2)
