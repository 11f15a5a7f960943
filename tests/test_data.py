"""Store to batch: pairs, augmentation, and an order that can resume anywhere."""

import dataclasses
import multiprocessing
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.data import (
    Augment,
    BatchOrder,
    BatchStream,
    PairDataset,
    in_order,
)
from medvl.data.augment import draw
from medvl.errors import ConfigError, UsageError
from medvl.specs import InputSpec
from medvl.splits import split_of
from medvl.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from tinystore import write_store, write_tiny

INPUT = InputSpec(size_px=(24, 32), mean=(0.3,), std=(0.2,))


def encode(reports):
    """The number of letters of each sentence: enough to see which sentence went where."""
    width = max(len(report) for report in reports)
    tokens = np.zeros((len(reports), width), np.int64)
    for i, report in enumerate(reports):
        tokens[i, : len(report)] = [len(sentence) for sentence in report]
    mask = np.where(tokens > 0, np.arange(1, width + 1), 0)
    return tokens, mask


def same_batch(a, b):
    """Whether two batches hold the same bits."""
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a)]
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(write_tiny(tmp_path_factory.mktemp("data") / "store", n=40))


@pytest.mark.parametrize("bytes_", [0, 32 * 32, 32 * 32 + 128, 2**16])
def test_arrays_are_read_into_room_that_is_large_enough(store, bytes_):
    """A stored array has at most 128 bytes of header; with less room than that it takes its own memory."""
    room = np.full(bytes_, 7, np.uint8)
    for record in store.records[:3]:
        array = store.pixels(record, room=room)
        assert np.array_equal(array, store.pixels(record))
        assert np.shares_memory(array, room) == (bytes_ >= 32 * 32 + 128)


# --- data set -----------------------------------------------------------------------------------


def test_a_pair_is_what_the_input_spec_says(store):
    pairs = PairDataset(store, "train", input=INPUT)
    for row in (0, 5):
        image, mask = INPUT.apply(store.pixels(pairs.records[row]))
        assert np.array_equal(pairs[row].image, image)
        assert np.array_equal(pairs[row].image_mask, mask)
        assert pairs[row].sentences == pairs.records[row].retrieval


def test_memory_and_disk_give_the_same_pairs(store):
    for augment in (None, Augment()):
        in_memory = PairDataset(store, "train", input=INPUT, augment=augment)
        on_disk = PairDataset(store, "train", input=INPUT, augment=augment, cache_mb=0)
        assert in_memory.cached and not on_disk.cached
        for key in ((0, 1), (3, 2)):
            assert np.array_equal(in_memory[key].image, on_disk[key].image)


def test_a_sample_depends_on_seed_epoch_and_record_alone(store):
    options = {"input": INPUT, "augment": Augment(), "order": "shuffled"}
    one, two = (PairDataset(store, "train", seed=1, **options) for _ in range(2))
    alone = one[(2, 4)]
    beside = two.pairs([(2, 0), (2, 4), (5, 4)])
    assert np.array_equal(alone.image, beside[1].image) and alone.sentences == beside[1].sentences
    assert not np.array_equal(alone.image, beside[2].image)  # another epoch
    other = PairDataset(store, "train", seed=2, **options)[(2, 4)]
    assert not np.array_equal(alone.image, other.image)


def test_shuffled_sentences_are_all_there(store):
    pairs = PairDataset(store, "train", input=INPUT, order="shuffled")
    orders = {pairs[(epoch, 0)].sentences for epoch in range(20)}
    assert orders == {pairs.records[0].retrieval, pairs.records[0].retrieval[::-1]}


def test_few_sentences_are_drawn_anew_each_epoch(store):
    shuffled = PairDataset(store, "train", input=INPUT, order="shuffled", most=1)
    assert {shuffled[(epoch, 0)].sentences for epoch in range(20)} == {
        (s,) for s in shuffled.records[0].retrieval
    }
    in_order = PairDataset(store, "train", input=INPUT, order="report", most=2)
    assert in_order[(7, 0)].sentences == in_order.records[0].retrieval


def test_rare_sentences_are_drawn_more_often(tmp_path, store):
    """Of two sentences said by 9 reports and by 1, the second is drawn with chance 9 / (1 + 9)."""
    (tmp_path / "shards").mkdir()
    samples = [
        (
            # A report counts once, however often it says a sentence; all but the first say it twenty times.
            dataclasses.replace(
                record,
                split="train",
                retrieval=("Size 4.2 cm.",) * (20 if i else 1) + (f"Case {'abcdefghi'[i]}.",),
            ),
            pixels,
        )
        for i, (record, pixels) in zip(range(9), store, strict=False)
    ]
    write_store(tmp_path, samples)
    pairs = PairDataset(Store(tmp_path), "train", input=INPUT, order="shuffled", most=1)
    epochs = 400
    rare = sum(pairs[(epoch, 0)].sentences[0].startswith("Case") for epoch in range(epochs))
    # binomial with p = 0.9: standard deviation sqrt(400 * 0.9 * 0.1) = 6; four of them
    assert abs(rare - 0.9 * epochs) < 24


def test_records_without_text_or_geometry_are_counted(store, tmp_path):
    (tmp_path / "shards").mkdir()
    samples = [(dataclasses.replace(record, split="train"), pixels) for record, pixels in store]
    samples[0] = (dataclasses.replace(samples[0][0], retrieval=()), samples[0][1])
    samples[1] = (dataclasses.replace(samples[1][0], retrieval=(" ",)), samples[1][1])
    samples[2] = (dataclasses.replace(samples[2][0], geometry="rejected:gap"), samples[2][1])
    write_store(tmp_path, samples)
    pairs = PairDataset(Store(tmp_path), "train", input=INPUT)
    assert len(pairs) == 37
    assert pairs.skipped == {"no text": 2, "rejected:gap": 1}
    with pytest.raises(UsageError, match="the split 'test' has no image with a report: 0 records"):
        PairDataset(Store(tmp_path), "test", input=INPUT)


def test_the_rewritten_view_reads_rewritten_records_alone(store, tmp_path):
    (tmp_path / "shards").mkdir()
    samples = [
        (dataclasses.replace(record, split="train", rewritten=(f"Rewritten {i}.",) if i < 4 else ()), pixels)
        for i, (record, pixels) in zip(range(10), store, strict=False)
    ]
    write_store(tmp_path, samples)
    pairs = PairDataset(Store(tmp_path), "train", input=INPUT, view="rewritten")
    assert [pairs[row].sentences for row in range(4)] == [(f"Rewritten {i}.",) for i in range(4)]
    assert len(pairs) == 4 and len(set(pairs.report.tolist())) == 4  # keyed by what is read
    assert pairs.skipped == {"no text": 6}  # though they all have retrieval sentences


def test_a_new_split_follows_patients(store):
    splits = {}
    for split in ("train", "val", "test"):
        pairs = PairDataset(store, split, input=INPUT, split_seed=3)
        splits |= {record.record_id: split for record in pairs.records}
        assert all(split_of(record.patient_id, seed=3) == split for record in pairs.records)
    assert len(splits) == 40
    assert any(record.split != splits[record.record_id] for record in store.records)


def test_unknown_split_is_named(store):
    with pytest.raises(UsageError, match="unknown split 'dev'"):
        PairDataset(store, "dev", input=INPUT)


def test_batch_keys_and_labels(store):
    pairs = PairDataset(store, "train", input=INPUT)
    batch = pairs.batch([(0, 0), (0, 1), (0, 0)], encode=encode)
    assert batch.images.shape == (3, 1, 24, 32) and batch.images.dtype == torch.float32
    assert batch.image_mask.sum() == 3 * 24 * 24  # a square picture in a 24 x 32 canvas
    assert batch.study[0] == batch.study[2] != batch.study[1]
    assert pairs.label_names == ("nodule",)
    expected = [float(pairs.records[row].labels["nodule"] == "present") for row in (0, 1, 0)]
    assert batch.labels[:, 0].tolist() == expected


def test_reports_with_the_same_sentences_share_a_key(tmp_path):
    # the first 40 records of a store whose reports name the class alone: three different reports
    pairs = PairDataset(Store(write_tiny(tmp_path / "s", n=40, own_words=False)), "train", input=INPUT)
    assert len(set(pairs.report.tolist())) == 3
    assert len(set(pairs.study.tolist())) == len(pairs)


def test_data_set_survives_pickling(store):
    pairs = PairDataset(store, "train", input=INPUT, augment=Augment())
    again = pickle.loads(pickle.dumps(pairs))  # noqa: S301 - what a worker process does
    assert np.array_equal(pairs[(1, 3)].image, again[(1, 3)].image)


# --- augmentation -------------------------------------------------------------------------------


def still(**changes):
    sizes = dict.fromkeys(("rotate_deg", "shift", "zoom", "brightness", "contrast", "noise"), 0.0)
    return Augment(**sizes | {name: float(value) for name, value in changes.items()})


class Fixed(np.random.Generator):
    """A stream whose dice are all the same."""

    def __init__(self, value):
        super().__init__(np.random.PCG64(0))
        self.value = value

    def uniform(self, low, high, size):
        return np.full(size, self.value)


def test_rotation_is_rigid_on_an_oblong_canvas():
    # A disc at (x, y) from the centre turns to (x cos + y sin, -x sin + y cos), its distance unchanged.
    canvas = np.zeros((1, 61, 121), np.uint8)
    rows, columns = np.mgrid[:61, :121]
    canvas[0, (rows - 30) ** 2 + (columns - 80) ** 2 <= 9] = 255
    turned, _ = still(rotate_deg=45)(canvas, np.ones(canvas.shape, bool), streams=[Fixed(1.0)])
    weight = turned[0] / turned[0].sum()
    x, y = (weight * columns).sum() - 60, (weight * rows).sum() - 30
    assert np.hypot(x, y) == pytest.approx(20, abs=0.1)
    assert abs(x) == pytest.approx(20 * np.cos(np.pi / 4), abs=0.1)
    assert turned.sum() == pytest.approx(canvas.sum(), rel=0.02)


def test_shift_is_a_share_of_the_side():
    canvas = np.zeros((1, 40, 80), np.uint8)
    canvas[0, 20, 40] = 200
    moved, mask = still(shift=0.1)(canvas, np.ones(canvas.shape, bool), streams=[Fixed(-1.0)])
    assert np.unravel_index(moved[0].argmax(), (40, 80)) == (24, 48)
    assert not mask[0, :4].any() and mask[0, 4:, 8:].all()  # what turns in from outside is no film


def test_brightness_and_contrast_follow_the_formula():
    canvas = np.array([[[100, 140], [120, 120]]], np.uint8)
    mask = np.ones(canvas.shape, bool)
    # (1 + c)(v - m) + m + 255 d with m = 120, c = 0.5, d = 0.1
    changed, _ = still(brightness=0.1, contrast=0.5)(canvas, mask, streams=[Fixed(1.0)])
    np.testing.assert_allclose(changed, 1.5 * (canvas - 120.0) + 120 + 25.5)


def test_padding_stays_black_and_the_range_is_kept():
    canvas = np.full((8, 16, 16), 250, np.uint8)
    mask = np.zeros(canvas.shape, bool)
    mask[:, :, 4:12] = True
    changed, inside = Augment(brightness=0.5)(canvas * mask, mask, streams=[draw(i) for i in range(8)])
    assert changed.min() >= 0 and changed.max() <= 255
    assert not changed[~inside].any()


def test_left_stays_left():
    # No draw of any size mirrors a film: a marker on the left third stays there.
    canvas = np.zeros((64, 33, 33), np.uint8)
    canvas[:, 16, 4] = 255
    options = still(rotate_deg=10, shift=0.1, zoom=0.2)
    changed, _ = options(canvas, np.ones(canvas.shape, bool), streams=[draw(i) for i in range(64)])
    assert (changed.max(1).argmax(1) < 16).all()


# --- order --------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(2, 50), st.integers(2, 20), st.integers(0, 5))
def test_an_epoch_reads_each_row_at_most_once(n, size, seed):
    order = BatchOrder(n, size=size, seed=seed)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        keys = [key for step in steps for key in order.keys(step)]
        assert {e for e, _ in keys} == {epoch}
        rows = [row for _, row in keys]
        assert len(set(rows)) == len(rows) == order.steps_per_epoch * min(n, size)


def test_the_order_of_a_step_does_not_depend_on_the_way_there():
    forward, jumped = BatchOrder(17, size=4, seed=3), BatchOrder(17, size=4, seed=3)
    all_keys = [forward.keys(step) for step in range(20)]
    assert [jumped.keys(step) for step in (19, 2, 11)] == [all_keys[19], all_keys[2], all_keys[11]]
    assert all_keys[:4] != [BatchOrder(17, size=4, seed=4).keys(step) for step in range(4)]
    assert [r for keys in all_keys[:4] for _, r in keys] != [r for keys in all_keys[4:8] for _, r in keys]


def test_a_stream_started_anywhere_is_the_tail_of_the_whole(store):
    pairs = PairDataset(store, "train", input=INPUT, augment=Augment(), order="shuffled")
    order = BatchOrder(len(pairs), size=8, seed=0)
    whole = list(BatchStream(pairs, order=order, encode=encode, start=0, stop=7))
    tail = list(BatchStream(pairs, order=order, encode=encode, start=5, stop=7))
    assert len(whole) == 7
    for a, b in zip(whole[5:], tail, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.tokens, b.tokens)


def test_ranks_share_a_batch_in_order(store):
    pairs = PairDataset(store, "train", input=INPUT)
    order = BatchOrder(len(pairs), size=8, seed=0)
    whole = next(iter(BatchStream(pairs, order=order, encode=encode, start=2, stop=3)))
    parts = [
        next(iter(BatchStream(pairs, order=order, encode=encode, start=2, stop=3, rank=rank, world=2)))
        for rank in range(2)
    ]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    with pytest.raises(ConfigError, match="a batch of 8 cannot be shared between 3 devices"):
        BatchStream(pairs, order=order, encode=encode, start=0, stop=1, world=3)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("augment", [None, Augment()], ids=["plain", "augmented"])
def test_two_workers_resume_anywhere_with_the_same_bits(store, augment):
    pairs = PairDataset(store, "train", input=INPUT, augment=augment, order="shuffled", cache_mb=0)
    order = BatchOrder(len(pairs), size=8, seed=0)
    options = {"order": order, "encode": encode, "stop": 7}
    plain = list(BatchStream(pairs, start=0, **options))
    worked = list(BatchStream(pairs, start=0, workers=2, **options))
    # the middle of an epoch, and of what two workers had in hand: 3 batches an epoch
    resumed = list(BatchStream(pairs, start=5, workers=2, **options))
    assert order.steps_per_epoch == 3 and len(worked) == 7 and len(resumed) == 2
    for a, b in zip([*plain, *plain[5:]], [*worked, *resumed], strict=True):
        assert same_batch(a, b)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kept", [0, 1, 3, 20])
def test_batches_that_are_kept_are_not_written_over(store, kept):
    """The memory of the last ``kept`` batches is in use while the workers write the next ones."""
    pairs = PairDataset(store, "train", input=INPUT, cache_mb=0)
    order = BatchOrder(len(pairs), size=8, seed=0)
    held, lent = {}, set()
    stream = BatchStream(pairs, order=order, encode=encode, start=0, stop=20, workers=2)
    for step, batch in enumerate(stream):
        lent.add(batch.images.data_ptr())
        held[step] = batch.images[1:, 0]  # a view keeps the whole place
        held.pop(step - kept, None)
        del batch
    assert list(held) == list(range(20 - kept, 20))
    for step, images in held.items():
        expected = pairs.batch(order.keys(step), encode=encode).images[1:, 0]
        assert torch.equal(images, expected), step
    assert kept > 1 or len(lent) <= 8  # places are used again


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_stream_that_is_left_early_stops_its_workers(store):
    pairs = PairDataset(store, "train", input=INPUT, cache_mb=0)
    order = BatchOrder(len(pairs), size=8, seed=0)
    stream = iter(BatchStream(pairs, order=order, encode=encode, start=0, stop=1000, workers=2))
    next(stream)
    children = multiprocessing.active_children()
    assert len(children) == 2
    stream.close()
    for child in children:
        child.join(10)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("size_px", [(23, 31), (24, 32)])  # two pixels are looked up at a time
@pytest.mark.parametrize(("channels", "given"), [(1, 1), (3, 3), (3, 1)])
def test_looking_greys_up_gives_the_bits_of_the_spec(store, channels, given, size_px):
    spec = InputSpec(size_px=size_px, channels=channels, mean=(0.3,) * given, std=(0.21,) * given)
    pairs = PairDataset(store, "train", input=spec)
    batch = pairs.batch([(0, row) for row in range(6)], encode=encode)
    for row in range(6):
        image, mask = spec.apply(store.pixels(pairs.records[row]))
        assert np.array_equal(batch.images[row].numpy(), image)
        assert np.array_equal(batch.image_mask[row].numpy(), mask)


def test_too_small_a_batch_is_refused():
    with pytest.raises(ConfigError, match="a batch of 1 out of 9 records"):
        BatchOrder(9, size=1, seed=0)


def test_in_order_reads_everything_once(store):
    pairs = PairDataset(store, "train", input=INPUT)
    studies = torch.cat([batch.study for batch in in_order(pairs, encode=encode, size=7)])
    assert studies.tolist() == pairs.study.tolist()
