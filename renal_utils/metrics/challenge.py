"""Scores of the challenges: KPIs 2024 (Tang et al., arXiv 2502.07288) and HuBMAP 2021.

Each is a mean over patches or slides of a score of one patch or slide; none pools pixels. Dice is
2 |P and T| / (|P| + |T|), and 1 where both are empty. Object scores depend on how objects are
paired: every table names its mode, see ``object_matching``.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from renal_utils.metrics.object_matching import MODES, Mask, ObjectScores, match_objects

__all__ = [
    "MODES",
    "MaskPair",
    "ObjectScores",
    "mask_dice",
    "match_objects",
    "mean_dice",
    "rank_teams",
    "score_slides",
]


class MaskPair(NamedTuple):
    """The truth and the prediction of one slide, on the same pixels.

    Attributes:
        name: Of the slide.
        truth: Where the class is.
        predicted: Where it was found, after the threshold (the challenge's is 0.5).
    """

    name: str
    truth: Mask
    predicted: Mask


def mask_dice(truth: Mask, predicted: Mask) -> float:
    """Return the Dice of two masks; 1 where both are empty.

    Raises:
        ValueError: If the masks differ in size.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth has the shape {truth.shape}, the prediction {predicted.shape}")
    total = int(truth.sum()) + int(predicted.sum())
    return 2 * int((truth & predicted).sum()) / total if total else 1.0


def mean_dice(pairs: Iterable[tuple[Mask, Mask]], *, skip_empty: bool = False) -> float:
    """Return the mean of the Dice of each image: KPIs Task 1 (patches), HuBMAP (slides).

    Args:
        pairs: Truth and prediction of each patch or slide, read one by one.
        skip_empty: Leave out images whose truth is empty, as the script of KPIs Task 1 does by
            its toolkit's default. HuBMAP scores all.

    Raises:
        ValueError: If no image is left.
    """
    scores = [mask_dice(t, p) for t, p in pairs if t.any() or not skip_empty]
    if not scores:
        raise ValueError("no image to score" + ("; all truths are empty" if skip_empty else ""))
    return float(np.mean(scores))


def score_slides(
    pairs: Iterable[MaskPair], *, mode: str = "kpis_fixed", min_area_px: int = 0
) -> pd.DataFrame:
    """Return the scores of KPIs Task 2, of each slide and their means.

    The challenge scores at 20x (0.5 microns a pixel): bring masks to that scale. Where nothing is
    to be found and nothing was, F1, precision and recall are 0, as in the challenge's script.

    Args:
        pairs: One a slide, read one by one.
        mode: How objects are paired, a key of ``object_matching.MODES``.
        min_area_px: Objects of fewer pixels are left out of the counts, not of the Dice. The
            challenge's example removes those below 20,000 from its own predictions.

    Returns:
        Indexed by name, last row ``mean``: ``dice``, ``f1``, ``precision``, ``recall``, ``found``,
        ``invented``, ``missed``, ``mode``.

    Raises:
        ValueError: If there is no slide, the mode is unknown, or the masks of one differ in size.
    """
    rows = {}
    for pair in pairs:
        objects = match_objects(pair.truth, pair.predicted, mode=mode, min_area_px=min_area_px)
        rows[pair.name] = {
            "dice": mask_dice(pair.truth, pair.predicted),
            "f1": objects.f1,
            "precision": objects.precision,
            "recall": objects.recall,
            "found": objects.tp,
            "invented": objects.fp,
            "missed": objects.fn,
        }
    if not rows:
        raise ValueError("no slide to score")
    table = pd.DataFrame(rows).T.fillna(0.0)
    table.loc["mean"] = table.mean()
    return table.assign(mode=mode)


def rank_teams(scores: pd.DataFrame) -> pd.DataFrame:
    """Rank by the challenge's rule: the rank of the sum of the ranks by Dice and by F1.

    Args:
        scores: One row a team or network, with columns ``dice`` and ``f1``.

    Returns:
        The same rows, best first, with ``dice_rank``, ``f1_rank`` and ``rank`` (1 is best; equals
        share the better rank).

    Raises:
        ValueError: If a column is missing or a score is NaN.
    """
    if missing := {"dice", "f1"} - set(scores.columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}; expected dice and f1")
    if scores[["dice", "f1"]].isna().any(axis=None):
        raise ValueError("a score is NaN; teams without a score cannot be ranked")
    ranks = scores[["dice", "f1"]].rank(ascending=False, method="min").astype(int)
    ranked = scores.assign(dice_rank=ranks["dice"], f1_rank=ranks["f1"])
    ranked["rank"] = ranks.sum(axis=1).rank(method="min").astype(int)
    return ranked.sort_values("rank", kind="stable")
