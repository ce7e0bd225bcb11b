"""How the KPIs 2024 challenge pairs objects: as its rule says, and as its program does.

The rule: a predicted object is found (TP) if any true object has an IoU of 0.5 or more with it,
else invented (FP); a true object that no prediction reaches is missed (FN). So one true object may
serve several predictions. Outlines are filled: holes count as part of an object.

The program that the organisers published (github.com/hrlblab/KPIs2024, slide validation) differs in
three ways, all of which ``kpis_published`` repeats, since scores of the challenge hold them:

- Before it compares two outlines whose boxes meet, it moves both to a common corner, and leaves
  them there. Later comparisons are made with outlines that lie somewhere else.
- It traces the background around an object, so outlines run one pixel outside of it. An object that
  touches the image's border is not seen.
- A hole in an object counts as one more object.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Int32

Mask = Bool[np.ndarray, "_ _"]
Outline = Int32[np.ndarray, "_ 2"]
MARGIN_PX = 10  # that the published program leaves around two outlines when it moves them


def pair_published(truth: Mask, predicted: Mask, min_iou: float) -> tuple[int, int, int]:
    """Return (TP, FP, FN) as the published program finds them, in its order of comparing."""
    true, found = (_published_outlines(mask) for mask in (truth, predicted))
    tp = sum(any(_moving_iou(p, t) >= min_iou for t in true) for p in found)
    fn = sum(not any(_moving_iou(p, t) >= min_iou for p in found) for t in true)
    return tp, len(found) - tp, fn


def pair_by_rule(truth: Mask, predicted: Mask, min_iou: float) -> tuple[int, int, int]:
    """Return (TP, FP, FN) by the challenge's rule: filled objects that stay where they are."""
    true, found = (_filled_objects(mask) for mask in (truth, predicted))
    hits = np.array([[_iou(t, p) >= min_iou for p in found] for t in true], bool)
    hits = hits.reshape(len(true), len(found))
    tp, reached = int(hits.any(axis=0).sum()), int(hits.any(axis=1).sum())
    return tp, len(found) - tp, len(true) - reached


KPIS_MODES: dict[str, Callable[[Mask, Mask, float], tuple[int, int, int]]] = {
    "kpis_published": pair_published,
    "kpis_fixed": pair_by_rule,
}


def rank_teams(dice: Sequence[float | int], f1: Sequence[float | int]) -> list[int]:
    """Return the challenge's overall ranks, 1 the best: by rank of Dice plus rank of F1.

    Equal values share the better rank.

    Args:
        dice: Mean Dice of each team.
        f1: Mean F1 of each team, in the same order.

    Raises:
        ValueError: If the two differ in length.
    """
    if len(dice) != len(f1):
        raise ValueError(f"{len(dice)} Dice and {len(f1)} F1 were given; expected one of each")
    sums = [-(d + f) for d, f in zip(_ranks(dice), _ranks(f1), strict=True)]
    return _ranks(sums)


def _ranks(values: Sequence[float | int]) -> list[int]:
    return [1 + sum(other > value for other in values) for value in values]


def _published_outlines(mask: Mask) -> list[Outline]:
    """Return the outlines of what is not background, without that of the image's frame."""
    background = np.where(mask, 0, 255).astype(np.uint8)
    contours, _ = cv2.findContours(background, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    return [contour[:, 0].copy() for contour in contours[1:]]


def _moving_iou(one: Outline, other: Outline) -> float:
    """Return the IoU of two filled outlines, and move both, in place, if their boxes meet."""
    lows, highs = (np.stack([f(one, axis=0), f(other, axis=0)]) for f in (np.min, np.max))
    if (lows.max(axis=0) > highs.min(axis=0)).any():
        return 0.0
    corner = lows.min(axis=0) - MARGIN_PX
    width, height = (highs.max(axis=0) + MARGIN_PX - corner).tolist()
    drawn = np.zeros((2, height, width), np.uint8)
    for canvas, outline in zip(drawn, (one, other), strict=True):
        outline -= corner
        cv2.drawContours(canvas, [outline[:, None]], -1, 1, -1)
    return float((drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum())


class _Filled:
    """One object, its holes filled: left, top, and the pixels of its box."""

    def __init__(self, contour: np.ndarray) -> None:
        self.x, self.y, width, height = cv2.boundingRect(contour)
        self.mask = np.zeros((height, width), np.uint8)
        cv2.drawContours(self.mask, [contour], -1, 1, -1, offset=(-self.x, -self.y))
        self.area = int(self.mask.sum())


def _filled_objects(mask: Mask) -> list[_Filled]:
    outer = cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    contours, _ = cv2.findContours(mask.astype(np.uint8), *outer)
    return [_Filled(contour) for contour in contours]


def _iou(one: _Filled, other: _Filled) -> float:
    left, top = max(one.x, other.x), max(one.y, other.y)
    right = min(one.x + one.mask.shape[1], other.x + other.mask.shape[1])
    bottom = min(one.y + one.mask.shape[0], other.y + other.mask.shape[0])
    if left >= right or top >= bottom:
        return 0.0
    parts = (
        filled.mask[top - filled.y : bottom - filled.y, left - filled.x : right - filled.x]
        for filled in (one, other)
    )
    shared = int(np.bitwise_and(*parts).sum())
    return shared / (one.area + other.area - shared)
