import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError, BinaryPrecisionRecallCurve

from renal_utils.labels import IGNORE_ID
from renal_utils.metrics.curves import CalibrationBins, calibration_error, precision_recall_table
from renal_utils.metrics.pixel import ThresholdCounts


def random_pixels(count=3000):
    generator = torch.Generator().manual_seed(12)
    probabilities = torch.rand(count, generator=generator)
    target = (torch.rand(count, generator=generator) < probabilities**2).long()
    target[::7] = IGNORE_ID
    return probabilities, target


def test_precision_and_recall_agree_with_torchmetrics():
    probabilities, target = random_pixels()
    thresholds = tuple(np.linspace(0.05, 0.95, 19).tolist())
    metric = ThresholdCounts(thresholds)
    metric.update(probabilities[:1000], target[:1000])
    metric.update(probabilities[1000:], target[1000:])
    found = precision_recall_table(metric)
    theirs = BinaryPrecisionRecallCurve(thresholds=list(thresholds), ignore_index=IGNORE_ID)
    precision, recall, _ = theirs(probabilities, target)
    assert found["precision"].to_numpy() == pytest.approx(precision[:-1].numpy(), abs=1e-6)
    assert found["recall"].to_numpy() == pytest.approx(recall[:-1].numpy(), abs=1e-6)
    assert found["dice"].to_numpy() == pytest.approx(metric.compute().numpy())
    assert (found["recall"].diff().dropna() <= 0).all()


def test_a_threshold_that_nothing_exceeds_has_no_precision():
    metric = ThresholdCounts((0.2, 0.5))
    metric.update(torch.tensor([0.1, 0.5]), torch.tensor([0, 1]))
    table = precision_recall_table(metric)
    assert table.loc[0.2].tolist() == [1, 1, 1]
    assert np.isnan(table.loc[0.5, "precision"])
    assert table.loc[0.5, "recall"] == 0  # equal to the threshold is not above it


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_agrees_with_torchmetrics(bins):
    probabilities, target = random_pixels()
    metric = CalibrationBins(bins)
    metric.update(probabilities[:500], target[:500])
    metric.update(probabilities[500:].view(50, 50), target[500:].view(50, 50))
    theirs = BinaryCalibrationError(n_bins=bins, ignore_index=IGNORE_ID)(probabilities, target)
    assert calibration_error(metric.table()) == pytest.approx(theirs.item(), abs=1e-6)
    assert metric.table()["pixels"].sum() == (target != IGNORE_ID).sum().item()


def test_a_reliability_table_says_what_was_predicted_and_what_was_there():
    metric = CalibrationBins(4)
    metric.update(
        torch.tensor([0.0, 0.2, 0.25, 1.0, 1.0, 0.9]), torch.tensor([0, 1, 0, 1, 0, IGNORE_ID])
    )
    table = metric.table()
    assert table["pixels"].tolist() == [2, 1, 0, 2]
    assert table["predicted"].tolist() == pytest.approx([0.1, 0.25, np.nan, 1], nan_ok=True)
    assert table["observed"].tolist() == pytest.approx([0.5, 0, np.nan, 0.5], nan_ok=True)
    assert calibration_error(table) == pytest.approx((2 * 0.4 + 0.25 + 2 * 0.5) / 5)


def test_no_pixels_have_no_calibration():
    metric = CalibrationBins()
    metric.update(torch.tensor([0.5]), torch.tensor([IGNORE_ID]))
    assert np.isnan(calibration_error(metric.table()))


def test_what_cannot_be_calibrated_is_refused():
    metric = CalibrationBins()
    with pytest.raises(ValueError, match="take the sigmoid"):
        metric.update(torch.tensor([1.5]), torch.tensor([1]))
    with pytest.raises(ValueError, match="take the sigmoid"):
        metric.update(torch.tensor([float("nan")]), torch.tensor([1]))
    with pytest.raises(ValueError, match="holds id 2"):
        metric.update(torch.tensor([0.5]), torch.tensor([2]))
    with pytest.raises(ValueError, match="at least 1"):
        CalibrationBins(0)
