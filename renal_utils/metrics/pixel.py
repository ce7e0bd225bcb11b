"""Pixel metrics: count first, divide once.

Counts of a whole data set are summed over batches and processes; only then are scores computed.
(A mean of per-patch Dice is another number: it depends on how the slide was cut, and patches
without the class have none.) Pixels whose truth is ``IGNORE_ID`` (255) are left out.

A quotient 0/0 is NaN, "not defined", and the means skip it. So a class that is neither in the truth
nor predicted has no Dice, but a class that is predicted and not there has Dice 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor
from torchmetrics import Metric

from renal_utils.labels import IGNORE_ID

# 0.10, 0.15, ... 0.85: those that the thesis tries for its Dice_th
THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(16))


def probabilities_of(logits: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Return probabilities: the sigmoid of one channel, the softmax of more, in float32."""
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def class_ids(
    probabilities: Float[Tensor, "B C H W"], *, threshold: float = 0.5
) -> Int64[Tensor, "B H W"]:
    """Return the class of every pixel.

    Args:
        probabilities: Of each class, 0 to 1.
        threshold: With one channel, foreground (id 1) is where the probability is *greater*. With
            more channels the most probable class wins and the threshold is not used.
    """
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > threshold).long()
    return probabilities.argmax(dim=1)


@dataclass(frozen=True)
class PixelScores:
    """Scores of every class from one confusion matrix, and their means.

    Attributes:
        dice: 2 TP / (2 TP + FP + FN). For pixels this is the F1 score as well.
        iou: TP / (TP + FP + FN), which is Dice / (2 - Dice).
        precision: TP / (TP + FP).
        recall: TP / (TP + FN), the accuracy within the class.
        accuracy: (TP + TN) / all. Large for any rare class, whatever the network does.
        mean_accuracy: MAcc, the mean recall (assumed: the ASRMU-Net paper does not define it).
        mean_dice: MDice.
        mean_iou: MIoU.
        overall_accuracy: Share of all pixels that are right.
    """

    dice: Float[np.ndarray, " C"]
    iou: Float[np.ndarray, " C"]
    precision: Float[np.ndarray, " C"]
    recall: Float[np.ndarray, " C"]
    accuracy: Float[np.ndarray, " C"]
    mean_accuracy: float
    mean_dice: float
    mean_iou: float
    overall_accuracy: float

    @property
    def f1(self) -> Float[np.ndarray, " C"]:
        """The harmonic mean of precision and recall; for pixels it is Dice under another name."""
        return self.dice

    def by_class(self) -> Mapping[str, Float[np.ndarray, " C"]]:
        """Return the scores per class as columns, ready for a table."""
        names = ("dice", "iou", "precision", "recall", "f1", "accuracy")
        return {name: getattr(self, name) for name in names}


def scores(matrix: Integer[np.ndarray, "C C"], *, has_background: bool = False) -> PixelScores:
    """Return the scores that a confusion matrix holds.

    Args:
        matrix: Pixels by true class (rows) and predicted class (columns).
        has_background: Whether class 0 is background (``LabelSet.has_background``); it then has
            scores of its own, but no part in the means.
    """
    matrix = matrix.astype(np.int64)
    right, everything = np.diag(matrix), matrix.sum()
    predicted, truth = matrix.sum(axis=0), matrix.sum(axis=1)
    dice = quotient(2 * right, predicted + truth)
    iou = quotient(right, predicted + truth - right)
    recall = quotient(right, truth)
    counted = slice(1 if has_background else 0, None)
    return PixelScores(
        dice=dice,
        iou=iou,
        precision=quotient(right, predicted),
        recall=recall,
        accuracy=quotient(
            everything - predicted - truth + 2 * right, np.full_like(truth, everything)
        ),
        mean_accuracy=_mean(recall[counted]),
        mean_dice=_mean(dice[counted]),
        mean_iou=_mean(iou[counted]),
        overall_accuracy=float(right.sum() / everything) if everything else float("nan"),
    )


class PixelConfusion(Metric):
    """Confusion matrix of class ids, summed over batches and processes.

    ``scores(metric.compute().cpu().numpy())`` turns it into Dice, IoU and the rest.

    Args:
        num_classes: Classes of the label set: 2 for one class on background.

    Raises:
        ValueError: If there are fewer than 2 classes.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    matrix: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"num_classes is {num_classes}, but background is a class too: give 2 or more "
                "(len(label_set.classes), not the network's channels)"
            )
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("matrix", zeros, dist_reduce_fx="sum")

    def update(
        self, predicted: Integer[Tensor, "*shape"], target: Integer[Tensor, "*shape"]
    ) -> None:
        """Add the pixels of a batch.

        Args:
            predicted: Class ids.
            target: True class ids; 255 is left out.

        Raises:
            ValueError: If an id is not below ``num_classes``.
        """
        valid = target != IGNORE_ID
        predicted, target = predicted[valid].long(), target[valid].long()
        self._check(predicted, "predicted")
        self._check(target, "target")
        pairs = target * self.num_classes + predicted
        counts = torch.bincount(pairs, minlength=self.num_classes**2)
        self.matrix += counts.view(self.num_classes, self.num_classes)

    def compute(self) -> Int64[Tensor, "C C"]:
        """Return the matrix: true class by row, predicted class by column."""
        return self.matrix

    def _check(self, ids: Integer[Tensor, " n"], what: str) -> None:
        if ids.numel() and not (ids.min() >= 0 and ids.max() < self.num_classes):
            raise ValueError(
                f"{what} ids run from {int(ids.min())} to {int(ids.max())}, but the metric counts "
                f"{self.num_classes} classes (0 to {self.num_classes - 1})"
            )


def best_threshold(
    dice: Float[Tensor, " T"], *, thresholds: tuple[float, ...] = THRESHOLDS
) -> tuple[float, float]:
    """Return the threshold of the highest Dice, the lowest of equals, and that Dice.

    Choose it on *validation* data and keep it for the test: on the data it was chosen on, the Dice
    flatters. Where no Dice is defined (no foreground at all) the threshold is 0.5 and Dice NaN.

    Args:
        dice: What ``ThresholdCounts`` computed.
        thresholds: Those it was built with.
    """
    if dice.isnan().all():
        return 0.5, float("nan")
    best = int(dice.nan_to_num(-1).argmax())
    return thresholds[best], float(dice[best])


class ThresholdCounts(Metric):
    """Counts of one class's probabilities above and below 16 thresholds.

    The thesis's Dice_th: thresholds 0.10 to 0.85, foreground where the probability is strictly
    greater, overlap and sums pooled over the whole set. It reports the maximum over the data that
    it scores, which flatters; choose the threshold on validation data only.

    Args:
        thresholds: Ascending, each within 0 to 1.

    Raises:
        ValueError: If the thresholds do not ascend within 0 to 1.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    counts: Tensor

    def __init__(self, thresholds: tuple[float, ...] = THRESHOLDS) -> None:
        super().__init__()
        if not thresholds or list(thresholds) != sorted({t for t in thresholds if 0 <= t <= 1}):
            raise ValueError(f"thresholds must ascend within 0 to 1, not {thresholds}")
        self.thresholds = thresholds
        # pixels by truth (0, 1) and by how many thresholds their probability exceeds
        zeros = torch.zeros(2, len(thresholds) + 1, dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(
        self, probabilities: Float[Tensor, "*shape"], target: Integer[Tensor, "*shape"]
    ) -> None:
        """Add the pixels of a batch.

        Args:
            probabilities: Of the foreground, 0 to 1; one channel, its axis dropped (``[:, 0]``).
            target: 1 for foreground, 0 for background, 255 is left out.

        Raises:
            ValueError: If a probability is NaN, or the target holds another id.
        """
        valid = target != IGNORE_ID
        probabilities, target = probabilities[valid].float(), target[valid].long()
        if probabilities.isnan().any():
            raise ValueError("probabilities hold NaN; look at the network's logits")
        if (target > 1).any() or (target < 0).any():
            raise ValueError(
                f"target holds id {int(target.max())}; a threshold is chosen for one class (1) on "
                "background (0)"
            )
        borders = torch.tensor(self.thresholds, device=probabilities.device)
        exceeded = torch.bucketize(probabilities, borders)
        width = len(self.thresholds) + 1
        self.counts += torch.bincount(target * width + exceeded, minlength=2 * width).view(2, width)

    def compute(self) -> Float[Tensor, " T"]:
        """Return Dice at every threshold; NaN where neither truth nor prediction has a pixel."""
        counts = self.counts.cpu().numpy()
        above = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]  # strictly above each threshold
        dice = quotient(2 * above[1], above.sum(axis=0) + counts[1].sum())
        return torch.from_numpy(dice)


def quotient(
    numerator: Integer[np.ndarray, " n"], denominator: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Divide, with NaN for 0/0."""
    undefined = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _mean(values: Float[np.ndarray, " n"]) -> float:
    """Return the mean of what is defined; NaN if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
