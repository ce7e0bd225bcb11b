"""Curves of one class's probabilities: precision and recall by threshold, and calibration.

As in ``pixel``, counts of a whole data set come first and are divided once; 0/0 is NaN; pixels
whose truth is ``IGNORE_ID`` (255) are left out. Tables are ready to be plotted.

torchmetrics has binned counterparts, with which ours agree (tested). Its precision-recall curve
takes a probability *equal* to the threshold as foreground and 0/0 as 0, and of calibration it gives
only the error, not the curve; hence these.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor
from torchmetrics import Metric

from renal_utils.labels import IGNORE_ID
from renal_utils.metrics.pixel import ThresholdCounts, quotient

_UNIT = 2**24  # float32 between a half and 1 has this resolution


def precision_recall_table(metric: ThresholdCounts) -> pd.DataFrame:
    """Return precision, recall and Dice at each threshold of a metric that has seen its pixels.

    Args:
        metric: For a smooth curve built with many thresholds, such as
            ``tuple(np.linspace(0, 1, 101))``.

    Returns:
        Indexed by ``threshold``; a pixel is foreground where its probability is strictly greater.
    """
    counts = metric.counts.cpu().numpy()
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    predicted, truth = above.sum(axis=0), counts[1].sum()
    columns = {
        "precision": quotient(above[1], predicted),
        "recall": quotient(above[1], np.full_like(predicted, truth)),
        "dice": quotient(2 * above[1], predicted + truth),
    }
    return pd.DataFrame(columns, index=pd.Index(metric.thresholds, name="threshold"))


class CalibrationBins(Metric):
    """Counts for a reliability diagram: of pixels given a probability, how many are foreground.

    Probabilities are added up as whole multiples of 2^-24, so that sums of any number of pixels are
    exact and do not depend on their order.

    Args:
        num_bins: Bins of equal width between 0 and 1; each has its lower border, the last both.

    Raises:
        ValueError: If there is no bin.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    counts: Tensor

    def __init__(self, num_bins: int = 10) -> None:
        super().__init__()
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, not {num_bins}")
        self.num_bins = num_bins
        # by row: pixels, those that are foreground, sum of their probabilities
        zeros = torch.zeros(3, num_bins, dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(
        self, probabilities: Float[Tensor, "*shape"], target: Integer[Tensor, "*shape"]
    ) -> None:
        """Add the pixels of a batch.

        Args:
            probabilities: Of the foreground, 0 to 1; one channel, its axis dropped (``[:, 0]``).
            target: 1 for foreground, 0 for background, 255 is left out.

        Raises:
            ValueError: If a probability is none, or the target holds another id.
        """
        valid = target != IGNORE_ID
        probabilities, target = probabilities[valid].float(), target[valid].long()
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError("probabilities must lie within 0 to 1; take the sigmoid of logits")
        if not ((target == 0) | (target == 1)).all():
            raise ValueError(
                f"target holds id {int(target.max())}; calibration is of one class (1) on "
                "background (0)"
            )
        bins = (probabilities * self.num_bins).long().clamp(max=self.num_bins - 1)
        units = (probabilities * _UNIT).round().long()
        for row, values in enumerate((torch.ones_like(target), target, units)):
            self.counts[row].index_add_(0, bins, values)

    def compute(self) -> Int64[Tensor, "3 N"]:
        """Return per bin the pixels, those of the foreground, and the sum of 2^24 probability."""
        return self.counts

    def table(self) -> pd.DataFrame:
        """Return the reliability diagram of what was seen.

        Returns:
            One row a bin: ``lower`` and ``upper`` border, ``pixels``, ``predicted`` (their mean
            probability) and ``observed`` (the share that is foreground); NaN in an empty bin.
        """
        pixels, foreground, units = self.compute().cpu().numpy()
        borders = np.linspace(0, 1, self.num_bins + 1)
        columns = {
            "lower": borders[:-1],
            "upper": borders[1:],
            "pixels": pixels,
            "predicted": quotient(units, pixels) / _UNIT,
            "observed": quotient(foreground, pixels),
        }
        return pd.DataFrame(columns)


def calibration_error(table: pd.DataFrame) -> float:
    """Return the expected calibration error: the mean gap of predicted and observed over pixels.

    Naeini, Cooper and Hauskrecht (AAAI 2015), for the probability of the foreground. Background is
    most of a slide and easy, so a small error says little of the foreground; look at the curve.

    Args:
        table: Of ``CalibrationBins.table``.

    Returns:
        0 to 1; NaN without any pixel.
    """
    filled = table[table["pixels"] > 0]
    if filled.empty:
        return float("nan")
    gaps = (filled["predicted"] - filled["observed"]).abs()
    return float(np.average(gaps, weights=filled["pixels"]))
