"""What is told of places in a volume: sliding windows, heat maps, boxes, pictures."""

import dataclasses
import itertools
import sys
import weakref
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medvl.errors import ConfigError, UsageError
from medvl.evaluation.grounding import (
    box_mask,
    box_sides,
    cells_in_boxes,
    contrast_to_noise,
    mean_iou,
    pointing,
)
from medvl.features import ImageFeatures
from medvl.heads.grounding import cell_map, heat_map, volume_vectors
from medvl.planes import Montage, orientation_letters, window_of, windowed
from medvl.records import Box
from medvl.sliding import Lattice, mean_answers, part_cells, whole_volumes, window_batches
from medvl.specs import InputSpec, PixelSpec, VolumeInput

sys.path.insert(0, str(Path(__file__).parent))
from tinyvolumes import tiny

# --- sliding windows ----------------------------------------------------------------------------


def means(cell):
    """Return an encoder whose regions are the means of cells of ``cell`` voxels."""

    def encode(images, mask):
        regions = torch.nn.functional.avg_pool3d(images, cell).flatten(2).transpose(1, 2)
        seen = torch.nn.functional.max_pool3d(mask[:, None].float(), cell).flatten(1) > 0
        grid = tuple(side // cell for side in images.shape[2:])
        return ImageFeatures(images.flatten(2).mean(2), regions, grid, seen)

    return encode


WIDE = VolumeInput(size_px=(8, 8, 8), windows=((0.0, 60000.0),), mean=(0.0,), std=(1.0,))


def test_windows_of_a_cellwise_encoder_give_the_cells_of_the_whole():
    """Starts 0, 6, 12 are multiples of the cell of 2, so every cell's mean is that of the whole volume."""
    volume = np.random.default_rng(0).integers(-1000, 1000, (20, 8, 14), dtype=np.int16)
    found = next(whole_volumes(means(2), WIDE, [volume]))
    assert found.grid == (10, 4, 7) and found.mask.all()
    assert found.lattice == Lattice((1.0,) * 3, (0.0,) * 3, (20.0, 8.0, 14.0))
    cells = WIDE.window(volume)[0].reshape(10, 2, 4, 2, 7, 2).mean((1, 3, 5))
    assert np.abs(found.regions[:, 0] - cells.ravel()).max() < 1e-6


def test_windows_beside_the_cells_share_by_overlap():
    """Along x: length 11, windows at 0, 3 (11 - 8), cell 4: the second window's cells 3-7, 7-11 lie beside
    the whole's 0-4, 4-8, 8-12. Cell 0: window 1's first with weight 1 and 1/4 of window 2's first, and so on.
    """
    volume = np.zeros((11, 8, 8), np.int16)
    volume[:] = (np.arange(11) * 1000)[:, None, None]
    found = next(whole_volumes(means(4), WIDE, [volume]))
    value = WIDE.window((np.arange(11) * 1000)[:, None, None].astype(np.int16))[0, :, 0, 0]
    first = [value[0:4].mean(), value[4:8].mean()]
    second = [value[3:7].mean(), value[7:11].mean()]
    expected = [
        (first[0] + second[0] / 4) / 1.25,
        (first[1] + 0.75 * second[0] + 0.25 * second[1]) / 2,
        second[1],
    ]
    assert found.grid == (3, 2, 2)
    assert np.allclose(found.regions[:, 0].reshape(3, 2, 2)[:, 0, 0], expected, atol=1e-6)


def test_pooled_is_the_mean_over_windows_by_their_voxels():
    volume = np.random.default_rng(1).integers(-1000, 1000, (20, 5, 14), dtype=np.int16)
    found = next(whole_volumes(means(2), WIDE, [volume]))
    windows = [WIDE.apply(volume, start=start)[0].mean() for start in WIDE.tiles(volume.shape, overlap=0.25)]
    # Every window has 8 × 5 × 8 voxels of the scan, so the weights are equal.
    assert found.pooled[0] == pytest.approx(np.mean(windows), abs=1e-6)
    # 5 voxels are padded to 8 by one before and two after: cells 0 to 3 see 1, 2, 2 and 0 of them.
    assert found.mask.reshape(found.grid)[0, :, 0].tolist() == [True, True, True, False]
    assert found.lattice.offset == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("shape", [(20, 8, 14), (30, 17, 9), (5, 6, 7)])
def test_how_many_windows_at_once_changes_nothing(shape):
    loaded = tiny()
    volume = np.random.default_rng(2).integers(-1000, 1000, shape, dtype=np.int16)
    one, many = (
        next(whole_volumes(loaded.model.encode_image, loaded.input, [volume], size=n)) for n in (1, 50)
    )
    assert one.grid == many.grid and np.array_equal(one.mask, many.mask)
    assert np.abs(one.regions - many.regions).max() < 1e-5 and np.abs(one.pooled - many.pooled).max() < 1e-5


SHAPES = [(20, 8, 14), (5, 6, 7), (30, 17, 9), (16, 16, 16), (12, 21, 10)]
"""Crops of 16³: 2, 1, 6, 1 and 2 windows, so that batches of 5 end within volumes and the last is short."""


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("size", [2, 5, 50])
def test_volumes_that_share_batches_are_those_embedded_alone(fit, size):
    loaded = tiny(input=VolumeInput(size_px=(16, 16, 16), windows=((0.0, 2000.0),), fit=fit))
    rng = np.random.default_rng(7)
    volumes = [rng.integers(-1000, 1000, shape, dtype=np.int16) for shape in SHAPES]
    encode, input = loaded.model.encode_image, loaded.input
    windows = [len(input.tiles(shape)) for shape in SHAPES]
    assert windows == ([2, 1, 6, 1, 2] if fit == "crop" else [1] * 5)
    counts = [len(masks) for _, _, masks in window_batches(input, volumes, size=size)]
    full, rest = divmod(sum(windows), size)
    assert counts == [size] * full + [rest] * (rest > 0)

    together = list(whole_volumes(encode, input, iter(volumes), size=size))
    unit = loaded.embed_images(iter(volumes), batch_size=size)
    answers = mean_answers(lambda *pair: encode(*pair).pooled, input, iter(volumes), size=size)
    for row, (volume, found, answer) in enumerate(zip(volumes, together, answers, strict=True)):
        (alone,) = whole_volumes(encode, input, [volume], size=1)
        assert found.grid == alone.grid and found.lattice == alone.lattice
        assert np.array_equal(found.mask, alone.mask)
        assert np.abs(found.regions - alone.regions).max() < 1e-6
        assert np.abs(found.pooled - alone.pooled).max() < 1e-6 and np.abs(answer - alone.pooled).max() < 1e-6
        assert np.abs(unit[row] - alone.pooled / np.linalg.norm(alone.pooled)).max() < 1e-6
    assert not list(whole_volumes(encode, input, [])) and loaded.embed_images([]).shape == (
        0,
        loaded.model.dim,
    )


def test_one_stored_volume_is_in_memory_at_a_time():
    loaded, seen = tiny(), []

    def read():
        assert all(reference() is None for reference in seen)
        volume = np.zeros((40, 16, 16), np.int16)
        seen.append(weakref.ref(volume))
        return volume

    assert len(loaded.embed_images(read() for _ in range(4))) == 4
    assert len(list(volume_vectors(loaded, (read() for _ in range(4))))) == 4 and len(seen) == 8


def test_batches_hold_a_tensor_at_least():
    with pytest.raises(ConfigError, match="batch_size is 0; allowed are 1 or more"):
        tiny().embed_images([np.zeros((8, 8, 8), np.int16)], batch_size=0)


def test_a_volume_of_one_window_is_embedded_at_once():
    loaded = tiny()
    volume = np.random.default_rng(3).integers(-1000, 1000, (16, 12, 16), dtype=np.int16)
    (found,) = volume_vectors(loaded, [volume])
    features = loaded.model.encode_image(*loaded.image_tensors([volume]))
    assert np.allclose(found.pooled, features.pooled.detach().numpy(), atol=1e-6)
    seen = features.region_mask.numpy()
    assert found.grid == features.region_grid and np.array_equal(found.mask, seen)
    assert np.allclose(found.regions[seen], features.regions.detach().numpy()[seen], atol=1e-6)
    assert found.lattice == Lattice.of(loaded.input, volume.shape)
    unit = loaded.embed_images([volume, volume])
    assert np.allclose(unit[0], unit[1]) and np.linalg.norm(unit[0]) == pytest.approx(1, abs=1e-6)


def test_a_model_of_films_refuses_volumes():
    films = tiny(input=InputSpec(size_px=(16, 16)), pixels=PixelSpec())
    with pytest.raises(ConfigError, match="reads films; a volume was given"):
        films.wholes([np.zeros((8, 8, 8), np.int16)])


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_part_cells_against_a_loop(fit):
    rng = np.random.default_rng(4)
    input = VolumeInput(size_px=(12, 8, 8), fit=fit)
    numbers = rng.integers(0, 4, (9, 13, 6)).astype(np.uint8) * (rng.random((9, 13, 6)) < 0.05)
    numbers = numbers.astype(np.uint8)
    lattice, grid = Lattice.of(input, numbers.shape), (3, 2, 4)
    expected = np.zeros((*grid, 2), bool)
    for voxel in itertools.product(*map(range, numbers.shape)):
        part = int(numbers[voxel])
        place = [(v + 0.5) * s + o for v, s, o in zip(voxel, lattice.scale, lattice.offset, strict=True)]
        cell = [int(np.floor(p * g / n)) for p, g, n in zip(place, grid, input.size_px, strict=True)]
        if 1 <= part <= 2 and all(0 <= c < g for c, g in zip(cell, grid, strict=True)):
            expected[(*cell, part - 1)] = True
    found = part_cells(numbers, lattice=lattice, grid=grid, parts=2)
    assert np.array_equal(found, expected.reshape(-1, 2)) and expected.any()


# --- grounding ----------------------------------------------------------------------------------


def test_a_map_in_three_axes_is_trilinear_and_nan_where_nobody_looked():
    """Cells on a line from 0 to 1 along y: voxel centres read between cell centres; the crop ends inside."""
    cells = np.zeros((2, 2, 2))
    cells[:, 1] = 1.0
    input = VolumeInput(size_px=(4, 4, 4))
    heat = heat_map(cells, input=input, shape=(4, 8, 4), sigma=0.0)
    assert np.isnan(heat[:, :2]).all() and np.isnan(heat[:, 6:]).all()
    assert np.allclose(heat[1, 2:6, 3], [0, 0.25, 0.75, 1.0])  # as the films' example
    smooth = heat_map(np.where(np.arange(8).reshape(2, 2, 2) < 7, 0.3, np.nan), input=input, shape=(4, 4, 4))
    assert np.allclose(smooth, 0.3)  # a constant stays one beside cells without a scan


def test_slabs_of_a_large_map_are_the_map(monkeypatch):
    cells = np.random.default_rng(5).normal(size=(3, 4, 2))
    input = VolumeInput(size_px=(12, 16, 8), fit="resize")
    whole = heat_map(cells, input=input, shape=(25, 30, 17))
    monkeypatch.setattr("medvl.heads.grounding._SLAB", 1000)
    slabs = heat_map(cells, input=input, shape=(25, 30, 17))
    assert np.allclose(slabs, whole, atol=1e-6, equal_nan=True)


def test_a_map_is_read_as_scipy_reads_it():
    cells = np.random.default_rng(6).normal(size=(3, 1, 2))
    input = VolumeInput(size_px=(12, 16, 8), fit="resize")
    heat = heat_map(cells, input=input, shape=(25, 30, 17), sigma=0.0)
    lattice = Lattice.of(input, heat.shape)
    at = [lattice.cell_of(axis, length=heat.shape[axis], cells=cells.shape[axis]) - 0.5 for axis in range(3)]
    read = map_coordinates(cells, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
    assert np.allclose(heat, read, atol=1e-6) and not np.isnan(heat).any()


def test_cells_and_voxels_in_boxes():
    box = Box("nodule", x0=1.0, y0=2.5, x1=3.0, y1=4.0, z0=7.9, z1=9.0)
    cells = cells_in_boxes([box], grid=(2, 4, 2), size_px=(4, 8, 16))
    expected = np.zeros((2, 4, 2), bool)
    expected[:, 1, 0] = expected[:, 1, 1] = True  # x cells 0-2 and 2-4; y cell 2-4; z cells 0-8 and 8-16
    assert np.array_equal(cells, expected)
    voxels = box_mask([box], shape=(4, 8, 16))
    assert voxels.sum() == 2 * 2 * 1 and voxels[1:3, 2:4, 8].all()  # centres 1.5, 2.5; 2.5, 3.5; 8.5
    flat = dataclasses.replace(box, z0=None, z1=None)
    with pytest.raises(UsageError, match="the box of 'nodule' has no z"):
        box_sides(flat, axes=3)


def test_metrics_of_a_map_in_three_axes():
    """A map that is 1 in the box and 0 beside points right, has IoU 1 at every threshold and no noise."""
    inside = np.zeros((4, 5, 6), bool)
    inside[1:3, 2:4, 3] = True
    heat = inside.astype(float)
    assert pointing(heat, inside) == (1.0, 4 / 120)
    assert mean_iou(heat, inside) == 1.0 and contrast_to_noise(heat, inside) is None
    rng = np.random.default_rng(6)
    noisy = heat + rng.normal(size=heat.shape)
    out = noisy[~inside]
    expected = (noisy[inside].mean() - out.mean()) / np.sqrt(noisy[inside].var() + out.var())
    assert contrast_to_noise(noisy, inside) == pytest.approx(expected)


def test_cell_map_of_three_axes():
    regions = np.eye(8)
    found = cell_map(regions, regions[5], grid=(2, 2, 2), mask=np.arange(8) != 2)
    assert found[1, 0, 1] == 1 and np.isnan(found[0, 1, 0]) and np.nansum(found) == 1
    with pytest.raises(UsageError, match=r"a grid of \(2, 2\) does not hold 8 regions"):
        cell_map(regions, regions[0], grid=(2, 2), mask=np.ones(8, bool))


# --- pictures -----------------------------------------------------------------------------------


def test_slices_hang_as_radiologists_hang_them():
    """x grows to the right, y to the front, z to the top: the first voxel is left, back and low."""
    volume = np.full((4, 6, 8), -1024, np.int16)
    volume[3, 5, 7] = 3000  # the patient's right, front, top
    montage = Montage(volume.shape, (1.0, 1.0, 1.0), at=(3.5, 5.5, 7.5), side_px=140)
    axial, coronal, sagittal = montage.slices(volume)
    assert axial.shape == (6, 4) and coronal.shape == (8, 4) and sagittal.shape == (8, 6)
    for part in (axial, coronal, sagittal):  # right on the left; front or head at the top; front on the left
        assert part[0, 0] == 3000 and (part == 3000).sum() == 1
    # In px: x 4, y 6 mm wide with a gap of 4 between, so 14 mm over 140: 10 px a mm.
    picture = np.asarray(montage.grey(volume, (0.0, 100.0)))
    assert picture.shape == (180 * 140 // 180, 140 * 140 // 180) or picture.shape[0] == 140
    marks = montage.mark((3.5, 5.5, 7.5))
    for x, y in marks:  # each mark lies on the white voxel
        row, column = int(y / 100 * picture.shape[0]), int(x / 100 * picture.shape[1])
        assert picture[row, column] > 200


def test_boxes_are_drawn_on_the_slices_that_cut_them():
    montage = Montage((10, 10, 10), (1.0, 1.0, 1.0), at=(2.5, 5.5, 5.5), side_px=240)
    through = Box("a", x0=2.0, y0=5.0, x1=4.0, y1=7.0, z0=5.0, z1=8.0)
    beside = Box("b", x0=3.0, y0=5.0, x1=4.0, y1=7.0, z0=5.0, z1=8.0)
    assert len(montage.boxes(through)) == 3 and len(montage.boxes(beside)) == 2
    # On the axial slice: 10 px a mm; x 2-4 from the left of the patient is 60-80 px from the left edge.
    axial = montage.boxes(through)[0]
    assert [round(axial[key] * 2.4, 6) for key in ("left", "top", "width", "height")] == [60, 30, 20, 20]


def test_millimetres_decide_the_shape():
    montage = Montage((10, 10, 10), (1.0, 1.0, 4.0), side_px=540)  # 10 + 4 + 10 mm wide, 10 + 4 + 40 high
    assert montage.size_px == (240, 540)


def test_windows():
    assert windowed(np.array([[-160, 40, 240]], np.int16), (40, 400)).tolist() == [[0, 128, 255]]
    assert window_of(["lung_nodule"]) == (-600, 1500) and window_of(["liver_lesion", "x"]) == (40, 400)
    assert window_of([]) == (40, 400)


@pytest.mark.parametrize(
    ("affine", "letters"),
    [
        (np.diag([1.0, 1.0, 1.0, 1.0]), ("R", "L", "A", "P")),
        (
            np.diag([-2.0, 1.0, 3.0, 1.0]),
            ("L", "R", "A", "P"),
        ),  # nobody stores this; the letters would say so
        (np.array([[0, 1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]), ("S", "I", "R", "L")),
    ],
)
def test_letters_follow_the_affine(affine, letters):
    assert orientation_letters(affine.ravel().tolist(), columns=0, rows=1) == letters
    codes = nibabel.aff2axcodes(affine)
    assert (letters[0], letters[2]) == codes[:2]


@pytest.mark.parametrize(("degrees", "right"), [(20, "R"), (25, "RA"), (65, "AR"), (70, "A"), (-25, "RP")])
def test_an_oblique_axis_has_the_letters_that_it_leans_to(degrees, right):
    """Sine of 22.5 degrees, 0.383, is where the second letter begins: 20 has one, 25 has two."""
    turn = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= 1.5
    opposite = right.translate(str.maketrans("RLAP", "LRPA"))
    assert orientation_letters(affine.ravel().tolist(), columns=0, rows=2)[:2] == (right, opposite)


def test_no_letters_without_an_affine_or_where_they_would_hide_the_picture():
    volume = np.full((60, 60, 60), -1024, np.int16)
    bare = Montage(volume.shape, (1.0, 1.0, 1.0), side_px=240)
    assert not np.asarray(bare.grey(volume, (40.0, 400.0))).any()
    affine = tuple(np.eye(4).ravel().tolist())
    lettered = dataclasses.replace(bare, affine_ras=affine)
    assert np.asarray(lettered.grey(volume, (40.0, 400.0))).any()
    tiny = dataclasses.replace(lettered, side_px=60)
    assert not np.asarray(tiny.grey(volume, (40.0, 400.0))).any()
