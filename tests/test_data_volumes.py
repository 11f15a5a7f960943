"""Volumes as pictures of a batch: crops, padding, augmentation in HU, parts of voxels, workers, memory."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medvl.anatomy import sentence_parts
from medvl.data import Augment, BatchOrder, BatchStream, PairDataset, VolumeAugment
from medvl.data.augment import draw
from medvl.errors import ConfigError
from medvl.preprocess.reports.organs import state_numbers
from medvl.specs import InputSpec, VolumeInput
from medvl.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from test_data import encode, same_batch
from tinystore import write_tiny
from tinyvolumes import LIVER, LUNGS, write_volumes

CROP = VolumeInput(size_px=(24, 20, 16), windows=((-600.0, 1500.0), (40.0, 400.0)))
FIT = VolumeInput(size_px=(12, 12, 12), fit="resize")
STILL = VolumeAugment(rotate_deg=0, shift=0, zoom=0, gain=0, offset_hu=0, noise_hu=0)


def parts(sentences):
    return sentence_parts(sentences, modality="ct")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(write_volumes(tmp_path_factory.mktemp("volumes") / "store", n=24))


@pytest.mark.parametrize("input", [CROP, FIT], ids=["crop", "resize"])
@pytest.mark.parametrize("cache_mb", [0, 64])
def test_a_pair_is_what_the_input_spec_says(store, input, cache_mb):
    pairs = PairDataset(store, "train", input=input, cache_mb=cache_mb)
    assert pairs.cached == (cache_mb > 0)
    for row in range(8):
        image, mask = input.apply(store.pixels(pairs.records[row]))
        assert np.array_equal(pairs[row].image, image)
        assert np.array_equal(pairs[row].image_mask, mask)


@pytest.mark.parametrize("input", [CROP, FIT], ids=["crop", "resize"])
@pytest.mark.parametrize("augment", [None, STILL, VolumeAugment()], ids=["none", "still", "moving"])
def test_memory_and_disk_give_the_same_bits(store, input, augment):
    options = {"input": input, "augment": augment, "place": "random", "parts": parts}
    memory = PairDataset(store, "train", **options)
    disk = PairDataset(store, "train", cache_mb=0, **options)
    keys = [(epoch, row) for epoch in (0, 3) for row in range(len(memory))]
    assert same_batch(memory.batch(keys, encode=encode), disk.batch(keys, encode=encode))


def test_a_sample_depends_on_seed_epoch_and_record_alone(store):
    pairs = PairDataset(store, "train", input=CROP, augment=VolumeAugment(), place="random")
    alone = pairs[(2, 4)]
    beside = pairs.pairs([(2, 0), (2, 4), (5, 4)])
    assert np.array_equal(alone.image, beside[1].image)
    assert not np.array_equal(alone.image, beside[2].image)
    other = PairDataset(store, "train", input=CROP, augment=VolumeAugment(), place="random", seed=1)
    assert not np.array_equal(alone.image, other[(2, 4)].image)


def test_random_crops_reach_every_place_and_show_the_volume(store):
    pairs = PairDataset(store, "train", input=CROP, place="random")
    stored = store.pixels(pairs.records[0])
    room = np.array(stored.shape) - CROP.size_px
    seen = set()
    for epoch in range(200):
        image = pairs[(epoch, 0)].image
        starts = [
            start
            for start in np.ndindex(*(np.maximum(room, 0) + 1))
            if np.array_equal(image, CROP.apply(stored, start=start)[0])
        ]
        assert len(starts) == 1  # it is a crop of this volume, and noise makes crops tell apart
        seen.add(starts[0])
    # 200 draws of one of the places: all of them are seen but for a chance of places · (1 − 1/places)^200.
    places = int(np.prod(np.maximum(room, 0) + 1))
    assert len(seen) >= 0.85 * places * (1 - (1 - 1 / places) ** 200)
    assert [min(s[axis] for s in seen) for axis in range(3)] == [0, 0, 0]
    assert [max(s[axis] for s in seen) for axis in range(3)] == np.maximum(room, 0).tolist()


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_parts_are_cropped_and_padded_with_the_image(store, cache_mb):
    pairs = PairDataset(store, "train", input=CROP, parts=parts, cache_mb=cache_mb)
    batch = pairs.batch([(0, row) for row in range(len(pairs))], encode=encode)
    assert batch.voxel_parts.shape == batch.image_mask.shape and batch.voxel_parts.dtype == torch.uint8
    for row, record in enumerate(pairs.records):
        whole = store.parts(record)
        if whole is None:
            assert not batch.voxel_parts[row].any()
            continue
        low, high = CROP.span(record.shape)
        cut = whole[tuple(map(slice, low, high))]
        assert np.array_equal(batch.voxel_parts[row][batch.image_mask[row]].numpy(), cut.ravel())
        assert not batch.voxel_parts[row][~batch.image_mask[row]].any()
    assert set(np.unique(batch.sentence_parts)) <= {0, LUNGS, LIVER}
    assert {LUNGS, LIVER} <= set(np.unique(batch.sentence_parts))
    assert batch.sentence_states is None


def test_what_each_sentence_says_stands_beside_its_part(store):
    """The tiny reports speak of the lungs, then of the liver: "A nodule …" or "The lungs are clear."."""
    pairs = PairDataset(store, "train", input=FIT, parts=parts, states=state_numbers)
    batch = pairs.batch([(0, row) for row in range(len(pairs))], encode=encode)
    told = [[-1 if text.startswith("A ") else 1 for text in record.retrieval] for record in pairs.records]
    assert batch.sentence_states.tolist() == told and {-1, 1} == set(np.unique(told))
    assert batch.sentence_states.shape == batch.sentence_parts.shape


def test_nobody_asks_for_parts(store):
    assert PairDataset(store, "train", input=CROP).batch([(0, 0)], encode=encode).voxel_parts is None


def oracle(stored, size, start, motion):
    """Read the volume at the moved places by SciPy, voxel by voxel in double precision; air outside."""
    places = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in size), indexing="ij"))
    middle = np.asarray(size)[:, None, None, None] / 2
    at = np.einsum("ij,jxyz->ixyz", motion.matrix, places - middle) + middle
    at += (motion.shift + start)[:, None, None, None]
    shape = np.asarray(stored.shape)[:, None, None, None]
    padded = np.pad(stored.astype(float), 2, constant_values=-1024)
    values = map_coordinates(padded, at - 0.5 + 2, order=1, mode="nearest")
    return values, ((at >= 0) & (at < shape)).all(0), np.floor(at).astype(int)


def test_motion_is_linear_reading_at_the_moved_places(store):
    """Against scipy.ndimage.map_coordinates at every voxel; parts against the voxel that holds the place."""
    augment = VolumeAugment(rotate_deg=12, shift=0.1, zoom=0.2, gain=0, offset_hu=0, noise_hu=0)
    pairs = PairDataset(
        store, "train", input=CROP, augment=augment, place="random", parts=parts, cache_mb=0, seed=4
    )
    batch = pairs.batch([(1, row) for row in range(6)], encode=encode)
    for row in range(6):
        record = pairs.records[row]
        stored, numbers = store.pixels(record), store.parts(record)
        stream = draw(4, "pixels", 1, record.record_id)
        room = np.array(stored.shape) - CROP.size_px
        drawn = np.floor(stream.uniform(size=3) * (np.maximum(room, 0) + 1))
        start = np.where(room < 0, -(-room // 2), drawn)
        values, inside, voxel = oracle(stored, CROP.size_px, start, augment.motion(CROP.size_px, stream))
        assert np.array_equal(batch.image_mask[row].numpy(), inside)
        expected = CROP.window(np.where(inside, values, -32768).astype(np.float32))
        assert np.abs(batch.images[row].numpy() - expected).max() < 2e-3  # float32 weights of 2,000 HU
        if numbers is not None:
            clipped = tuple(np.clip(voxel[a], 0, stored.shape[a] - 1) for a in range(3))
            assert np.array_equal(batch.voxel_parts[row].numpy(), np.where(inside, numbers[clipped], 0))


def test_rotation_turns_about_z_to_the_left():
    """At +90 degrees the output at +x of the middle shows the input at +y: matrix @ (1, 0, 0) = (0, 1, 0)."""

    class Ends(np.random.Generator):
        def uniform(self, low=0, high=1, size=None):
            return np.array([1.0, 0, 0, 0, 0])

    motion = VolumeAugment(rotate_deg=90).motion((8, 8, 8), Ends(np.random.PCG64(0)))
    assert np.allclose(motion.matrix @ [1, 0, 0], [0, 1, 0]) and np.allclose(motion.matrix[2], [0, 0, 1])


def test_values_change_before_the_window(store):
    """An offset of 100 HU in a window of 400 moves unclipped voxels by a quarter of it, over 0.25."""

    class Up(VolumeAugment):
        def values(self, hu, stream):
            return hu + np.float32(100)

    soft = VolumeInput(size_px=(24, 20, 16), windows=((0.0, 400.0),))
    plain = PairDataset(store, "train", input=soft)[0]
    up = PairDataset(store, "train", input=soft, augment=Up(rotate_deg=0, shift=0, zoom=0))[0]
    free = (plain.image > -1.9) & (up.image < 1.9)
    assert free.sum() > 100 and np.allclose(up.image[free] - plain.image[free], 0.25 / 0.25, atol=1e-5)
    assert np.array_equal(up.image[:, ~up.image_mask], plain.image[:, ~plain.image_mask])  # padding stays


def test_gain_offset_and_noise_have_their_sizes():
    augment = VolumeAugment(gain=0.1, offset_hu=50, noise_hu=20)
    gains, offsets, grains = [], [], []
    for k in range(60):
        low = augment.values(np.full((12, 12, 12), -1000, np.float32), draw(k))
        zero = augment.values(np.zeros((12, 12, 12), np.float32), draw(k))
        gains.append(1 - (zero.mean() - low.mean()) / 1000)
        offsets.append(zero.mean())
        grains.append(zero.std())
    for values, most in ((np.abs(gains), 0.1), (np.abs(offsets), 50 + 2)):
        assert 0.85 * most < max(values) <= most + 1e-6
    assert max(grains) < 20.8 and min(grains) < 2 and np.mean(grains) == pytest.approx(10, abs=2)


def test_workers_change_nothing_and_resume_anywhere(store):
    pairs = PairDataset(
        store, "train", input=CROP, augment=VolumeAugment(), place="random", parts=parts,
        order="shuffled", cache_mb=0,
    )  # fmt: skip
    order = BatchOrder(len(pairs), size=6, seed=3)
    options = {"order": order, "encode": encode}
    alone = list(BatchStream(pairs, start=0, stop=5, **options))
    shared = list(BatchStream(pairs, start=0, stop=5, workers=2, **options))
    resumed = list(BatchStream(pairs, start=3, stop=5, workers=1, **options))
    assert len(alone) == len(shared) == 5
    assert all(same_batch(a, b) for a, b in zip(alone, shared, strict=True))
    assert all(same_batch(a, b) for a, b in zip(alone[3:], resumed, strict=True))
    assert alone[0].voxel_parts is not None and dataclasses.is_dataclass(alone[0])


def test_films_and_volumes_do_not_mix(store, tmp_path):
    with pytest.raises(ConfigError, match="the store holds volumes, but the input is for films"):
        PairDataset(store, "train", input=InputSpec())
    films = Store(write_tiny(tmp_path / "films", n=12))
    with pytest.raises(ConfigError, match=r"holds films, but the input is for volumes.*input\.kind"):
        PairDataset(films, "train", input=CROP)
    with pytest.raises(ConfigError, match="augmentation of films was given for volumes"):
        PairDataset(store, "train", input=CROP, augment=Augment())
    with pytest.raises(ConfigError, match="augmentation of volumes was given for films"):
        PairDataset(films, "train", input=InputSpec(size_px=(24, 24)), augment=VolumeAugment())
