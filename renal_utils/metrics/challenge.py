"""Scores of whole slides: how many objects were found, at which overlap.

A slide-level score depends on how predicted and true objects are paired, so every number that is
shown names its mode. Here is ``one_to_one``: each true object is paired with at most one predicted
one, so that their summed IoU is greatest (Hungarian method), and a pair counts as found from an IoU
of 0.5 on. The KPIs challenge's own rule lets one true object serve several predictions (see the
challenge's overview, arXiv 2502.07288); its numbers and these are not to be mixed.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array

Mask = Bool[np.ndarray, "_ _"]


@dataclass(frozen=True)
class ObjectScores:
    """Objects found, invented and missed, and what follows from the three.

    Attributes:
        tp: True objects that were found.
        fp: Predicted objects that match none.
        fn: True objects that were missed.
        mode: How objects were paired.
    """

    tp: int
    fp: int
    fn: int
    mode: str = "one_to_one"

    @property
    def precision(self) -> float:
        """TP / (TP + FP); NaN where nothing was predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / (TP + FN); NaN where there is nothing to find."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN where there is nothing to find and nothing predicted."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def match_objects(
    truth: Mask, predicted: Mask, *, min_iou: float = 0.5, min_area_px: int = 0
) -> ObjectScores:
    """Compare the objects of two masks one to one.

    An object is a connected component (8 neighbours). Objects that touch are one object: a mask
    cannot say otherwise.

    Args:
        truth: Where the true objects are.
        predicted: Where the predicted ones are, on the same pixels.
        min_iou: IoU from which on (inclusive) a pair counts as found.
        min_area_px: Predicted objects of fewer pixels are left out, as are true ones.

    Raises:
        ValueError: If the masks differ in size, or ``min_iou`` is not within (0, 1].
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has the shape {truth.shape}, the prediction {predicted.shape}")
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must lie in (0, 1], not {min_iou}; 0.5 is usual")
    true_ids, num_true = _components(truth, min_area_px)
    found_ids, num_found = _components(predicted, min_area_px)
    iou = _iou_table(true_ids, found_ids, (num_true, num_found))
    tp = _paired(iou, min_iou)
    return ObjectScores(tp=tp, fp=num_found - tp, fn=num_true - tp)


def _components(mask: Mask, min_area_px: int) -> tuple[Int32[np.ndarray, "H W"], int]:
    """Return ids 1..n of the components that are large enough, and n."""
    _, ids, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    keep[0] = False
    renumbered = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return renumbered[ids], int(keep.sum())


def _iou_table(
    true_ids: np.ndarray, found_ids: np.ndarray, size: tuple[int, int]
) -> Float[np.ndarray, "T P"]:
    """Return the IoU of every true with every predicted object."""
    rows, columns = size[0] + 1, size[1] + 1
    ones = np.ones(true_ids.size, np.int64)
    pixels = coo_array((ones, (true_ids.ravel(), found_ids.ravel())), shape=(rows, columns))
    shared = pixels.toarray()
    union = shared.sum(axis=1)[:, None] + shared.sum(axis=0)[None, :] - shared
    return shared[1:, 1:] / np.maximum(union[1:, 1:], 1)


def _paired(iou: Float[np.ndarray, "T P"], min_iou: float) -> int:
    """Return how many pairs of the best assignment reach ``min_iou``; below it nothing counts."""
    worth = np.where(iou >= min_iou, iou, 0)
    return int((worth[linear_sum_assignment(worth, maximize=True)] > 0).sum())


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
