"""Grounding figures on maps drawn by hand."""

import numpy as np
import pytest

from medvl.errors import UsageError
from medvl.evaluation.grounding import box_mask, cells_in_boxes, contrast_to_noise, mean_iou, pointing
from medvl.records import Box


def test_cells_share_area_with_a_box_or_do_not():
    # 4 x 4 cells of 8 px. A box from (8, 0) to (17, 8) covers column 1 and one pixel of column 2, row 0;
    # it ends where row 1 begins, which is not a shared area.
    touched = cells_in_boxes([Box("f", 8.0, 0.0, 17.0, 8.0)], grid=(4, 4), size_px=(32, 32))
    expected = np.zeros((4, 4), bool)
    expected[0, 1:3] = True
    np.testing.assert_array_equal(touched, expected)
    both = cells_in_boxes(
        [Box("f", 8.0, 0.0, 17.0, 8.0), Box("f", 31.0, 31.0, 32.0, 32.0)], grid=(4, 4), size_px=(32, 32)
    )
    assert both.sum() == 3 and both[3, 3]
    assert not cells_in_boxes([], grid=(2, 2), size_px=(8, 8)).any()


def test_pointing_hits_misses_and_chance():
    touched = np.zeros((3, 3), bool)
    touched[1, 1] = True
    cells = np.zeros((3, 3))
    cells[1, 1] = 1
    assert pointing(cells, touched) == (1.0, pytest.approx(1 / 9))
    assert pointing(-cells, touched)[0] == 0.0
    # A constant map points anywhere: its expectation is its chance, not the luck of index 0.
    hit, chance = pointing(np.ones((3, 3)), touched)
    assert hit == pytest.approx(chance)
    assert np.argmax(np.ones((3, 3))) == 0
    with pytest.raises(UsageError, match="0 of 4 cells"):
        pointing(np.full((2, 2), np.nan), np.ones((2, 2), bool))


def test_random_maps_hit_at_chance():
    random = np.random.default_rng(0)
    touched = random.random((5, 5)) < 0.2
    hits = [pointing(random.random((5, 5)), touched)[0] for _ in range(4000)]
    share = touched.mean()
    assert abs(np.mean(hits) - share) < 4 * np.sqrt(share * (1 - share) / 4000)


def test_contrast_to_noise_has_a_sign():
    heat = np.array([[0.0, 2.0, 4.0, 6.0]])
    inside = np.array([[False, False, True, True]])
    # Means 5 and 1, both variances 1: 4 / sqrt(2).
    assert contrast_to_noise(heat, inside) == pytest.approx(4 / np.sqrt(2))
    # Upside down it is as far below zero; its absolute value could not tell.
    assert contrast_to_noise(-heat, inside) == pytest.approx(-4 / np.sqrt(2))
    assert contrast_to_noise(heat, np.zeros((1, 4), bool)) is None
    assert contrast_to_noise(np.ones((1, 4)), inside) is None
    assert contrast_to_noise(np.array([[np.nan, 2.0, 4.0, 4.0]]), inside) is None


def test_mean_iou_over_frozen_thresholds():
    inside = np.array([[True, True, False, False]])
    # Scaled to 1, .35, .15, 0. Called at .1: 3 (IoU 2/3); at .2, .3: 2 (1); at .4, .5: 1 (1/2).
    heat = np.array([[2.0, 0.7, 0.3, 0.0]])
    assert mean_iou(heat, inside) == pytest.approx((2 / 3 + 1 + 1 + 0.5 + 0.5) / 5)
    # Adding and scaling change nothing; NaN pixels do not count.
    wider = np.append(5 * heat + 3, [[np.nan]], axis=1)
    assert mean_iou(wider, np.append(inside, [[True]], axis=1)) == pytest.approx(mean_iou(heat, inside))
    assert mean_iou(np.ones((1, 4)), inside) == 0.0
    with pytest.raises(UsageError, match="0 of 2 pixels"):
        mean_iou(np.full((1, 2), np.nan), np.ones((1, 2), bool))


def test_boxes_are_filled_by_pixel_centres():
    mask = box_mask([Box("f", 1.0, 0.0, 3.0, 2.0)], shape=(3, 4))
    assert mask.astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
