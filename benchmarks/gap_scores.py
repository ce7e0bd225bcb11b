"""What networks say of glomeruli, and how good it is: scores and choices of `measure_gap`."""

from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
import torch

from renal_utils.covering import cover_images
from renal_utils.labels import IGNORE_ID, KIDNEY_TISSUES, get_label_set
from renal_utils.loading import PatchDataset, make_loader
from renal_utils.metrics.object_matching import pool_objects
from renal_utils.prediction import make_predictor
from renal_utils.views import average_views

THRESHOLDS = np.arange(0.02, 0.91, 0.04)
NEARLY = 0.01
LEAST_PX = (0, 20, 40, 80, 120, 160, 240, 340, 480, 680)


@dataclass(frozen=True)
class Answers:
    """What a network said of images, and the truth: 0, 1, 255 for unknown."""

    probabilities: list[np.ndarray]
    truths: list[np.ndarray]

    def masks(self, threshold: float, least: int) -> list[np.ndarray]:
        """Return where it sees glomeruli, without objects of fewer than ``least`` pixels."""
        return [
            _drop_small((p > threshold) & (t != IGNORE_ID), least)
            for p, t in zip(self.probabilities, self.truths, strict=True)
        ]

    def scores(self, threshold: float, least: int) -> dict[str, float]:
        """Return Dice, precision and recall of all pixels, F1 and counts of all objects."""
        masks, truths = self.masks(threshold, least), [truth == 1 for truth in self.truths]
        tp = fp = fn = 0
        for mask, true in zip(masks, truths, strict=True):
            tp, fp = tp + (mask & true).sum(), fp + (mask & ~true).sum()
            fn += (~mask & true).sum()
        objects = pool_objects(zip(truths, masks, strict=True))
        return {
            "dice": 2 * tp / max(1, 2 * tp + fp + fn),
            "precision": tp / max(1, tp + fp),
            "recall": tp / max(1, tp + fn),
            "object_f1": 0.0 if np.isnan(objects.f1) else objects.f1,
            "objects": objects.tp + objects.fn,
            "found": objects.tp,
            "invented": objects.fp,
        }


def _drop_small(mask: np.ndarray, least: int) -> np.ndarray:
    _, ids, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return keep[ids]


def answer(
    models: list[torch.nn.Module], rows: pd.DataFrame, side: int, *, augmentation: str = "none"
) -> Answers:
    """Ask networks about squares that cover the images of a manifest once; return their mean.

    Each looks in eight views. A network of all tissues is asked for glomeruli that are no scars.
    """
    predict = average_views([make_predictor(model) for model in models], flips=8)
    squares = PatchDataset(cover_images(rows, patch_px=side), augmentation=augmentation)
    wanted = get_label_set(rows.iloc[0]["label_set"]).id_of("glomerulus")
    probabilities, truths = [], []
    for batch in make_loader(squares, batch_size=1, shuffle=False):
        found, ids = predict(batch["image"])[0], batch["target"][0].numpy()
        channel = 0 if len(found) == 1 else KIDNEY_TISSUES.id_of("glomerulus")
        probabilities.append(found[channel].float().cpu().numpy())
        truths.append(np.where(ids == IGNORE_ID, IGNORE_ID, ids == wanted).astype(np.uint8))
    return Answers(probabilities, truths)


def adapt(model: torch.nn.Module, rows: pd.DataFrame) -> torch.nn.Module:
    """Take the statistics of all batch norms anew from images, unlabelled (Li et al. 2017)."""
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # the mean of all batches
            part.train()
    with torch.no_grad():
        for batch in make_loader(PatchDataset(rows), batch_size=16, shuffle=False):
            model(batch["image"])
    return model.eval()


def choose(answers: Answers) -> tuple[float, int]:
    """Return the threshold of the best Dice, then a least object of nearly the best object F1.

    Many least objects do equally well on drawn slides: of those within ``NEARLY`` of the best the
    one in the middle is taken.
    """
    threshold = max(THRESHOLDS, key=lambda t: answers.scores(t, 0)["dice"])
    f1 = np.array([answers.scores(threshold, px)["object_f1"] for px in LEAST_PX])
    good = np.flatnonzero(f1 >= f1.max() - NEARLY)
    return float(threshold), LEAST_PX[good[len(good) // 2]]
