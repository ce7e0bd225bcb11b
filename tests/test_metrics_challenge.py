import numpy as np
import pytest
from scipy import ndimage

from renal_utils.metrics.challenge import ObjectScores, match_objects


def boxes(*slices: tuple[slice, slice], size: tuple[int, int] = (40, 40)) -> np.ndarray:
    mask = np.zeros(size, bool)
    for box in slices:
        mask[box] = True
    return mask


A = np.s_[0:10, 0:10]
B = np.s_[20:30, 0:10]
C = np.s_[20:30, 20:30]


def test_equal_masks_find_everything():
    scores = match_objects(boxes(A, B, C), boxes(A, B, C))
    assert (scores.tp, scores.fp, scores.fn, scores.f1) == (3, 0, 0, 1.0)


def test_objects_found_invented_and_missed_are_counted_by_hand():
    scores = match_objects(boxes(A, B), boxes(A, C))
    assert (scores.tp, scores.fp, scores.fn) == (1, 1, 1)
    assert (scores.precision, scores.recall, scores.f1) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("rows", "found"), [(5, 1), (4, 0)])
def test_an_overlap_of_exactly_a_half_counts_and_less_does_not(rows, found):
    assert match_objects(boxes(A), boxes(np.s_[0:rows, 0:10])).tp == found


def test_one_prediction_over_two_objects_finds_at_most_one():
    truth = boxes(np.s_[0:10, 0:10], np.s_[0:10, 11:15])
    scores = match_objects(truth, boxes(np.s_[0:10, 0:15]))
    assert (scores.tp, scores.fp, scores.fn) == (1, 0, 1)


def test_objects_that_touch_at_a_corner_are_one():
    assert match_objects(boxes(np.s_[0:5, 0:5], np.s_[5:10, 5:10]), boxes(C)).fn == 1


def test_small_objects_are_left_out_on_both_sides():
    speck = np.s_[39:40, 39:40]
    scores = match_objects(boxes(A, speck), boxes(A, np.s_[35:36, 0:1]), min_area_px=2)
    assert (scores.tp, scores.fp, scores.fn) == (1, 0, 0)


def test_nothing_to_find_and_nothing_found_has_no_score():
    scores = match_objects(boxes(), boxes())
    assert np.isnan([scores.f1, scores.precision, scores.recall]).all()
    assert ObjectScores(0, 2, 0).f1 == 0.0


def test_random_masks_agree_with_a_literal_search():
    """At an IoU over one half no object can have two partners, so a plain search is exact."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = ndimage.gaussian_filter(rng.random((60, 60)), 2) > 0.51
        predicted = truth ^ (ndimage.gaussian_filter(rng.random((60, 60)), 1) > 0.6)
        true_ids, num_true = ndimage.label(truth, np.ones((3, 3)))
        found_ids, num_found = ndimage.label(predicted, np.ones((3, 3)))
        pairs = 0
        for t in range(1, num_true + 1):
            for p in range(1, num_found + 1):
                one, other = true_ids == t, found_ids == p
                pairs += (one & other).sum() / (one | other).sum() >= 0.6
        scores = match_objects(truth, predicted, min_iou=0.6)
        assert (scores.tp, scores.fp, scores.fn) == (pairs, num_found - pairs, num_true - pairs)


def test_masks_of_different_size_and_absurd_overlaps_are_refused():
    with pytest.raises(ValueError, match=r"\(40, 40\).*\(20, 40\)"):
        match_objects(boxes(A), boxes(A, size=(20, 40)))
    with pytest.raises(ValueError, match="min_iou"):
        match_objects(boxes(A), boxes(A), min_iou=0.0)
