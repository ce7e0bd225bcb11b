"""Scores as challenges compute them: Dice of patches and slides, objects that were found.

An object score depends on how predicted and true objects are paired, so every number that is shown
names its mode:

- ``one_to_one``: each true object is paired with at most one predicted one, so that their summed
  IoU is greatest (Hungarian method); a pair counts as found from an IoU of 0.5 on.
- ``kpis_fixed``: the rule of the KPIs 2024 challenge, by which one true object may serve several
  predictions (challenge's overview, arXiv 2502.07288).
- ``kpis_published``: what the program that its organisers published makes of that rule. Only this
  one compares with the challenge's leaderboard; see ``kpis`` for what it does.

Dice is 2 |T & P| / (|T| + |P|). KPIs Task 1 takes its mean over patches, Task 2 its mean over
slides, HuBMAP its mean over images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array

from renal_utils.metrics.kpis import KPIS_MODES

Mask = Bool[np.ndarray, "_ _"]
MODES = ("one_to_one", *KPIS_MODES)


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
        """2 TP / (2 TP + FP + FN); where nothing is true or predicted NaN, in KPIs modes 0."""
        empty = 0.0 if self.mode in KPIS_MODES else float("nan")
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn, empty)


def mask_dice(truth: Mask, predicted: Mask) -> float:
    """Return the Dice of two masks, 0 to 1; of two empty ones 1.

    Raises:
        ValueError: If the masks differ in size.
    """
    _check_sizes(truth, predicted)
    both = int(truth.sum()) + int(predicted.sum())
    return _ratio(2 * int((truth & predicted).sum()), both, 1.0)


def mean_dice(pairs: Iterable[tuple[Mask, Mask]], *, skip_empty: bool = False) -> float:
    """Return the mean Dice over (truth, prediction) pairs, NaN of none.

    Args:
        pairs: Of patches for KPIs Task 1, of slides at 20x for Task 2, of images for HuBMAP.
        skip_empty: Leave out pairs whose truth is empty, as the toolkit of Task 1 does unless told;
            otherwise such a pair is 1 if nothing was predicted and 0 if a single pixel was.
    """
    found = [mask_dice(t, p) for t, p in pairs if not skip_empty or t.any()]
    return float(np.mean(found)) if found else float("nan")


def match_objects(
    truth: Mask,
    predicted: Mask,
    *,
    min_iou: float = 0.5,
    min_area_px: int = 0,
    mode: str = "one_to_one",
) -> ObjectScores:
    """Compare the objects of two masks.

    An object is a connected component (8 neighbours). Objects that touch are one object: a mask
    cannot say otherwise.

    Args:
        truth: Where the true objects are.
        predicted: Where the predicted ones are, on the same pixels.
        min_iou: IoU from which on (inclusive) a pair counts as found.
        min_area_px: Predicted objects of fewer pixels are left out, as are true ones.
        mode: How objects are paired, one of ``MODES``.

    Raises:
        ValueError: If the masks differ in size, ``min_iou`` is not within (0, 1], or the mode is
            unknown.
    """
    _check_sizes(truth, predicted)
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must lie in (0, 1], not {min_iou}; 0.5 is usual")
    if mode not in MODES:
        raise ValueError(f"no mode {mode!r}; known: {', '.join(MODES)}")
    true_ids, num_true = _components(truth, min_area_px)
    found_ids, num_found = _components(predicted, min_area_px)
    if mode in KPIS_MODES:
        return ObjectScores(*KPIS_MODES[mode](true_ids > 0, found_ids > 0, min_iou), mode=mode)
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


def _check_sizes(truth: Mask, predicted: Mask) -> None:
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has the shape {truth.shape}, the prediction {predicted.shape}")


def _ratio(part: int, whole: int, empty: float = float("nan")) -> float:
    return part / whole if whole else empty
