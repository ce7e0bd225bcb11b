"""Instance metrics: tables worked by hand, a slow literal form, empty images and odd ids."""

from dataclasses import asdict

import numpy as np
import pytest
from nuclei_scenes import draw_nuclei, score_literally

from renal_utils.metrics.instance import (
    InstanceCounts,
    count_instances,
    score_instances,
    score_table,
)


def boxes(*windows: tuple[slice, slice], size: tuple[int, int] = (8, 8)) -> np.ndarray:
    ids = np.zeros(size, np.int32)
    for number, window in enumerate(windows, start=1):
        ids[window] = number
    return ids


HALVES = np.s_[0:4, 0:4], np.s_[0:4, 4:8]
# name: truth, prediction, then Dice, AJI, AJI+, DQ, SQ, PQ
CASES = {
    "A": (
        boxes(*HALVES, np.s_[6:8, 0:2]),
        boxes(np.s_[0:4, 0:5], np.s_[0:4, 5:8], np.s_[6:8, 6:8]),
        (0.888889, 0.636364, 0.636364, 0.666667, 0.775, 0.516667),
    ),
    "B": (boxes(*HALVES), boxes(np.s_[0:4, 0:8]), (1.0, 0.5, 1 / 3, 0, 0, 0)),
    "C": (
        boxes(np.s_[0:4, 0:8]),
        boxes(np.s_[0:4, 0:3], np.s_[0:4, 3:8]),
        (1.0, 0.454545, 0.454545, 0.666667, 0.625, 0.416667),
    ),
    "D": (boxes(np.s_[0:4, 0:8]), boxes(np.s_[0:4, 0:4]), (2 / 3, 0.5, 0.5, 0, 0, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_worked_cases_come_out(case):
    truth, predicted, expected = CASES[case]
    found = asdict(score_instances(truth, predicted)).values()
    assert tuple(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_random_maps_agree_with_a_literal_comparison_of_masks(seed):
    rng = np.random.default_rng(seed)
    truth = draw_nuclei(48, 12, seed=seed, radii=(3, 9))
    predicted = np.roll(draw_nuclei(48, 12, seed=seed + seed % 3, radii=(3, 9)), seed % 4, axis=1)
    predicted[rng.random(truth.shape) < 0.1] = rng.integers(0, 30)
    found = score_instances(truth, predicted)
    for name, value in score_literally(truth, predicted).items():
        assert getattr(found, name) == pytest.approx(value), name
    both = ((truth > 0) & (predicted > 0)).sum()
    assert found.dice == pytest.approx(2 * both / ((truth > 0).sum() + (predicted > 0).sum()))


@pytest.mark.parametrize("seed", range(10))
def test_maps_of_noise_agree_with_a_literal_comparison_of_masks(seed):
    """Every object overlaps nearly every other, so the assignment is one tangled chain."""
    truth, predicted = np.random.default_rng(seed).integers(0, 9, (2, 12, 14))
    found = asdict(score_instances(truth, predicted))
    expected = score_literally(truth, predicted)
    assert {k: found[k] for k in expected} == pytest.approx(expected)


def test_batches_of_chains_do_not_change_the_assignment(monkeypatch):
    truth = draw_nuclei(200, 90)
    predicted = np.roll(truth, 5, axis=0)
    whole = count_instances(truth, predicted)
    monkeypatch.setattr("renal_utils.metrics.instance.BATCH_PAIRS", 1)
    assert count_instances(truth, predicted) == whole


def test_equal_maps_are_perfect_whatever_their_ids():
    truth = draw_nuclei(80, 20)
    renamed = np.random.default_rng(0).permutation(100)[truth].astype(np.uint16) * 600 + 7
    renamed[truth == 0] = 0
    assert set(asdict(score_instances(truth, renamed)).values()) == {1.0}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_scores_do_not_depend_on_the_integer_type(dtype):
    truth, predicted, _ = CASES["A"]
    assert score_instances(truth.astype(dtype), predicted) == score_instances(truth, predicted)


def test_maps_without_background_are_scored():
    truth, predicted = np.ones((4, 8), int), np.ones((4, 8), int)
    predicted[:, 6:] = 2
    found = score_instances(truth, predicted)
    assert (found.dice, found.sq, found.dq) == pytest.approx((1, 0.75, 2 / 3))
    assert found.aji == pytest.approx(24 / (32 + 8))


def test_more_than_65535_objects_are_told_apart():
    ids = np.arange(1, 300 * 300 + 1, dtype=np.int32).reshape(300, 300)
    counts = count_instances(ids, ids)
    assert (counts.tp, counts.fp, counts.fn) == (90_000, 0, 0)
    shifted = count_instances(ids, np.roll(ids, 1))
    assert (shifted.tp, shifted.aji_shared_px) == (90_000, 90_000)


def test_two_empty_maps_are_nan_and_one_empty_map_scores_zero():
    empty, some = np.zeros((6, 6), int), boxes(np.s_[0:3, 0:3], size=(6, 6))
    assert np.isnan(list(asdict(score_instances(empty, empty)).values())).all()
    for pair in ((empty, some), (some, empty)):
        assert set(asdict(score_instances(*pair)).values()) == {0.0}
    nothing = np.zeros((0, 0), int)
    assert np.isnan(score_instances(nothing, nothing).aji)


def test_pooling_adds_before_it_divides():
    counts = {name: count_instances(*CASES[name][:2]) for name in "AB"}
    table = score_table(counts)
    assert list(table.index) == ["A", "B", "mean of images", "pooled"]
    assert table.loc["mean of images", "pq"] == pytest.approx((0.516667 + 0) / 2, abs=1e-6)
    # A: 28 of 44 px, B: 32 of 64 px
    assert (counts["A"].aji_shared_px, counts["A"].aji_union_px) == (28, 44)
    assert table.loc["pooled", "aji"] == pytest.approx(60 / 108)
    assert table.loc["pooled", "dq"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 3))


def test_pooling_equals_scoring_the_images_side_by_side():
    images = [(draw_nuclei(60, 9, seed=s), draw_nuclei(60, 9, seed=s + 1)) for s in range(3)]
    pooled = sum((count_instances(*pair) for pair in images), InstanceCounts())
    truth, predicted = (
        np.hstack([pair[i] + 10 * n * (pair[i] > 0) for n, pair in enumerate(images)])
        for i in (0, 1)
    )
    assert asdict(pooled) == pytest.approx(asdict(count_instances(truth, predicted)))


def test_the_mean_skips_images_with_nothing_to_score():
    empty = np.zeros((6, 6), int)
    counts = {"empty": count_instances(empty, empty), "D": count_instances(*CASES["D"][:2])}
    table = score_table(counts)
    assert np.isnan(table.loc["empty"]).all()
    assert (table.loc["mean of images"] == table.loc["D"]).all()
    with pytest.raises(ValueError, match="no image was counted"):
        score_table({})


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((4, 4)), np.zeros((4, 4), int), "truth: is of type float64"),
        (np.zeros((4, 4), int), np.zeros((4, 4), bool), "prediction: is of type bool"),
        (np.zeros((4, 4), int), np.full((4, 4), -2), "prediction: holds the negative id -2"),
        (np.zeros((4, 4), int), np.zeros((4, 5), int), r"shape \(4, 4\), the prediction \(4, 5\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        count_instances(truth, predicted)
