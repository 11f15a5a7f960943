"""Specs of volumes: where stored voxels lie, what they hold, parts on their grid, the tensor of a model."""

from __future__ import annotations

import dataclasses
import tracemalloc

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volumecases import TURNS, image, ramp, turned_affine, world

from medvl.errors import BadAffine, ConfigError
from medvl.images import Image, Unit
from medvl.preprocess.reading.nifti import read_nifti
from medvl.specs import VolumeSpec
from medvl.specs.area import Axis, resampled
from medvl.specs.body import body_box
from medvl.specs.orientation import canonical, nearest_axes

# --- axes ---------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(TURNS, st.tuples(*[st.floats(0.4, 5)] * 3), st.tuples(*[st.floats(-25, 25)] * 3))
def test_the_canonical_volume_is_nibabels(turn, spacing, tilt):
    affine = turned_affine(turn, spacing, tilt=tilt)
    array = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
    found = canonical(image(array, affine))
    assert np.array_equal(found.array[0], np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(found.affine_ras, expected.affine, atol=1e-9)
    assert np.shares_memory(found.array, array)  # a view: nothing is copied, nothing interpolated


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_volume_without_directions_has_no_axes(value):
    affine = np.diag([1.0, value, 1.0, 1.0])
    with pytest.raises(BadAffine, match="singular or not finite"):
        nearest_axes(affine)
    with pytest.raises(BadAffine, match="does not say how it lies"):
        VolumeSpec().grid(Image(np.zeros((1, 2, 2, 2), np.int16), Unit.HU))


# --- resampling ---------------------------------------------------------------------------------


def shares(axis):
    """Return the share of each pixel in each interval, by its definition; zero rows are outside."""
    step = axis.length / axis.count
    table = np.zeros((axis.count, axis.pixels))
    for i in range(axis.count):
        low, high = axis.start + i * step, axis.start + (i + 1) * step
        centre = (low + high) / 2
        if not 0 <= centre <= axis.pixels:
            continue
        if step >= 1:
            for k in range(axis.pixels):
                table[i, k] = max(0.0, min(high, k + 1) - max(low, k))
            table[i] /= table[i].sum()
        else:
            place = min(max(centre - 0.5, 0), axis.pixels - 1)
            near = min(int(place), axis.pixels - 2) if axis.pixels > 1 else 0
            table[i, near] += 1 - (place - near)
            if axis.pixels > 1:
                table[i, near + 1] += place - near
    return table


axes = st.builds(
    Axis,
    pixels=st.integers(1, 40),
    count=st.integers(1, 50),
    start=st.floats(-6, 20).map(lambda x: round(x, 2)),
    length=st.floats(0.5, 60).map(lambda x: round(x, 2)),
)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(axes, axes, axes), st.permutations(range(3)), st.sampled_from([np.int16, np.float32, np.uint8])
)
def test_resampling_is_the_product_with_the_shares_of_each_axis(three, order, kind):
    # an interval whose centre lies on the very edge may count as in or out: rounding decides
    for axis in three:
        centres = axis.start + (np.arange(axis.count) + 0.5) * axis.length / axis.count
        near = np.minimum(np.abs(centres), np.abs(centres - axis.pixels))
        if near.min() < 1e-4:
            return
    shape = [axis.pixels for axis in three]
    values = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    memory = np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))
    tables = [shares(axis) for axis in three]
    expected = np.einsum("ijk,xi,yj,zk->xyz", values.astype(float), *tables, optimize=True)
    outside = ~np.einsum("xi,yj,zk->xyz", *(1.0 * (table > 0) for table in tables), optimize=True).astype(
        bool
    )
    expected[outside] = -1000
    found = resampled(memory, three, lowest=-1000, highest=3000)
    assert found.dtype == np.int16
    assert np.abs(found - expected).max() <= 0.5 + 1e-2  # rounded, in float32


@settings(max_examples=20, deadline=None)
@given(
    TURNS,
    st.tuples(*[st.floats(0.5, 4)] * 3),
    st.tuples(*[st.floats(-20, 20)] * 3),
    st.tuples(*[st.floats(0.5, 5)] * 3),
)
def test_a_linear_field_keeps_its_values_in_space(turn, spacing, tilt, goal):
    # A linear mix returns a linear field where it is asked for. A mean over [a, b] weighs whole voxels by the
    # part that they cover, which moves its place by (t(1 − t) − s(1 − s)) / 2(b − a) voxels where s and t are
    # the parts covered at its ends: an eighth of a voxel at most. So each stored voxel must hold, up to that
    # and to rounding, what the field has at the place that the grid's affine gives.
    affine = turned_affine(turn, spacing, tilt=tilt)
    scan = image(ramp((13, 11, 12), affine), affine)
    spec = VolumeSpec(spacing_mm=goal, crop="none", lowest_hu=-2000)
    grid = spec.grid(scan)
    stored = spec.apply(scan, grid=grid)
    assert stored.shape == grid.shape
    np.testing.assert_allclose(np.linalg.norm(grid.affine_ras[:3, :3], axis=0), goal, rtol=1e-3)
    assert [axis for axis, _ in zip(*nearest_axes(grid.affine_ras), strict=True)] == [0, 1, 2]
    field = world(grid) @ (1.3, -0.7, 2.1) + 100
    back = (world(grid) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    reach = np.abs(np.linalg.inv(affine[:3, :3]) @ grid.affine_ras[:3, :3]).max(1) / 2
    inner = ((back >= reach) & (back <= np.array(scan.array.shape[1:]) - 1 - reach)).all(-1)
    most = 0.5 + np.abs((1.3, -0.7, 2.1) @ affine[:3, :3]).sum() / 8
    assert np.abs(stored - field)[inner].max(initial=0) <= most + 2e-3
    # and the stored voxels cover the scan: no more than half of one is left over at either end
    sides = np.array([0, 0, 0, 1.0]), np.array([*grid.shape, 1.0])
    ends = [np.linalg.inv(affine) @ grid.affine_ras @ (end - [0.5, 0.5, 0.5, 0]) for end in sides]
    extent = np.sort(np.array(ends)[:, :3], axis=0) + 0.5
    voxels = np.linalg.norm(grid.affine_ras[:3, :3], axis=0).max() / np.min(spacing)
    assert np.abs(extent[0]).max() <= voxels / 2 + 1e-6
    assert np.abs(extent[1] - scan.array.shape[1:]).max() <= voxels / 2 + 1e-6


def test_the_scans_own_spacing_keeps_every_voxel():
    affine = turned_affine(((2, 0, 1), (-1, 1, -1)), (0.7, 1.25, 0.7), tilt=(3, -2, 5))
    array = np.random.default_rng(0).integers(-1024, 3072, (9, 8, 7), dtype=np.int16)
    for spacing in (None, (0.7 * (1 + 1e-6), 0.7, 1.25)):  # nearly the same is the same
        spec = VolumeSpec(spacing_mm=spacing, crop="none")
        scan = image(array, affine)
        grid = spec.grid(scan)
        order = np.argsort([2, 0, 1])  # which axis of the array runs right, front, top
        if spacing is not None:
            spec = spec.model_copy(update={"spacing_mm": tuple(np.array((0.7, 1.25, 0.7))[order])})
            grid = spec.grid(scan)
        stored = spec.apply(scan, grid=grid)
        places = (world(grid) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
        index = np.rint(places).astype(int)
        np.testing.assert_allclose(places, index, atol=1e-3)
        assert np.array_equal(stored, array[tuple(np.moveaxis(index, -1, 0))])


def test_values_come_into_the_range_before_any_mean():
    # half padding of −3024, half water: (−1024 + 0) / 2, not (−3024 + 0) / 2 raised to −1024
    array = np.array([-3024, 0, 9000, 0, np.nan, 0, np.inf, 0], np.float32).reshape(8, 1, 1)
    spec = VolumeSpec(spacing_mm=(2.0, 1.0, 1.0), crop="none", highest_hu=3000)
    assert spec.apply(image(array, np.eye(4))).ravel().tolist() == [-512, 1500, -512, 1500]


def test_a_grid_may_be_that_of_another_volume():
    # a second reconstruction of the scan, cut otherwise, onto the grid of the first; beyond it, the lowest
    one = image(ramp((20, 20, 20), np.eye(4)), np.eye(4))
    moved = np.eye(4)
    moved[:3, 3] = (5, 0, 0)
    other = image(ramp((20, 20, 20), moved), moved)
    spec = VolumeSpec(spacing_mm=(2.0, 2.0, 2.0), crop="none")
    grid = spec.grid(one)
    first, second = spec.apply(one, grid=grid), spec.apply(other, grid=grid)
    # indices 0 and 1 have their centres at 0.5 and 2.5 mm, before the second scan begins at 4.5 mm; 2 is cut
    assert (second[:2] == -1024).all() and np.array_equal(first[3:], second[3:])
    tilted = dataclasses.replace(
        grid, affine_ras=turned_affine((range(3), (1, 1, 1)), (2, 2, 2), tilt=(2, 0, 0))
    )
    with pytest.raises(ConfigError, match=r"the grid is turned against the volume by up to 0\.7 voxels"):
        spec.apply(one, grid=tilted)


def test_only_one_channel_of_three_axes_in_hu_is_a_volume():
    array = np.zeros((2, 3, 4), np.int16)
    with pytest.raises(
        ConfigError, match="the values of the volume are modality_lut; a volume spec needs HU"
    ):
        VolumeSpec().grid(image(array, np.eye(4), Unit.MODALITY_LUT))
    with pytest.raises(ConfigError, match=r"got an array of shape \(2, 3, 4\)"):
        VolumeSpec().apply(Image(array, Unit.HU, affine_ras=np.eye(4), spacing_mm=(1.0, 1.0)))


def test_memory_is_that_of_the_result_and_a_few_planes():
    array = np.random.default_rng(0).integers(-1000, 1000, (120, 256, 256), dtype=np.int16)  # 15.7 MB
    scan = image(array, turned_affine(((2, 1, 0), (1, -1, -1)), (2.5, 0.8, 0.8)))
    spec = VolumeSpec(spacing_mm=(1.0, 1.0, 2.0), crop="body")
    grid = spec.grid(scan)
    spec.apply(scan, grid=grid)  # the bands are cached
    tracemalloc.start()
    try:
        stored = spec.apply(scan, grid=grid)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    planes = 8 * 4 * 256 * 256
    assert peak <= stored.nbytes + planes  # 0.07 of the source beyond the result


# --- body ---------------------------------------------------------------------------------------


def scan_of_a_chest(shape=(160, 140, 40), spacing=(2.5, 2.5, 5.0)):
    """Return HU of a body of 300 × 200 mm with lungs through all slices, on a table, under a blanket."""
    hu = np.full(shape, -1000, np.int16)
    x, y, _ = np.meshgrid(
        *(np.arange(n) * edge for n, edge in zip(shape, spacing, strict=True)), indexing="ij"
    )
    hu[((x - 200) / 150) ** 2 + ((y - 170) / 100) ** 2 <= 1] = 40
    for side in (-70, 70):
        hu[((x - 200 - side) / 50) ** 2 + ((y - 170) / 70) ** 2 <= 1] = -850
    hu[(y > 55) & (y < 62)] = 100  # the shell of the table, 20 mm behind the back
    hu[(y > 280) & (y < 285) & (x > 60) & (x < 340)] = -100  # a blanket
    return hu, spacing


def test_the_body_is_cut_out_of_air_table_and_blanket():
    hu, spacing = scan_of_a_chest()
    box = body_box(hu, spacing, margin_mm=10)
    # the body runs from 50 to 350 mm and from 70 to 270 mm; the margin is 10 mm and a coarse step 4 or 5 mm
    low, high = ([ends[side] * edge for ends, edge in zip(box, spacing, strict=True)] for side in (0, 1))
    assert 34 <= low[0] <= 40 and 360 <= high[0] <= 368
    assert 54 <= low[1] <= 60 and 280 <= high[1] <= 288
    assert box[2] == (0, 40)  # along the table nothing is taken away: the body goes on beyond the scan
    inside = hu[tuple(slice(*ends) for ends in box)]
    assert ((inside == 40) | (inside == -850)).sum() == ((hu == 40) | (hu == -850)).sum()


def test_two_legs_are_one_body():
    hu = np.full((120, 60, 30), -1000, np.int16)
    hu[15:40, 20:45] = hu[75:105, 20:45] = 40
    assert body_box(hu, (4.0, 4.0, 4.0), margin_mm=0)[0] == (15, 105)


def test_lungs_are_kept_behind_a_wall_thinner_than_the_grid():
    # an infant: 5 mm of wall around each lung vanish from what is looked at, the spine and heart do not
    hu = np.full((120, 120, 20), -1000, np.int16)
    hu[10:110, 30:90] = 40
    hu[15:55, 35:85] = hu[65:105, 35:85] = -850
    (left, right), (back, front), _ = body_box(hu, (1.0, 1.0, 4.0), margin_mm=10)
    assert left <= 10 and right >= 110 and back <= 30 and front >= 90


@pytest.mark.parametrize("value", [-1000, 40])
def test_a_scan_of_nothing_else_stays_whole(value):
    hu = np.full((30, 40, 7), value, np.int16)
    assert body_box(hu, (1.0, 1.0, 1.0), margin_mm=10) == ((0, 30), (0, 40), (0, 7))


def test_the_grid_begins_at_the_body():
    hu, spacing = scan_of_a_chest()
    affine = np.diag([*spacing, 1.0])
    grid = VolumeSpec(spacing_mm=(5.0, 5.0, 5.0)).grid(image(hu, affine))
    (left, right), (back, front), _ = body_box(hu, spacing, margin_mm=10.0)
    for axis, (low, high) in enumerate(((left, right), (back, front))):
        first = grid.affine_ras[axis, 3] - 2.5  # the edge of the first stored voxel
        assert first == pytest.approx((low - 0.5) * 2.5, abs=1.25)
        assert first + 5 * grid.shape[axis] == pytest.approx((high - 0.5) * 2.5, abs=1.25)


@pytest.mark.data
def test_no_structure_of_a_real_scan_is_cut_off(shared_data):
    folder = shared_data / "ct" / "volumes"
    scan = canonical(read_nifti(folder / "chest_ct.nii.gz", unit=Unit.HU))
    structures = canonical(read_nifti(folder / "chest_ct_structures.nii.gz")).array[0]
    box = body_box(scan.array[0], scan.spacing_mm, margin_mm=0)
    inside = structures[tuple(slice(*ends) for ends in box)]
    assert (inside > 0).sum() == (structures > 0).sum() > 10**6
    assert box[1][1] - box[1][0] < 200  # of 256 rows: the table and the air behind and before are gone
