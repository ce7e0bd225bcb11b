import numpy as np
import pytest
import torch
from torchmetrics.functional import classification, jaccard_index

from renal_utils.labels import IGNORE_ID
from renal_utils.metrics.pixel import (
    THRESHOLDS,
    PixelConfusion,
    ThresholdCounts,
    best_threshold,
    class_ids,
    probabilities_of,
    scores,
)


@pytest.fixture
def ids():
    """Predicted and true ids of four classes; class 2 is rare, some pixels are unlabelled."""
    rng = np.random.default_rng(4)
    target = rng.choice([0, 1, 2, 3], (3, 20, 24), p=[0.5, 0.3, 0.02, 0.18])
    predicted = np.where(rng.random(target.shape) < 0.7, target, rng.integers(0, 4, target.shape))
    target[rng.random(target.shape) < 0.1] = IGNORE_ID
    return torch.from_numpy(predicted), torch.from_numpy(target)


def confusion(predicted, target, classes):
    metric = PixelConfusion(classes)
    metric.update(predicted, target)
    return metric.compute().numpy()


def test_the_matrix_counts_every_labelled_pixel_once(ids):
    predicted, target = ids
    expected = np.zeros((4, 4), int)
    for p, t in zip(predicted.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != IGNORE_ID:
            expected[t, p] += 1
    np.testing.assert_array_equal(confusion(*ids, 4), expected)


def test_batches_add_up_to_the_whole(ids):
    metric = PixelConfusion(4)
    for predicted, target in zip(*ids, strict=True):
        metric.update(predicted, target)
    np.testing.assert_array_equal(metric.compute().numpy(), confusion(*ids, 4))
    metric.reset()
    metric.update(ids[0][:1], ids[1][:1])
    assert metric.compute().sum() == (ids[1][:1] != IGNORE_ID).sum()


def test_scores_agree_with_set_arithmetic(ids):
    predicted, target = (x.numpy() for x in ids)
    found = scores(confusion(*ids, 4))
    labelled = target != IGNORE_ID
    for c in range(4):
        p, t = (predicted == c) & labelled, (target == c) & labelled
        both, either = (p & t).sum(), (p | t).sum()
        precision, recall = both / p.sum(), both / t.sum()
        assert found.dice[c] == pytest.approx(2 * both / (p.sum() + t.sum()))
        assert found.f1[c] == pytest.approx(2 * precision * recall / (precision + recall))
        assert found.iou[c] == pytest.approx(both / either)
        assert found.precision[c] == pytest.approx(precision)
        assert found.recall[c] == pytest.approx(recall)
        assert found.accuracy[c] == pytest.approx((p == t)[labelled].mean())


def test_scores_agree_with_torchmetrics(ids):
    predicted, target = ids
    found = scores(confusion(*ids, 4))
    options = {"num_classes": 4, "ignore_index": IGNORE_ID, "task": "multiclass"}
    iou = jaccard_index(predicted, target, average="none", **options)
    np.testing.assert_allclose(found.iou, iou, rtol=1e-6)
    f1 = classification.f1_score(predicted, target, average="none", **options)
    np.testing.assert_allclose(found.dice, f1, rtol=1e-6)
    recall = classification.recall(predicted, target, average="macro", **options)
    assert found.mean_accuracy == pytest.approx(float(recall), rel=1e-6)
    accuracy = classification.accuracy(predicted, target, average="micro", **options)
    assert found.overall_accuracy == pytest.approx(float(accuracy), rel=1e-6)


def test_dice_and_iou_keep_their_relation(ids):
    found = scores(confusion(*ids, 4))
    np.testing.assert_allclose(found.iou, found.dice / (2 - found.dice))


def test_published_means_follow_from_the_published_classes():
    # ASRMU-Net paper: Dice of its four classes, then the IoU of each and MDice, MIoU as printed
    dice = np.array([88.2, 78.4, 84.3, 90.6])
    right = np.round(dice * 1000).astype(int)
    matrix = np.diag(np.append(0, right))
    matrix[0, 1:] = matrix[1:, 0] = 100_000 - right  # as many invented as missed
    found = scores(matrix, has_background=True)
    np.testing.assert_allclose(found.dice[1:] * 100, dice)
    np.testing.assert_allclose(found.iou[1:] * 100, [78.9, 64.5, 72.9, 82.8], atol=0.06)
    assert found.mean_dice * 100 == pytest.approx(85.375)
    assert found.mean_iou * 100 == pytest.approx(74.8, abs=0.05)


def test_background_stays_out_of_the_means(ids):
    with_background = scores(confusion(*ids, 4), has_background=True)
    assert with_background.mean_dice == pytest.approx(with_background.dice[1:].mean())
    assert scores(confusion(*ids, 4)).mean_dice == pytest.approx(with_background.dice.mean())


def test_a_class_that_is_nowhere_is_not_defined_and_leaves_the_means():
    found = scores(np.array([[5, 1, 0], [1, 3, 0], [0, 0, 0]]))
    assert np.isnan([found.dice[2], found.iou[2], found.precision[2], found.recall[2]]).all()
    assert found.mean_dice == pytest.approx(found.dice[:2].mean())
    assert found.mean_iou == pytest.approx(found.iou[:2].mean())


def test_a_class_that_is_only_invented_scores_zero():
    found = scores(np.array([[5, 0, 2], [0, 3, 0], [0, 0, 0]]))
    assert found.dice[2] == found.iou[2] == found.precision[2] == 0
    assert np.isnan(found.recall[2])


def test_no_pixel_at_all_gives_nan_without_warnings():
    found = scores(np.zeros((2, 2), int))
    assert np.isnan([found.mean_dice, found.mean_iou, found.overall_accuracy]).all()


def test_ids_out_of_range_and_too_few_classes_are_refused():
    metric = PixelConfusion(2)
    with pytest.raises(ValueError, match=r"target ids run from 0 to 3"):
        metric.update(torch.tensor([0, 1]), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"predicted ids run from 0 to 2"):
        metric.update(torch.tensor([0, 2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="background is a class too"):
        PixelConfusion(1)


def test_dice_th_gives_the_published_toy_value():
    metric = ThresholdCounts()
    metric.update(
        torch.tensor([0.05, 0.2, 0.45, 0.55, 0.8, 0.95]), torch.tensor([0, 0, 1, 0, 1, 1])
    )
    threshold, dice = best_threshold(metric.compute())
    assert dice == pytest.approx(0.857143, abs=1e-6)
    assert threshold == 0.20
    assert len(THRESHOLDS) == 16
    assert THRESHOLDS[0] == 0.1 and THRESHOLDS[-1] == 0.85


def test_dice_at_every_threshold_agrees_with_comparing_at_it():
    rng = np.random.default_rng(2)
    probabilities = rng.random((4, 16, 16)).astype(np.float32)
    probabilities[0] = np.round(probabilities[0] * 20) / 20  # many exactly on a threshold
    target = (rng.random(probabilities.shape) < probabilities).astype(np.int64)
    target[1, :4] = IGNORE_ID
    metric = ThresholdCounts()
    for p, t in zip(probabilities, target, strict=True):
        metric.update(torch.from_numpy(p), torch.from_numpy(t))
    labelled = target != IGNORE_ID
    for threshold, dice in zip(THRESHOLDS, metric.compute().tolist(), strict=True):
        p, t = (probabilities > np.float32(threshold))[labelled], target[labelled] == 1
        assert dice == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))


def test_the_threshold_without_any_foreground_is_one_half():
    metric = ThresholdCounts()
    metric.update(torch.zeros(5), torch.zeros(5, dtype=torch.long))
    threshold, dice = best_threshold(metric.compute())
    assert threshold == 0.5
    assert np.isnan(dice)


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.4), (0.5, 0.5), (0.5, 1.5)])
def test_thresholds_that_do_not_ascend_are_refused(thresholds):
    with pytest.raises(ValueError, match="must ascend within 0 to 1"):
        ThresholdCounts(thresholds)


def test_nan_probabilities_and_other_classes_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        ThresholdCounts().update(torch.tensor([0.1, float("nan")]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="holds id 2"):
        ThresholdCounts().update(torch.tensor([0.1, 0.2]), torch.tensor([0, 2]))


def test_one_channel_is_cut_strictly_above_the_threshold_and_more_take_the_greatest():
    one = torch.tensor([0.3, 0.5, 0.7]).view(1, 1, 1, 3)
    assert class_ids(one).flatten().tolist() == [0, 0, 1]
    assert class_ids(one, threshold=0.2).flatten().tolist() == [1, 1, 1]
    logits = torch.randn(2, 3, 4, 4).bfloat16()
    probabilities = probabilities_of(logits)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 4, 4))
    assert torch.equal(class_ids(probabilities), logits.argmax(dim=1))
    assert probabilities_of(torch.zeros(1, 1, 1, 1)).item() == 0.5
