import numpy as np
import pytest
from scipy import ndimage

from renal_utils.metrics.challenge import (
    MODES,
    ObjectScores,
    mask_dice,
    match_objects,
    mean_dice,
)
from renal_utils.metrics.kpis import rank_teams

CROSS = ndimage.generate_binary_structure(2, 1)


def draw(*squares, size=(200, 200), side=20):
    """Squares by their left top corner (x, y)."""
    mask = np.zeros(size, bool)
    for x, y in squares:
        mask[y : y + side, x : x + side] = True
    return mask


def counts(scores):
    return scores.tp, scores.fp, scores.fn


def literal_published(truth, predicted, threshold=0.5):
    """The published procedure on sets of pixels: outlines one pixel outside, moved as compared."""

    def shapes(mask):
        ids, number = ndimage.label(mask)
        grown = [ndimage.binary_dilation(ids == i, CROSS) for i in range(1, number + 1)]
        return [np.argwhere(one) for one in grown]

    def compare(a, b):
        low_a, low_b, high_a, high_b = a.min(0), b.min(0), a.max(0), b.max(0)
        if (high_a < low_b).any() or (high_b < low_a).any():
            return False
        corner = np.minimum(low_a, low_b) - 10
        a -= corner
        b -= corner
        one, other = set(map(tuple, a)), set(map(tuple, b))
        return len(one & other) / len(one | other) >= threshold

    # OpenCV lists outlines from the last found to the first, and the order matters here
    true, found = shapes(truth)[::-1], shapes(predicted)[::-1]
    tp = fp = fn = 0
    for p in found:
        hit = False
        for t in true:
            if compare(p, t):
                hit = True
                break
        tp, fp = tp + hit, fp + (not hit)
    for t in true:
        hit = False
        for p in found:
            if compare(p, t):
                hit = True
                break
        fn += not hit
    return tp, fp, fn


def scene(seed):
    """Discs on a loose grid, and predictions of them that are moved, at times a lot, or missing."""
    rng = np.random.default_rng(seed)
    truth, predicted = np.zeros((2, 360, 360), bool)
    y, x = np.mgrid[:360, :360]
    for row in range(4):
        for column in range(4):
            centre = 45 + 90 * np.array([column, row])
            moved = centre + rng.integers(-14, 15, 2)
            radii = rng.integers(12, 22, 2)
            if rng.random() < 0.9:
                truth |= (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radii[0] ** 2
            if rng.random() < 0.9:
                predicted |= (x - moved[0]) ** 2 + (y - moved[1]) ** 2 < radii[1] ** 2
    return truth, predicted


@pytest.mark.parametrize("mode", MODES)
def test_equal_masks_find_everything_in_every_mode(mode):
    mask = draw((20, 20), (90, 30), (40, 120))
    scores = match_objects(mask, mask, mode=mode)
    assert (*counts(scores), scores.f1, scores.mode) == (3, 0, 0, 1.0, mode)


def test_the_published_program_finds_what_was_moved_onto_another():
    """By hand: each prediction shares 6 x 6 of 20 x 20, too little; moved, they fit the others."""
    truth, predicted = draw((40, 40), (140, 140)), draw((54, 54), (126, 126))
    assert counts(match_objects(truth, predicted, mode="one_to_one")) == (0, 2, 2)
    assert counts(match_objects(truth, predicted, mode="kpis_fixed")) == (0, 2, 2)
    assert counts(match_objects(truth, predicted, mode="kpis_published")) == (0, 2, 0)


def test_the_published_mode_follows_the_published_procedure():
    found = [match_objects(*scene(seed), mode="kpis_published") for seed in range(12)]
    assert [counts(f) for f in found] == [literal_published(*scene(seed)) for seed in range(12)]
    fixed = [match_objects(*scene(seed), mode="kpis_fixed").f1 for seed in range(12)]
    assert sum(f.f1 for f in found) > sum(fixed) + 0.5


def test_the_rule_is_one_to_one_wherever_no_object_lies_in_two_halves():
    for seed in range(12):
        by_rule = match_objects(*scene(seed), mode="kpis_fixed")
        assert counts(by_rule) == counts(match_objects(*scene(seed)))


def test_by_the_rule_two_halves_of_one_object_are_both_found():
    truth = draw((50, 50))
    halves = truth.copy()
    halves[:, 60] = False
    halves[:, 49] |= halves[:, 50]
    truth[:, 60] = False
    truth[50:70, 60] = True
    scores = match_objects(truth, halves, mode="kpis_fixed", min_iou=0.4)
    assert counts(scores) == (2, 0, 0)
    assert counts(match_objects(truth, halves, min_iou=0.4)) == (1, 1, 0)


def test_by_the_rule_holes_are_filled():
    ring = draw((50, 50))
    ring[52:68, 52:68] = False
    assert counts(match_objects(draw((50, 50)), ring, mode="kpis_fixed")) == (1, 0, 0)
    assert counts(match_objects(draw((50, 50)), ring)) == (0, 1, 1)


def test_the_published_program_counts_holes_and_overlooks_what_touches_the_border():
    ring = draw((50, 50))
    ring[56:64, 56:64] = False
    assert counts(match_objects(ring, ring, mode="kpis_published")) == (2, 0, 0)
    rim = draw((0, 50), (100, 100))
    assert counts(match_objects(rim, rim, mode="kpis_published")) == (1, 0, 0)
    assert counts(match_objects(rim, rim, mode="kpis_fixed")) == (2, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_empty_masks_have_no_objects(mode):
    empty = np.zeros((30, 30), bool)
    scores = match_objects(empty, empty, mode=mode)
    assert counts(scores) == (0, 0, 0)
    assert np.isnan(scores.f1) == (mode == "one_to_one")
    missed = match_objects(draw((5, 5), size=empty.shape), empty, mode=mode)
    assert counts(missed) == (0, 0, 1)


def test_an_unknown_mode_lists_the_known_ones():
    with pytest.raises(ValueError, match="no mode 'kpis'; known: one_to_one, kpis_published, kpis"):
        match_objects(draw((1, 1)), draw((1, 1)), mode="kpis")


# Dice and ranks


def test_dice_is_one_of_nothing_and_its_mean_may_skip_patches_without_truth():
    empty = np.zeros((200, 200), bool)
    half = draw((20, 20), (60, 60)), draw((20, 20))
    assert mask_dice(empty, empty) == 1.0
    assert mask_dice(*half) == pytest.approx(2 / 3)
    pairs = [half, (empty, empty), (empty, draw((9, 9)))]
    assert mean_dice(pairs) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert mean_dice(pairs, skip_empty=True) == pytest.approx(2 / 3)
    assert np.isnan(mean_dice(pairs[1:], skip_empty=True))
    with pytest.raises(ValueError, match="shape"):
        mask_dice(empty, empty[:50])


def test_teams_are_ranked_by_the_sum_of_two_ranks():
    """The first four of Task 2 (arXiv 2502.07288): the best Dice won in spite of F1."""
    dice, f1 = [94.64, 93.36, 94.48, 89.81], [88.63, 89.99, 87.96, 91.33]
    # sums of ranks: 1 + 3, 3 + 2, 2 + 4, 4 + 1
    assert rank_teams(dice, f1) == [1, 2, 4, 2]
    assert rank_teams([0.5, 0.5], [0.1, 0.2]) == [2, 1]
    with pytest.raises(ValueError, match="2 Dice and 1 F1"):
        rank_teams([0.1, 0.2], [0.1])


def test_a_score_remembers_its_mode():
    assert ObjectScores(0, 0, 0, mode="kpis_published").f1 == 0.0
