"""The specs: digests, the road from film to picture to tensor, and boxes on the way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import ConfigError, DigestMismatch
from medvl.images import Image, Photometric, Unit, VoiLut, Window
from medvl.records import Box
from medvl.specs import InputSpec, PixelSpec, ReportSpec
from medvl.specs.area import area_mean

pixel_specs = st.builds(
    PixelSpec,
    voi=st.sampled_from(["header", "percentile"]),
    percentiles=st.tuples(st.floats(0, 10), st.floats(90, 100)),
    longest_px=st.integers(16, 8192),
)
input_specs = st.builds(
    InputSpec,
    size_px=st.tuples(st.integers(8, 512), st.integers(8, 512)),
    channels=st.sampled_from([1, 3]),
    mean=st.tuples(st.floats(0, 1)),
    std=st.tuples(st.floats(0.01, 1)),
)
names = st.lists(st.sampled_from(["prior", "history", "empty", "technique"]), max_size=3).map(tuple)
report_specs = st.builds(ReportSpec, retrieval_drop=names, generation_drop=names, generation_sections=names)
any_spec = st.one_of(pixel_specs, input_specs, report_specs)


# --- JSON and digest ---


@given(any_spec)
def test_json_round_trip_keeps_value_and_digest(spec):
    again = type(spec).from_json(spec.model_dump(mode="json"))
    assert again == spec and again.digest == spec.digest and len(spec.digest) == 16
    spec.require(again.digest)


@pytest.mark.traps(row=14)
@given(any_spec, any_spec)
def test_digests_are_equal_exactly_when_specs_are(one, two):
    assert (one.digest == two.digest) == (one == two)


@pytest.mark.parametrize("spec", [PixelSpec(), InputSpec(), ReportSpec()], ids=lambda spec: spec.what)
def test_each_field_changes_the_digest(spec):
    other = {
        "voi": "percentile",
        "percentiles": (1.0, 99.0),
        "longest_px": 256,
        "size_px": (224, 256),
        "channels": 3,
        "mean": (0.4,),
        "std": (0.2,),
        "version": 1,
    }
    for name, value in spec:
        fallback = (
            f"{value}x" if isinstance(value, str) else (*value, "x") if isinstance(value, tuple) else None
        )
        changed = spec.model_copy(update={name: other.get(name, fallback)})
        assert changed != spec and changed.digest != spec.digest, name


@pytest.mark.traps(row=14)
def test_errors_of_a_spec():
    with pytest.raises(ConfigError, match=r"pixel spec has no key 'longest'. .*Did you mean 'longest_px'"):
        PixelSpec.from_json({"longest": 3})
    with pytest.raises(ConfigError, match=r"pixel spec: longest_px is 3: .* greater than or equal to 16"):
        PixelSpec.from_json({"longest_px": 3})
    with pytest.raises(
        DigestMismatch, match=rf"input spec digest is 00ff, but the model .* {InputSpec().digest}"
    ):
        InputSpec().require("00ff")


# --- PixelSpec ---


def film(array: np.ndarray, **about: object) -> Image:
    return Image(array[None], about.pop("unit", Unit.MODALITY_LUT), **about)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(16, 200),
    st.sampled_from([np.int16, np.float32, np.uint8]),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_enlarged_and_the_aspect_ratio_is_kept(height, width, longest, dtype):
    spec = PixelSpec(longest_px=longest)
    shown = spec.apply(film(np.arange(height * width).reshape(height, width).astype(dtype)))
    scale = min(1.0, longest / max(height, width))
    assert shown.shape == (max(1, round(height * scale)), max(1, round(width * scale)))
    assert shown.dtype == np.uint8


def plain_window(values: np.ndarray, window: Window) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 and C.11.2.1.3 word for word, one pixel at a time, to 0…255."""
    c, w = window.center, window.width
    out = np.empty(values.shape)
    for place, x in np.ndenumerate(values.astype(float)):
        if window.function == "SIGMOID":
            out[place] = 255 / (1 + np.exp(min(-4 * (x - c) / w, 700)))  # exp(700) is still finite
        elif window.function == "LINEAR_EXACT":
            out[place] = 0 if x <= c - w / 2 else 255 if x > c + w / 2 else ((x - c) / w + 0.5) * 255
        elif x <= c - 0.5 - (w - 1) / 2:
            out[place] = 0
        elif x > c - 0.5 + (w - 1) / 2:
            out[place] = 255
        else:
            out[place] = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    return out


@given(
    st.floats(-2000, 2000),
    st.floats(1, 4000),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.sampled_from(list(Photometric)[:2]),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_windows_word_for_word(center, width, function, photometric, seed):
    values = np.random.default_rng(seed).integers(-3000, 3000, (16, 16)).astype(np.int16)
    window = Window(center, width, function)
    expected = plain_window(values, window)
    if photometric is Photometric.MONOCHROME1:
        expected = 255 - expected
    got = PixelSpec().apply(film(values, photometric=photometric, windows=(window,)))
    # a threshold (width near 1) may fall on either side of a value in float32
    steep = np.abs(values - center) < 1 if width < 2 else np.zeros(values.shape, bool)
    assert np.abs(got - expected)[~steep].max(initial=0) <= 0.5 + 0.02


def test_width_one_is_a_threshold_and_narrow_exact_windows_stay_narrow():
    values = np.array([[9, 10, 11]], np.int16)
    assert PixelSpec().apply(film(values, windows=(Window(10.5, 1.0),))).tolist() == [[0, 0, 255]]
    fractions = np.array([[0.0, 0.25, 0.5, 0.75, 1.0]], np.float32)
    shown = PixelSpec().apply(film(fractions, windows=(Window(0.5, 0.5, "LINEAR_EXACT"),)))
    assert shown.tolist() == [[0, 0, 128, 255, 255]]  # (0.5 − 0.5)/0.5 + 0.5 = 0.5 → 127.5 → 128


def test_a_steep_sigmoid_does_not_overflow():
    values = np.array([[-30000, 0, 30000]], np.int16)
    assert PixelSpec().apply(film(values, windows=(Window(0.0, 0.01, "SIGMOID"),))).tolist() == [
        [0, 128, 255]
    ]


def test_voi_lut_before_window_and_percentile_before_both():
    values = np.array([[0, 1, 2, 3]], np.int16)
    about = {"voi_lut": VoiLut(1.0, np.array([255, 0], np.uint16), 8), "windows": (Window(1.0, 2.0),)}
    assert PixelSpec().apply(film(values, **about)).tolist() == [[255, 255, 0, 0]]
    spec = PixelSpec(voi="percentile", percentiles=(0, 100))
    assert spec.apply(film(values, **about)).tolist() == [[0, 85, 170, 255]]


@given(
    st.integers(0, 9), st.floats(0, 20), st.floats(80, 100), st.sampled_from([np.int16, np.uint16, np.uint8])
)
@settings(max_examples=40, deadline=None)
def test_percentiles_are_those_of_numpy(seed, low, high, dtype):
    values = np.random.default_rng(seed).gamma(2, 20, (37, 53)).astype(dtype)
    spec = PixelSpec(voi="percentile", percentiles=(low, high))
    ends = np.percentile(values, (low, high))
    expected = np.clip((values - ends[0]) / max(ends[1] - ends[0], 1e-6) * 255, 0, 255)
    assert np.abs(spec.apply(film(values)) - expected).max() <= 0.5 + 1e-3


def test_padding_does_not_move_the_percentiles():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, (64, 64)).astype(np.int16)
    padded = values.copy()
    padded[:, :40] = -2000
    spec = PixelSpec(voi="percentile")
    plain = spec.apply(film(values[:, 40:]))
    assert np.abs(spec.apply(film(padded, padding=(-2000.0, -2000.0)))[:, 40:].astype(int) - plain).max() <= 1
    assert np.abs(spec.apply(film(padded))[:, 40:].astype(int) - plain).max() > 50
    everything = film(np.full((4, 4), -2000, np.int16), padding=(-2000.0, -2000.0))
    assert spec.apply(everything).shape == (4, 4)


def exact_means(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the integral of the pixels over each rectangle by its area, from the summed-area table.

    The table is linear between pixel edges along each axis, so its interpolation is the exact integral.
    """
    for axis, count in enumerate(size):
        length = values.shape[axis]
        edges, ends = np.arange(length + 1), np.linspace(0, length, count + 1)
        lines = np.moveaxis(values, axis, -1)
        tables = [np.append(0, np.cumsum(line, dtype=np.float64)) for line in lines]
        means = [np.diff(np.interp(ends, edges, table)) * count / length for table in tables]
        values = np.moveaxis(np.array(means), -1, axis)
    return values


@pytest.mark.parametrize("shape", [(700, 531), (512, 512), (1024, 300), (1537, 1999), (16, 3000), (65, 64)])
@pytest.mark.parametrize("longest", [64, 200, 512])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.int32, np.float32])
def test_a_stored_pixel_is_the_mean_of_its_area(shape, longest, dtype):
    rng = np.random.default_rng(0)
    values = (
        (rng.normal(0, 20, shape) + 60 * np.sin(np.arange(shape[1]) / 40) + 128).clip(0, 255).astype(dtype)
    )
    got = PixelSpec(longest_px=longest).apply(film(values, windows=(Window(128.0, 256.0),)))
    expected = np.clip(exact_means(values, got.shape), 0, 255)  # (x − 127.5) / 255 + 0.5 is x / 255
    assert np.abs(got - expected).max() <= 0.5 + 1e-3
    if max(shape) <= longest:
        np.testing.assert_array_equal(got, np.rint(values.astype(np.float32)))


@given(st.integers(1, 200), st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_means_are_exact_and_keep_the_sum(rows, columns, data):
    size = (data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns)))
    values = np.random.default_rng(rows).integers(-1024, 3072, (rows, columns)).astype(np.int16)
    means = area_mean(values, size)
    np.testing.assert_allclose(means.mean(dtype=np.float64), values.mean(), atol=2e-3)
    np.testing.assert_allclose(means, exact_means(values, size), atol=2e-2)
    boxes = np.repeat(np.repeat(values, 3, 0), 2, 1)  # whole boxes: the plain mean of each
    np.testing.assert_allclose(area_mean(boxes, (rows, columns)), values, atol=1e-3)


def test_the_window_sees_means_not_the_means_windows():
    """Half of each area at −1000 and half at +1000 is 0, not black and white mixed."""
    checker = np.where(np.indices((64, 64)).sum(0) % 2, 1000, -1000).astype(np.int16)
    shown = PixelSpec(longest_px=32).apply(film(checker, windows=(Window(100.0, 401.0),)))
    assert np.unique(shown).tolist() == [64]  # (0 − 99.5) / 400 + 0.5 = 0.25125 → 64.07


def test_what_is_no_number_counts_as_zero():
    values = np.full((8, 8), 100, np.float32)
    values[0, 0] = np.nan
    assert area_mean(values, (1, 1)).item() == pytest.approx(100 * 63 / 64)
    assert area_mean(values, (8, 8))[0, 0] == 0 and np.isnan(values[0, 0])
    assert PixelSpec(percentiles=(0, 100)).apply(film(values))[0, :2].tolist() == [0, 255]


def test_raster_grey_keeps_its_full_range_and_inverts_white_is_zero():
    values = np.array([[0, 2048, 4095]], np.uint16)
    about = {"unit": Unit.GREY, "bits_stored": 12}
    assert PixelSpec().apply(film(values, **about)).tolist() == [[0, 128, 255]]
    inverse = film(values, photometric=Photometric.MONOCHROME1, **about)
    assert PixelSpec().apply(inverse).tolist() == [[255, 127, 0]]


def test_a_volume_is_refused_with_its_shape():
    volume = Image(np.zeros((1, 3, 4, 5), np.int16), Unit.HU)
    with pytest.raises(ConfigError, match=r"shape \(1, 3, 4, 5\)\. Choose one frame"):
        PixelSpec().apply(volume)


def test_the_image_is_left_as_it_was():
    values = np.linspace(0, 4000, 300 * 200, dtype=np.float32).reshape(300, 200)
    image = film(values, windows=(Window(2000.0, 1000.0),), photometric=Photometric.MONOCHROME1)
    before = values.copy()
    for voi in ("header", "percentile"):
        PixelSpec(voi=voi, longest_px=64).apply(image)
        np.testing.assert_array_equal(image.array[0], before)
    assert dataclasses.replace(image) == image


# --- InputSpec ---


@given(st.integers(1, 400), st.integers(1, 400), input_specs)
@settings(max_examples=60, deadline=None)
def test_letterbox_keeps_the_aspect_ratio_and_masks_the_rest(height, width, spec):
    stored = np.full((height, width), 200, np.uint8)
    canvas, mask = spec.letterbox(stored)
    assert canvas.shape == mask.shape == spec.size_px
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert mask.sum() == len(rows) * len(columns)  # one rectangle
    assert (canvas[mask] == 200).all() and (canvas[~mask] == 0).all()
    scale = min(spec.size_px[0] / height, spec.size_px[1] / width)
    assert abs(len(rows) - max(1, height * scale)) <= 0.5
    assert abs(len(columns) - max(1, width * scale)) <= 0.5
    # centred to within a pixel
    assert abs(rows[0] - (spec.size_px[0] - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (spec.size_px[1] - 1 - columns[-1])) <= 1


@pytest.mark.parametrize(
    "shape, size, square",
    [
        ((448, 448), (224, 224), (100, 200, 140, 260)),  # scale 1/2
        ((100, 50), (200, 200), (10, 20, 30, 60)),  # scale 2, bars left and right
        ((64, 256), (256, 256), (32, 8, 96, 40)),  # scale 1, bars above and below
    ],
)
def test_a_box_follows_its_painted_square(shape, size, square):
    x0, y0, x1, y1 = square
    stored = np.zeros(shape, np.uint8)
    stored[y0:y1, x0:x1] = 255
    spec = InputSpec(size_px=size)
    canvas, _ = spec.letterbox(stored)
    box = spec.place_box(Box("square", *map(float, square)), shape)
    assert all(value.is_integer() for value in (box.x0, box.y0, box.x1, box.y1))
    inside = np.zeros(size, bool)
    inside[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
    # bilinear resampling blurs the rim by half an output pixel, so the half level is the edge
    np.testing.assert_array_equal(canvas >= 128, inside)


@given(st.integers(1, 600), st.integers(1, 600), input_specs)
@settings(max_examples=60, deadline=None)
def test_the_box_of_the_whole_film_is_the_mask(height, width, spec):
    _, mask = spec.letterbox(np.zeros((height, width), np.uint8))
    box = spec.place_box(Box("all", 0.0, 0.0, float(width), float(height)), (height, width))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    np.testing.assert_allclose((box.y0, box.y1), (rows[0], rows[-1] + 1), atol=1e-9)
    np.testing.assert_allclose((box.x0, box.x1), (columns[0], columns[-1] + 1), atol=1e-9)


@pytest.mark.parametrize(
    "channels, mean, std", [(1, (0.5,), (0.25,)), (3, (0.4,), (0.2,)), (3, (0.4, 0.5, 0.6), (0.2, 0.1, 0.3))]
)
def test_normalise_is_its_formula(channels, mean, std):
    spec = InputSpec(size_px=(8, 8), channels=channels, mean=mean, std=std)
    stored = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    tensor, mask = spec.apply(stored)
    assert tensor.shape == (channels, 8, 8) and tensor.dtype == np.float32 and mask.all()
    for channel in range(channels):
        m, s = (values[channel % len(values)] for values in (mean, std))
        np.testing.assert_allclose(tensor[channel], (stored / 255 - m) / s, atol=1e-5)
