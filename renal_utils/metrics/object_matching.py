"""Objects of a true and a predicted mask, paired: how many were found, invented and missed.

The numbers depend on how objects are paired, so that every one that is shown names its mode:

- ``one_to_one``: each true object is paired with at most one predicted one, so that their summed
  IoU is greatest (Hungarian method).
- ``kpis_fixed``: the rule of the KPIs 2024 challenge (Tang et al., arXiv 2502.07288, Task 2). A
  prediction is right if any true object reaches the IoU with it; a true object is missed if no
  prediction does. Several predictions may share one true object.
- ``kpis_published``: what the challenge's evaluation script computes. It moves two outlines towards
  the corner in order to compare them, and leaves them there, so that later comparisons see moved
  shapes. It also takes outlines of the background's holes: objects grow by a pixel, those at the
  image's border are not seen, and holes within objects count as objects.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array

Mask = Bool[np.ndarray, "_ _"]
Counts = tuple[int, int, int]  # found, invented, missed
_MARGIN = 10  # pixels around two outlines that are compared; the script's, and without effect


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
    truth: Mask,
    predicted: Mask,
    *,
    mode: str = "one_to_one",
    min_iou: float = 0.5,
    min_area_px: int = 0,
) -> ObjectScores:
    """Compare the objects of two masks.

    An object is a connected component (8 neighbours). Objects that touch are one object: a mask
    cannot say otherwise. The challenge's modes fill holes before they compare.

    Args:
        truth: Where the true objects are.
        predicted: Where the predicted ones are, on the same pixels.
        mode: A key of ``MODES``.
        min_iou: IoU from which on (inclusive) a pair counts as found.
        min_area_px: Predicted objects of fewer pixels are left out, as are true ones.

    Raises:
        ValueError: If the masks differ in size, the mode is unknown, or ``min_iou`` is not within
            (0, 1].
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has the shape {truth.shape}, the prediction {predicted.shape}")
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must lie in (0, 1], not {min_iou}; 0.5 is usual")
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; the modes are {', '.join(MODES)}")
    true_ids, found_ids = (_components(mask, min_area_px) for mask in (truth, predicted))
    tp, fp, fn = MODES[mode](true_ids, found_ids, min_iou)
    return ObjectScores(tp=tp, fp=fp, fn=fn, mode=mode)


def pool_objects(
    pairs: Iterable[tuple[Mask, Mask]],
    *,
    mode: str = "one_to_one",
    min_iou: float = 0.5,
    min_area_px: int = 0,
) -> ObjectScores:
    """Compare the objects of many tiles, and add up what was found, invented and missed.

    So an object weighs the same on whatever tile it lies, and F1 is divided once, at the end.
    Without another ``mode`` objects are paired ``one_to_one``, those of each tile among themselves:
    an object that a tile's border cuts counts on both sides of it.

    Args:
        pairs: Truth and prediction of each tile, read one by one; sizes may differ between tiles.
        mode: See ``match_objects``, as are the others.
        min_iou: IoU from which on a pair counts as found.
        min_area_px: Objects of fewer pixels are left out.

    Raises:
        ValueError: As ``match_objects``, or if there is no tile.
    """
    settings = {"mode": mode, "min_iou": min_iou, "min_area_px": min_area_px}
    tiles = [match_objects(truth, predicted, **settings) for truth, predicted in pairs]
    if not tiles:
        raise ValueError("no tile was given, so there is nothing to score")
    sums = {name: sum(getattr(tile, name) for tile in tiles) for name in ("tp", "fp", "fn")}
    return ObjectScores(**sums, mode=mode)


def _one_to_one(true_ids: np.ndarray, found_ids: np.ndarray, min_iou: float) -> Counts:
    num_true, num_found = int(true_ids.max(initial=0)), int(found_ids.max(initial=0))
    tp = _paired(_iou_table(true_ids, found_ids, (num_true, num_found)), min_iou)
    return tp, num_found - tp, num_true - tp


def _kpis_fixed(true_ids: np.ndarray, found_ids: np.ndarray, min_iou: float) -> Counts:
    true, found = (_outlines(ids > 0) for ids in (true_ids, found_ids))
    hits = np.array([[_overlap(f, t) >= min_iou for t in true] for f in found], bool)
    hits = hits.reshape(len(found), len(true))
    tp = int(hits.any(axis=1).sum())
    return tp, len(found) - tp, int((~hits.any(axis=0)).sum())


def _kpis_published(true_ids: np.ndarray, found_ids: np.ndarray, min_iou: float) -> Counts:
    """Compare in the script's order, each pair's outlines staying where they were moved to."""
    true, found = (_outlines_of_holes(ids > 0) for ids in (true_ids, found_ids))

    def hit(outline: np.ndarray, other: np.ndarray) -> bool:
        if not _boxes_meet(outline, other):
            return False
        corner = np.minimum(outline.min(axis=0), other.min(axis=0)) - _MARGIN
        outline -= corner
        other -= corner
        return _overlap(outline, other) >= min_iou

    tp = sum(any(hit(f, t) for t in true) for f in found)
    fn = sum(not any(hit(f, t) for f in found) for t in true)
    return tp, len(found) - tp, fn


MODES: Mapping[str, Callable[[np.ndarray, np.ndarray, float], Counts]] = {
    "one_to_one": _one_to_one,
    "kpis_published": _kpis_published,
    "kpis_fixed": _kpis_fixed,
}


def _outlines(mask: Mask) -> Sequence[np.ndarray]:
    """Return each object's outer outline, as points (x, y)."""
    found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [outline[:, 0] for outline in found[0]]


def _outlines_of_holes(mask: Mask) -> Sequence[np.ndarray]:
    """Return all outlines of the background but the first, which is the image's frame."""
    background = np.where(mask, 0, 255).astype(np.uint8)
    found = cv2.findContours(background, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    return [outline[:, 0] for outline in found[0][1:]]


def _boxes_meet(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(
        (one.max(axis=0) >= other.min(axis=0)).all()
        and (other.max(axis=0) >= one.min(axis=0)).all()
    )


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two outlines, filled."""
    if not _boxes_meet(one, other):
        return 0.0
    corner = np.minimum(one.min(axis=0), other.min(axis=0)) - _MARGIN
    width, height = (np.maximum(one.max(axis=0), other.max(axis=0)) + _MARGIN - corner).tolist()
    filled = []
    for outline in (one, other):
        canvas = np.zeros((height, width), np.uint8)
        filled.append(cv2.drawContours(canvas, [outline - corner], -1, 1, -1) > 0)
    return float((filled[0] & filled[1]).sum() / (filled[0] | filled[1]).sum())


def _components(mask: Mask, min_area_px: int) -> Int32[np.ndarray, "H W"]:
    """Return ids 1..n of the components that are large enough."""
    _, ids, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    keep[0] = False
    renumbered = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return renumbered[ids]


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
