"""Instance metrics: Dice, AJI, AJI+, and DQ, SQ, PQ, from one sparse contingency table.

``count_instances`` compares two instance maps and keeps only sums; sums of images are added, and
divided once. So a score is either *per image* (then averaged) or *pooled*: say which.

Empty images: where neither map has an object every score is NaN and means skip the image; where
only one has, every score is 0. Ids may have gaps and need no background pixel.

HARU-Net's own script reports AJI+ under the name AJI; the two are different numbers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int64, Shaped
from scipy.sparse import coo_array, eye_array, hstack
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

from renal_utils.instance_maps import check_instances, count_pairs

MATCH_ABOVE = 0.5  # IoU that a pair must exceed, strictly, to count as found in DQ and PQ
BATCH_PAIRS = 4096  # overlapping pairs that are assigned at once


@dataclass(frozen=True)
class InstanceScores:
    """Scores of one image or of a pool; NaN where there is nothing to score.

    Attributes:
        dice: Of the foreground, 2 |T & P| / (|T| + |P|), objects not told apart.
        aji: Aggregated Jaccard index (Kumar et al. 2017; HARU-Net eq. 9).
        aji_plus: The same with one-to-one pairs.
        dq: Detection quality TP / (TP + FP/2 + FN/2), the F1 of objects at an IoU above 0.5.
        sq: Segmentation quality, mean IoU of the found pairs; 0 if none was found.
        pq: Panoptic quality DQ x SQ (HARU-Net eq. 8).
    """

    dice: float
    aji: float
    aji_plus: float
    dq: float
    sq: float
    pq: float


@dataclass(frozen=True)
class InstanceCounts:
    """The sums that all scores are made of; add those of several images to pool them.

    Attributes:
        true_px: Foreground pixels of the truth.
        predicted_px: Foreground pixels of the prediction.
        shared_px: Pixels that are foreground in both.
        aji_shared_px: Numerator of AJI.
        aji_union_px: Denominator of AJI.
        aji_plus_shared_px: Numerator of AJI+.
        aji_plus_union_px: Denominator of AJI+.
        tp: Pairs with an IoU above 0.5.
        fp: Predicted objects in no such pair.
        fn: True objects in no such pair.
        iou_sum: Sum of the IoU of those pairs.
    """

    true_px: int = 0
    predicted_px: int = 0
    shared_px: int = 0
    aji_shared_px: int = 0
    aji_union_px: int = 0
    aji_plus_shared_px: int = 0
    aji_plus_union_px: int = 0
    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou_sum: float = 0.0

    def __add__(self, other: "InstanceCounts") -> "InstanceCounts":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return InstanceCounts(**sums)

    def scores(self) -> InstanceScores:
        """Return the scores that these sums give."""
        found = _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)
        iou = self.iou_sum / self.tp if self.tp else 0.0 * found  # NaN stays NaN
        return InstanceScores(
            dice=_ratio(2 * self.shared_px, self.true_px + self.predicted_px),
            aji=_ratio(self.aji_shared_px, self.aji_union_px),
            aji_plus=_ratio(self.aji_plus_shared_px, self.aji_plus_union_px),
            dq=found,
            sq=iou,
            pq=found * iou,
        )


def count_instances(
    truth: Shaped[np.ndarray, "..."], predicted: Shaped[np.ndarray, "..."]
) -> InstanceCounts:
    """Compare the objects of two instance maps.

    AJI: each true object takes the predicted one of the highest IoU (of equals the lowest id), and
    a predicted object may serve several. Their overlaps and unions are summed, each time; true
    objects that nothing overlaps and predicted ones that serve nobody add their area to the union.
    AJI+: pairs are one to one, with the highest total IoU (Hungarian method); the rest as in AJI.
    Both maps' ids are arbitrary.

    Args:
        truth: True objects, H x W, any integer type; 0 is background.
        predicted: Predicted objects on the same pixels.

    Raises:
        ValueError: If the maps differ in size, are of float or bool type or hold negative ids.
    """
    true_ids = check_instances(truth, where="truth")
    found_ids = check_instances(predicted, where="prediction")
    if true_ids.shape != found_ids.shape:
        raise ValueError(f"truth has the shape {truth.shape}, the prediction {predicted.shape}")
    table = _Overlaps.of(true_ids, found_ids)
    matched = table.iou > MATCH_ABOVE
    tp = int(matched.sum())
    aji_shared, aji_union = table.aggregate(table.best_of_each_true())
    plus_shared, plus_union = table.aggregate(table.one_to_one())
    return InstanceCounts(
        true_px=int(table.true_px.sum()),
        predicted_px=int(table.predicted_px.sum()),
        shared_px=int(table.shared.sum()),
        aji_shared_px=aji_shared,
        aji_union_px=aji_union,
        aji_plus_shared_px=plus_shared,
        aji_plus_union_px=plus_union,
        tp=tp,
        fp=len(table.predicted_px) - tp,
        fn=len(table.true_px) - tp,
        iou_sum=float(table.iou[matched].sum()),
    )


def score_instances(
    truth: Shaped[np.ndarray, "..."], predicted: Shaped[np.ndarray, "..."]
) -> InstanceScores:
    """Return the scores of one image; see ``count_instances``."""
    return count_instances(truth, predicted).scores()


def score_table(counts: Mapping[str, InstanceCounts]) -> pd.DataFrame:
    """Return one row of scores for each image, then their mean and the pool.

    The row ``mean of images`` skips images where nothing is to be scored (NaN); ``pooled`` divides
    the sums of all images, so large images weigh more.

    Args:
        counts: By the image's name.

    Raises:
        ValueError: If there is no image.
    """
    if not counts:
        raise ValueError("no image was counted, so there is nothing to score")
    rows = {name: asdict(one.scores()) for name, one in counts.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    pooled = sum(counts.values(), InstanceCounts())
    table.loc["mean of images"] = table.mean(skipna=True)
    table.loc["pooled"] = asdict(pooled.scores())
    return table


@dataclass(frozen=True)
class _Overlaps:
    """Areas of all objects, and each pair that shares pixels; objects by their rank, from 0."""

    true_px: Int64[np.ndarray, " T"]
    predicted_px: Int64[np.ndarray, " P"]
    true: Int64[np.ndarray, " N"]
    predicted: Int64[np.ndarray, " N"]
    shared: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, true_ids: np.ndarray, found_ids: np.ndarray) -> "_Overlaps":
        true, predicted, pixels = count_pairs(true_ids, found_ids)
        (true_rank, true_px), (rank, predicted_px) = (_areas(i, pixels) for i in (true, predicted))
        both = (true > 0) & (predicted > 0)
        return cls(true_px, predicted_px, true_rank[both], rank[both], pixels[both])

    @property
    def iou(self) -> Float[np.ndarray, " N"]:
        return self.shared / self._unions

    @property
    def _unions(self) -> Int64[np.ndarray, " N"]:
        return self.true_px[self.true] + self.predicted_px[self.predicted] - self.shared

    def best_of_each_true(self) -> Bool[np.ndarray, " N"]:
        """Mark, for each true object, its pair of the highest IoU."""
        order = np.lexsort((self.predicted, -self.iou, self.true))
        first = np.diff(self.true[order], prepend=-1) > 0
        chosen = np.zeros(len(order), bool)
        chosen[order[first]] = True
        return chosen

    def one_to_one(self) -> Bool[np.ndarray, " N"]:
        """Mark the pairs of the assignment with the highest total IoU.

        Objects that no chain of overlaps links are independent, so the pairs are solved in batches
        of whole chains: time stays linear in the number of objects.
        """
        chosen = np.zeros(len(self.shared), bool)
        if not len(chosen):
            return chosen
        size = len(self.true_px), len(self.predicted_px)
        ends = self.true, self.predicted + size[0]
        links = coo_array((np.ones(len(chosen), bool), ends), shape=(sum(size),) * 2)
        chain = connected_components(links, directed=False)[1][self.true]
        pairs_of = np.bincount(chain)
        batch = ((np.cumsum(pairs_of) - pairs_of) // BATCH_PAIRS)[chain]
        order = np.argsort(batch, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(batch[order])) + 1):
            chosen[part] = _assign(self.true[part], self.predicted[part], self.iou[part])
        return chosen

    def aggregate(self, chosen: Bool[np.ndarray, " N"]) -> tuple[int, int]:
        """Return the sums of overlaps and unions of the chosen pairs, all the rest in the union."""
        alone = np.ones(len(self.true_px), bool)
        alone[self.true[chosen]] = False
        unused = np.ones(len(self.predicted_px), bool)
        unused[self.predicted[chosen]] = False
        rest = self.true_px[alone].sum() + self.predicted_px[unused].sum()
        return int(self.shared[chosen].sum()), int(self._unions[chosen].sum() + rest)


def _assign(
    true: Int64[np.ndarray, " N"], predicted: Int64[np.ndarray, " N"], iou: Float[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Mark the pairs that are one to one and of the highest total IoU.

    Each true object may also take a stand-in of IoU 0 of its own, so that all are assigned; 1 is
    added to every weight, since a sparse matrix keeps no zeros.
    """
    trues, row = np.unique(true, return_inverse=True)
    found, column = np.unique(predicted, return_inverse=True)
    pairs = coo_array((iou + 1, (row, column)), shape=(len(trues), len(found)))
    weights = hstack([pairs, eye_array(len(trues))], format="csr")
    rows, columns = min_weight_full_bipartite_matching(weights, maximize=True)
    partner = np.empty(len(trues), np.int64)
    partner[rows] = columns
    return partner[row] == column


def _areas(
    ids: Int64[np.ndarray, " N"], pixels: Int64[np.ndarray, " N"]
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " M"]]:
    """Return each id's rank among the objects (0's is meaningless), and the objects' areas."""
    found, place = np.unique(ids, return_inverse=True)
    areas = np.bincount(place, weights=pixels, minlength=len(found)).astype(np.int64)
    background = int(len(found) > 0 and found[0] == 0)
    return place.astype(np.int64) - background, areas[background:]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
