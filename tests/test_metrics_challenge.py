import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from renal_utils.metrics.challenge import (
    MODES,
    MaskPair,
    ObjectScores,
    mask_dice,
    match_objects,
    mean_dice,
    rank_teams,
    score_slides,
)
from renal_utils.metrics.object_matching import pool_objects


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


def scene(seed: int, *, moved_by: int) -> tuple[np.ndarray, np.ndarray]:
    """Discs on a field, and the same ones a little smaller, moved at random."""
    rng = np.random.default_rng(seed)
    truth, predicted = np.zeros((2, 400, 400), bool)
    y, x = np.mgrid[:400, :400]
    for row in range(60, 400, 90):
        for column in range(60, 400, 90):
            shift, radius = rng.integers(-moved_by, moved_by + 1, 2), rng.integers(14, 24)
            truth |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
            away = (y - row - shift[0]) ** 2 + (x - column - shift[1]) ** 2
            predicted |= away <= (radius - 2) ** 2
    return truth, predicted


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_finds_all_that_is_well_apart_and_well_drawn(mode):
    truth, predicted = scene(0, moved_by=0)
    scores = match_objects(truth, predicted, mode=mode)
    assert (scores.tp, scores.fp, scores.fn, scores.mode) == (16, 0, 0, mode)


def test_the_fixed_rule_agrees_with_a_literal_search_on_filled_objects():
    for seed in range(10):
        truth, predicted = scene(seed, moved_by=16)
        truth[58:63, 58:63] = False  # a hole, which the rule fills
        labelled = [ndimage.label(m, np.ones((3, 3))) for m in (truth, predicted)]
        true, found = (
            [ndimage.binary_fill_holes(ids == k) for k in range(1, n + 1)] for ids, n in labelled
        )
        hits = np.array([[(f & t).sum() >= 0.5 * (f | t).sum() for t in true] for f in found])
        expected = (hits.any(axis=1).sum(), (~hits.any(axis=1)).sum(), (~hits.any(axis=0)).sum())
        scores = match_objects(truth, predicted, mode="kpis_fixed")
        assert (scores.tp, scores.fp, scores.fn) == expected


def test_under_the_fixed_rule_two_predictions_share_a_true_object_but_not_one_to_one():
    truth = boxes(np.s_[0:10, 0:10])
    halves = boxes(np.s_[0:10, 0:5])
    halves[0:10, 6:10] = True
    shared = match_objects(truth, halves, mode="kpis_fixed", min_iou=0.4)
    alone = match_objects(truth, halves, min_iou=0.4)
    assert (shared.tp, shared.fp, shared.fn) == (2, 0, 0)
    assert (alone.tp, alone.fp, alone.fn) == (1, 1, 0)


def test_the_published_script_moves_outlines_so_that_what_lies_far_apart_meets():
    """Each prediction touches one true object at a corner. In the image's corner they cover all."""
    truth = boxes(np.s_[40:60, 40:60], np.s_[157:177, 157:177], size=(200, 200))
    predicted = boxes(np.s_[57:77, 57:77], np.s_[140:160, 140:160], size=(200, 200))
    fixed = match_objects(truth, predicted, mode="kpis_fixed")
    published = match_objects(truth, predicted, mode="kpis_published")
    assert (fixed.tp, fixed.fp, fixed.fn) == (0, 2, 2)
    assert (published.tp, published.fp, published.fn) == (0, 2, 0)


def test_poor_matches_score_better_by_the_published_script_than_by_its_rule():
    f1 = {
        mode: np.mean([match_objects(*scene(s, moved_by=16), mode=mode).f1 for s in range(20)])
        for mode in MODES
    }
    assert f1["kpis_published"] > f1["kpis_fixed"] + 0.02
    assert f1["kpis_fixed"] == pytest.approx(f1["one_to_one"])  # well apart: no sharing


def test_an_object_at_the_border_is_seen_by_the_rule_but_not_by_the_published_script():
    mask = boxes(A, C)
    assert match_objects(mask, mask, mode="kpis_fixed").tp == 2
    assert match_objects(mask, mask, mode="kpis_published").tp == 1


@pytest.mark.parametrize("mode", MODES)
def test_empty_masks_have_no_object_in_any_mode(mode):
    scores = match_objects(boxes(), boxes(C), mode=mode)
    assert (scores.tp, scores.fp, scores.fn) == (0, 1, 0)
    assert match_objects(boxes(), boxes(), mode=mode).tp == 0


def test_an_unknown_mode_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'loose'.*kpis_published"):
        match_objects(boxes(), boxes(), mode="loose")


def test_mask_dice_is_one_where_both_are_empty_and_zero_where_one_is():
    assert mask_dice(boxes(), boxes()) == 1.0
    assert mask_dice(boxes(A), boxes()) == 0.0
    assert mask_dice(boxes(A), boxes(np.s_[0:10, 5:15])) == 0.5


def test_empty_patches_count_as_one_unless_they_are_skipped():
    pairs = [(boxes(A), boxes(A, B)), (boxes(), boxes())]
    assert mean_dice(pairs) == pytest.approx((2 / 3 + 1) / 2)
    assert mean_dice(pairs, skip_empty=True) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="all truths are empty"):
        mean_dice(pairs[1:], skip_empty=True)


def test_slides_are_scored_one_by_one_and_their_scores_averaged():
    pairs = [
        MaskPair("one", boxes(A, C), boxes(A)),
        MaskPair("two", boxes(B), boxes(B)),
        MaskPair("empty", boxes(), boxes()),
    ]
    table = score_slides(pairs, mode="one_to_one")
    assert table["f1"].tolist() == pytest.approx([2 / 3, 1, 0, 5 / 9])
    assert table["dice"].tolist() == pytest.approx([2 / 3, 1, 1, 8 / 9])
    assert set(table["mode"]) == {"one_to_one"}
    with pytest.raises(ValueError, match="no slide"):
        score_slides([])


def test_teams_are_ranked_by_the_sum_of_their_two_ranks():
    """The Dice and F1 of four teams on the challenge's leaderboard; the first one won it."""
    scores = pd.DataFrame(
        {"dice": [93.36, 94.64, 94.48, 89.81], "f1": [89.99, 88.63, 87.96, 91.33]}, list("badc")
    )
    ranked = rank_teams(scores)
    assert ranked.index[0] == "a"
    assert ranked["dice_rank"].to_dict() == {"a": 1, "d": 2, "b": 3, "c": 4}
    assert ranked["rank"].to_dict() == {"a": 1, "b": 2, "c": 2, "d": 4}
    with pytest.raises(ValueError, match="NaN"):
        rank_teams(scores.assign(f1=np.nan))
    with pytest.raises(ValueError, match="f1"):
        rank_teams(scores[["dice"]])


# tiles together


def _count_by_hand(tiles, min_iou=0.5):
    """Found, invented and missed of all tiles; from an IoU of 0.5 on few can have two partners."""
    tp = fp = fn = 0
    for truth, predicted in tiles:
        true, found = (ndimage.label(mask, np.ones((3, 3))) for mask in (truth, predicted))
        partners = [
            {p for p in range(1, found[1] + 1) if _iou(true[0] == t, found[0] == p) >= min_iou}
            for t in range(1, true[1] + 1)
        ]
        hits = sum(map(bool, partners))
        assert sum(map(len, partners)) == len(set().union(*partners)) == hits  # so one to one
        tp, fp, fn = tp + hits, fp + found[1] - hits, fn + true[1] - hits
    return tp, fp, fn


def _iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_tiles_are_pooled_as_counted_by_hand():
    rng = np.random.default_rng(0)
    tiles = []
    for side in (60, 80, 100):
        noise = ndimage.gaussian_filter(rng.standard_normal((side, side)), 3)
        other = noise + 0.35 * ndimage.gaussian_filter(rng.standard_normal((side, side)), 3)
        tiles.append((noise > 0.05, other > 0.05))
    tp, fp, fn = _count_by_hand(tiles)
    pooled = pool_objects(iter(tiles))
    assert (pooled.tp, pooled.fp, pooled.fn, pooled.mode) == (tp, fp, fn, "one_to_one")
    assert min(tp, fp, fn) > 0
    assert pooled.f1 == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert pooled.f1 != pytest.approx(np.mean([match_objects(*tile).f1 for tile in tiles]))


@pytest.mark.parametrize("mode", MODES)
def test_one_tile_alone_is_what_it_is_by_itself(mode):
    pair = boxes(A, B), boxes(A, C)
    assert pool_objects([pair], mode=mode) == match_objects(*pair, mode=mode)


def test_empty_tiles_count_nothing_and_no_tile_is_refused():
    full, empty = (boxes(A), boxes(A)), (boxes(), boxes())
    assert pool_objects([full, empty]) == match_objects(*full)
    assert np.isnan(pool_objects([empty, empty]).f1)
    with pytest.raises(ValueError, match="no tile"):
        pool_objects([])
