"""From stored volumes to tensors: parts, windows, crops, sizes, boxes, tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from volumecases import image, turned_affine, world

from medvl.errors import BadAffine, ConfigError
from medvl.images import Image, Unit
from medvl.records import Box
from medvl.specs import InputSpec, VolumeGrid, VolumeInput, VolumeSpec
from medvl.specs.orientation import canonical

# --- parts --------------------------------------------------------------------------------------


def test_parts_are_those_of_the_nearest_voxel():
    # the oracle is scipy's interpolation of order 0 in index space, on an oblique grid of another spacing
    affine = turned_affine(((1, 2, 0), (1, -1, 1)), (1.1, 2.3, 0.9), tilt=(4, 7, -3))
    numbers = np.random.default_rng(0).integers(0, 11, (17, 12, 19))
    middle = affine[:3, :3] @ (8, 6, 9) + affine[:3, 3]
    first = middle - np.array((1.3, 0.9, 1.7)) * (7, 7, 8)
    grid = VolumeGrid(
        (14, 15, 30), turned_affine((range(3), (1, 1, 1)), (1.3, 0.9, 1.7), origin=tuple(first))
    )
    found = VolumeSpec().apply_parts(image(numbers, affine, Unit.MODALITY_LUT), grid)
    index = (world(grid) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    clear = (np.abs(index - np.floor(index) - 0.5) > 1e-4).all(-1)
    rounded = np.moveaxis(np.rint(index), -1, 0)
    inside = ((rounded >= 0) & (rounded < np.array(numbers.shape)[:, None, None, None])).all(0)
    expected = map_coordinates(numbers, rounded, order=0, cval=0, mode="constant") * inside
    assert inside.any() and not inside.all() and clear.mean() > 0.99
    assert np.array_equal(found[clear], expected[clear])


def test_parts_on_the_grid_of_the_scan_are_taken_as_they_are():
    affine = turned_affine(((2, 1, 0), (-1, -1, 1)), (1.0, 2.0, 3.0))
    numbers = np.random.default_rng(0).integers(0, 11, (5, 6, 7)).astype(np.uint8)
    spec = VolumeSpec(spacing_mm=None, crop="none")
    grid = spec.grid(image(numbers.astype(np.int16), affine))
    assert np.array_equal(
        spec.apply_parts(image(numbers, affine), grid), canonical(image(numbers, affine)).array[0]
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("step", "shift"), [(1, 0), (3, 0), (5, 0), (2, -1 / 4), (4, -1 / 8)])
def test_outlines_lie_within_half_a_stored_voxel(step, shift, sign):
    """A stored voxel of ``step`` source voxels has the number at its centre: ends are rounded to its edges.

    With an odd step the centre is a voxel's, and the errors of the ends, (1 − step)/2 … (step − 1)/2 source
    voxels, cancel. With an even one it lies between two voxels, of which the right one is taken: the errors,
    −step/2 … step/2 − 1, have a mean of −1/2 source voxel, whichever way the scan was stored.
    """
    count = 12 * step
    affine = np.diag([sign * 1.0, 1.0, 1.0, 1.0])
    spec = VolumeSpec(spacing_mm=(float(step), 1.0, 1.0), crop="none", parts=("lungs",))
    grid = spec.grid(image(np.zeros((count, 2, 2), np.int16), affine))
    errors = []
    for first in range(3 * step, 4 * step):
        numbers = np.zeros((count, 2, 2), np.uint8)
        numbers[first : first + 5 * step] = 1
        ends_mm = np.sort(sign * (np.array([first, first + 5 * step]) - 0.5))
        found = np.flatnonzero(spec.apply_parts(image(numbers, affine), grid)[:, 0, 0])
        stored_mm = (
            grid.affine_ras[0, 0] * np.array([found[0] - 0.5, found[-1] + 0.5]) + grid.affine_ras[0, 3]
        )
        errors.append((stored_mm - ends_mm) / step)
    assert np.abs(errors).max() <= 0.5 and np.allclose(np.mean(errors, axis=0), shift)


@pytest.mark.parametrize("number", [3, -1])
def test_a_number_beyond_the_parts_is_refused(number):
    spec, grid = VolumeSpec(parts=("lungs", "heart")), VolumeGrid((2, 2, 2), np.eye(4))
    says = rf"holds numbers from .*{number}.*; allowed: 0 to 2, the parts lungs, heart\."
    with pytest.raises(ConfigError, match=says):
        spec.apply_parts(image(np.array([[[0, number]]], np.int16), np.eye(4)), grid)


def test_parts_without_a_place_are_refused():
    with pytest.raises(BadAffine, match="volume of parts does not say how it lies"):
        VolumeSpec().apply_parts(Image(np.zeros((1, 1, 1, 1)), Unit.GREY), VolumeGrid((2, 2, 2), np.eye(4)))


# --- the tensor ---------------------------------------------------------------------------------


def test_a_window_becomes_zero_to_one_and_is_normalised():
    spec = VolumeInput(windows=((40.0, 400.0), (-600.0, 1500.0)), mean=(0.5, 0.25), std=(0.25, 0.5))
    hu = np.array([-2000, -160, 40, 240, 3000], np.int16).reshape(5, 1, 1)
    wide = (np.array([0, (-160 + 1350) / 1500, (40 + 1350) / 1500, 1, 1]) - 0.25) / 0.5  # −1350 to 150
    wide[3] = (1 - 0.25) / 0.5
    narrow = (np.array([0, 0, 0.5, 1, 1]) - 0.5) / 0.25  # −160 to 240
    found = spec.window(hu)
    assert spec.channels == 2 and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :, 0, 0], [narrow, wide], atol=1e-5)


def test_padding_is_the_lowest_value_and_leaves_the_mask():
    spec = VolumeInput(size_px=(6, 5, 4), windows=((0.0, 100.0), (0.0, 1000.0)), mean=(0.5, 0.1), std=(0.25,))
    stored = np.full((3, 9, 4), 2000, np.int16)
    tensor, mask = spec.apply(stored)
    assert tensor.shape == (2, 6, 5, 4) and mask.sum() == 3 * 5 * 4 and mask[1:4].all()  # (6 − 3) // 2 = 1
    for channel, mean in zip(tensor, (0.5, 0.1), strict=True):
        np.testing.assert_allclose(channel[mask], (1 - mean) / 0.25, rtol=1e-6)
        np.testing.assert_allclose(channel[~mask], -mean / 0.25, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_patch_gives_the_tensor_of_the_whole_and_boxes_go_along(data):
    shape = data.draw(st.tuples(*[st.integers(1, 14)] * 3))
    size = data.draw(st.tuples(*[st.integers(1, 10)] * 3))
    start = data.draw(st.none() | st.tuples(*[st.integers(-3, 15)] * 3))
    spec = VolumeInput(size_px=size, windows=((0.0, 2000.0),))
    stored = np.random.default_rng(0).integers(-900, 900, shape, dtype=np.int16)
    voxel = [data.draw(st.integers(0, n - 1)) for n in shape]
    stored[tuple(voxel)] = 1000  # brighter than all others
    first, last = spec.span(shape, start=start)
    tensor, mask = spec.apply(stored, start=start)
    patch, patch_mask = spec.apply(stored[tuple(map(slice, first, last))])
    assert np.array_equal(tensor, patch) and np.array_equal(mask, patch_mask)
    if start is not None:
        free = np.maximum(np.subtract(shape, size), 0)
        assert list(first) == np.clip(start, 0, free).tolist()
    x, y, z = voxel
    box = spec.place_box(Box("it", x, y, x + 1, y + 1, z, z + 1), shape, start=start)
    shown = all(a <= v < b for a, v, b in zip(first, voxel, last, strict=True))
    brightest = np.unravel_index(tensor[0].argmax(), size)
    assert ((box.x0, box.y0, box.z0) == brightest) == shown or tensor[0].max() < 1
    assert (box.x1 - box.x0, box.y1 - box.y0, box.z1 - box.z0) == (1, 1, 1)


def test_resizing_keeps_the_aspect_and_shows_all():
    spec = VolumeInput(size_px=(10, 10, 10), windows=((0.0, 2000.0),), fit="resize", mean=(0.0,), std=(1.0,))
    stored = np.zeros((40, 20, 10), np.int16)
    stored[20:24, 8:12, 4:8] = 1000  # exactly one voxel of the tensor
    tensor, mask = spec.apply(stored)
    assert spec.span(stored.shape) == ((0, 0, 0), (40, 20, 10)) and spec.tiles(stored.shape) == [(0, 0, 0)]
    assert mask.any(axis=(1, 2)).sum() == 10 and mask.any(axis=(0, 2)).sum() == 5
    assert mask.any(axis=(0, 1)).sum() == 2  # 10 · 0.25 = 2.5, and Python rounds to the even
    scale, offset = spec.frame(stored.shape)
    assert scale.tolist() == [0.25, 0.25, 0.2] and offset.tolist() == [0, 2, 4]
    box = spec.place_box(Box("it", 20, 8, 24, 12, 5, 10), stored.shape)
    assert (box.x0, box.x1, box.y0, box.y1, box.z0, box.z1) == (5, 6, 4, 5, 5, 6)
    # of voxels 5 to 9 along z, which the last of the two shows, 3 are bright
    np.testing.assert_allclose(tensor[0, 5, 4, 4:6], [0.5 + 0.5 * 1 / 5, 0.5 + 0.5 * 3 / 5], atol=1e-3)


def test_a_smaller_volume_is_enlarged_only_by_resize():
    stored = np.zeros((3, 3, 3), np.int16)
    assert VolumeInput(size_px=(6, 6, 6)).apply(stored)[1].sum() == 27
    assert VolumeInput(size_px=(6, 6, 6), fit="resize").apply(stored)[1].all()


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 200)] * 3), st.tuples(*[st.integers(1, 100)] * 3), st.floats(0, 0.9))
def test_tiles_cover_the_volume_with_the_overlap(shape, size, overlap):
    spec = VolumeInput(size_px=size)
    starts = np.array(spec.tiles(shape, overlap=overlap))
    for axis, (length, side) in enumerate(zip(shape, size, strict=True)):
        along = np.unique(starts[:, axis])
        assert along[0] == 0 and along[-1] == max(0, length - side)
        assert (np.diff(along) <= max(1, side * (1 - overlap))).all()
        assert np.ptp(np.diff(along)) <= 1 if len(along) > 2 else True
    assert len({tuple(start) for start in starts.tolist()}) == len(starts)
    for start in starts[:3]:  # span leaves a start of tiles where it is
        assert spec.span(shape, start=start.tolist())[0] == tuple(start)


def test_wrong_values_of_the_specs_are_typed_errors():
    with pytest.raises(ConfigError, match="highest_hu is -1024; it must be above lowest_hu, -1024"):
        VolumeSpec.from_json({"highest_hu": -1024})
    with pytest.raises(ConfigError, match="std has 3 values; allowed: 1 or 2, one a window"):
        VolumeInput.from_json({"std": [0.1, 0.2, 0.3]})
    with pytest.raises(ConfigError, match=r"std is \(0\.0,\); each must be above 0"):
        VolumeInput.from_json({"std": [0]})
    with pytest.raises(
        ConfigError, match=r"volume spec has no key 'spacing'. Allowed: .* Did you mean 'spacing_mm'"
    ):
        VolumeSpec.from_json({"spacing": 1})
    with pytest.raises(ConfigError, match="the overlap is 1; allowed: 0 to below 1"):
        VolumeInput().tiles((10, 10, 10), overlap=1.0)
    with pytest.raises(ConfigError, match="the box of 'mass' has no z"):
        VolumeInput().place_box(Box("mass", 1, 2, 3, 4), (10, 10, 10))


def test_json_keeps_value_and_digest():
    for spec in (VolumeSpec(spacing_mm=None, margin_mm=3), VolumeInput(size_px=(4, 5, 6), fit="resize")):
        again = type(spec).from_json(spec.model_dump(mode="json"))
        assert again == spec and again.digest == spec.digest != type(spec)().digest


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 600), st.integers(1, 600)), st.tuples(st.integers(8, 400), st.integers(8, 400))
)
def test_a_films_frame_places_its_boxes(shape, size):
    spec = InputSpec(size_px=size)
    (down, right), (top, left) = spec.frame(shape)
    placed = spec.place_box(Box("it", 0, 0, shape[1], shape[0]), shape)
    assert (placed.y0, placed.x0) == (top, left)
    assert placed.y1 == pytest.approx(shape[0] * down + top) and placed.x1 == pytest.approx(
        shape[1] * right + left
    )
    mask = spec.letterbox(np.zeros(shape, np.uint8))[1]
    assert mask.sum() == pytest.approx((placed.y1 - placed.y0) * (placed.x1 - placed.x0))
