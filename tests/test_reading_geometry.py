"""The verdict on positions, by properties: any pose of a regular stack is fine, and each defect is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medvl.preprocess.reading.geometry import REASONS, Geometry, judge, order, plane_normal

PIXEL = (0.7, 0.7)
poses = st.tuples(*[st.floats(-1, 1)] * 4)
steps = st.floats(0.3, 10)


def pose(quaternion: tuple[float, ...]) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return the normal and the row and column cosines of a rotation."""
    length = float(np.linalg.norm(quaternion))
    assume(length > 0.1)
    w, x, y, z = np.array(quaternion) / length
    row = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
    column = np.array([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)])
    return np.cross(row, column), (*row, *column)


@given(poses, steps, st.integers(4, 30), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_a_regular_stack_is_fine_in_any_pose_and_any_order(quaternion, step, count, seed):
    normal, orientation = pose(quaternion)
    start = np.random.default_rng(seed).uniform(-300, 300, 3)
    places = start + np.outer(np.arange(count) * step, normal)
    shuffled = np.random.default_rng(seed).permutation(count)
    found = order(places[shuffled], plane_normal(orientation))
    assert shuffled[found].tolist() == list(range(count))
    verdict = judge(places, orientation, pixel_spacing_mm=PIXEL)
    assert verdict.verdict == "ok" and verdict.reasons == () and not verdict.rejected
    assert verdict.numbers["spacing_median_mm"] == pytest.approx(step, abs=1e-5)
    assert verdict.numbers["missing"] == 0 and verdict.numbers["tilt_degrees"] < 0.01


@given(poses, steps, st.integers(6, 30), st.data())
@settings(max_examples=60, deadline=None)
def test_a_lost_slice_inside_is_a_gap_of_one(quaternion, step, count, data):
    normal, orientation = pose(quaternion)
    lost = data.draw(st.integers(1, count - 2))
    places = np.delete(np.outer(np.arange(count) * step, normal), lost, 0)
    verdict = judge(places, orientation, pixel_spacing_mm=PIXEL)
    assert verdict.verdict == "rejected:gap" and verdict.numbers["missing"] == 1
    assert verdict.numbers["spacing_max_mm"] == pytest.approx(2 * step, abs=1e-5)


@given(poses, st.floats(0.5, 10), st.floats(-40, 40))
@settings(max_examples=60, deadline=None)
def test_a_tilt_has_its_angle(quaternion, step, degrees):
    normal, orientation = pose(quaternion)
    angle = np.radians(degrees)
    line = np.cos(angle) * normal + np.sin(angle) * np.array(orientation[3:])
    verdict = judge(np.outer(np.arange(8) * step, line), orientation, pixel_spacing_mm=PIXEL)
    assert verdict.numbers["tilt_degrees"] == pytest.approx(abs(degrees), abs=0.02)
    if abs(abs(degrees) - 2.563) > 0.01:  # arccos(1 − 0.001) is 2.563 degrees
        assert verdict.verdict == ("ok" if abs(degrees) < 2.563 else "rejected:tilt")


@pytest.mark.parametrize(
    "depths, verdict",
    [
        ((0, 1, 2.005, 3), "ok"),  # half a per cent
        ((0, 1, 2.08, 3, 4), "rejected:spacing"),
        ((0, 0.6, 1.3, 1.9, 2.5), "ok"),  # 0.625 mm written with one decimal: 0, 0.625, 1.25, 1.875, 2.5
        ((0, 0.625, 1.25, 1.95, 2.5), "rejected:gap"),  # 0.7 is 12 % above 0.625
        ((0, 1, 2, 3.2, 4.2), "rejected:gap"),
        ((0, 1, 1.005, 2, 3), "rejected:duplicate_position"),
        ((0, 1, 1, 2, 4), "rejected:duplicate_position+gap"),
        ((0, 0, 0, 0), "rejected:duplicate_position"),
        ((5,), "ok"),
    ],
)
def test_tolerances(depths, verdict):
    places = np.array([[0.0, 0.0, depth] for depth in depths], float)
    found = judge(places, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), pixel_spacing_mm=PIXEL)
    assert found.verdict == verdict
    assert found.reasons == tuple(verdict.partition(":")[2].split("+") if ":" in verdict else ())


def test_reasons_have_words_and_cosines_are_checked():
    assert Geometry.rejection("gap", slices=4) == Geometry("rejected:gap", {"slices": 4})
    assert all(words and not words.endswith(".") for words in REASONS.values())
    for bad in ((1.0, 0.0, 0.0, 1.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0,) * 6):
        assert plane_normal(bad) is None
        assert judge(np.zeros((3, 3)), bad, pixel_spacing_mm=PIXEL).verdict == "rejected:bad_orientation"
