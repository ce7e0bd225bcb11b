"""Drawn nuclei and slow literal algorithms that tests and benchmarks hold ours against."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment


def draw_nuclei(size_px: int, count: int, *, seed: int = 0, radii: tuple[int, int] = (8, 16)):
    """Return an instance map of discs with ids 1..count; a later disc takes what is still free."""
    rng = np.random.default_rng(seed)
    instances = np.zeros((size_px, size_px), np.int32)
    for number in range(1, count + 1):
        (y, x), r = rng.integers(0, size_px, 2), rng.integers(*radii)
        window = np.s_[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
        rows, columns = np.ogrid[window]
        rows, columns = rows[: size_px - rows[0, 0]], columns[:, : size_px - columns[0, 0]]
        disc = (rows - y) ** 2 + (columns - x) ** 2 <= r * r
        instances[window][disc & (instances[window] == 0)] = number
    return instances


def grow_literally(
    seeds: np.ndarray,
    mask: np.ndarray,
    *,
    passes: int | None = None,
    dilate: Callable | None = None,
) -> np.ndarray:
    """Algorithm 1 as printed: every object in turn is dilated over the whole image and painted."""
    dilate = dilate or (lambda part: ndimage.binary_dilation(part, np.ones((3, 3))))
    labels, done = seeds.copy(), 0
    while done != passes:
        before = labels.copy()
        for number in range(1, seeds.max() + 1):
            grown = dilate(labels == number)
            labels[grown & mask & (labels == 0)] = number
        done += 1
        if (labels == before).all():
            break
    return labels


def score_literally(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """AJI, AJI+, DQ, SQ and PQ by comparing masks, one pair of overlapping objects at a time."""
    trues = [truth == i for i in np.unique(truth[truth > 0])]
    found = [predicted == i for i in np.unique(predicted[predicted > 0])]
    ids, iou = np.unique(predicted[predicted > 0]), np.zeros((len(trues), len(found)))
    for t, mask in enumerate(trues):
        for p in np.flatnonzero(np.isin(ids, predicted[mask])):
            iou[t, p] = (mask & found[p]).sum() / (mask | found[p]).sum()
    best = [(t, int(iou[t].argmax())) for t in range(len(trues)) if iou[t].max() > 0]
    paired = [(t, p) for t, p in zip(*linear_sum_assignment(-iou), strict=True) if iou[t, p] > 0]
    hits = iou[iou > 0.5]
    dq = len(hits) / (len(trues) / 2 + len(found) / 2)
    sq = hits.mean() if len(hits) else 0.0
    aji, aji_plus = (_aggregated(trues, found, pairs) for pairs in (best, paired))
    return {"aji": aji, "aji_plus": aji_plus, "dq": dq, "sq": sq, "pq": dq * sq}


def _aggregated(trues: list, found: list, pairs: list[tuple[int, int]]) -> float:
    shared = sum((trues[t] & found[p]).sum() for t, p in pairs)
    union = sum((trues[t] | found[p]).sum() for t, p in pairs)
    union += sum(m.sum() for t, m in enumerate(trues) if t not in {t for t, _ in pairs})
    union += sum(m.sum() for p, m in enumerate(found) if p not in {p for _, p in pairs})
    return shared / union
