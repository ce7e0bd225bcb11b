"""Measure how far drawn slides stand from real ones: train on drawn slides alone, score real tiles.

    python benchmarks/measure_gap.py data/hubmap_tiles build/gap --steps 600

Draws ``--slides`` slides (`--recipes random` is domain randomisation, `donor` what the lessons
use), trains one network on them, chooses its threshold on drawn slides that it was not trained on,
and scores every real tile: Dice, and F1 of objects (one to one, IoU 0.5). No real pixel is used
before the scores. Slides and checkpoint stay in the folder, so that a second run scores only.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from compare_networks import object_f1

from renal_utils.catalogue import read_dataset
from renal_utils.checkpoints import load_checkpoint
from renal_utils.covering import cover_images
from renal_utils.geometry import Box
from renal_utils.losses import build_loss
from renal_utils.patching import cut_patches
from renal_utils.records import ImageRecord
from renal_utils.slide_writing import write_pyramid
from renal_utils.splits import split_by_donor
from renal_utils.synthetic import GROUPS, donor_recipe, draw_region, plan_slide, random_recipe
from renal_utils.trials import Budget, Splits, make_splits, run_trial
from renal_utils.validation import evaluate

FRACTIONS = {"train": 0.75, "val": 0.125, "test": 0.125}


def draw_slide(folder: Path, recipes: str, number: int, size_px: int) -> ImageRecord:
    """Draw slide ``number`` with its glomeruli unless it is there; return its record."""
    image, truth = folder / f"{number:03d}.tiff", folder / f"{number:03d}-truth.tiff"
    if not truth.exists():
        cv2.setNumThreads(1)
        rng = np.random.default_rng([2, number])
        size = {"size_px": (size_px, size_px)}
        if recipes == "random":
            recipe = random_recipe(rng, **size)
        else:
            recipe = donor_recipe(GROUPS[number % len(GROUPS)], rng, **size)
        drawn = draw_region(plan_slide(recipe, number), Box(0, 0, size_px, size_px))
        write_pyramid(image, drawn.rgb, size_px=recipe.size_px, mpp=recipe.mpp, quality=85)
        mask = (drawn.glomeruli > 0).astype(np.uint8)
        write_pyramid(truth, mask, size_px=recipe.size_px, mpp=recipe.mpp, kind="labels")
    return ImageRecord(
        image_id=f"{number:03d}",
        image_path=image,
        truth_kind="label_image",
        truth_path=truth,
        donor=f"{number:03d}",
    )


def drawn_splits(options: argparse.Namespace) -> Splits:
    """Draw the slides and return their patches, split by slide."""
    folder = (options.folder / f"{options.recipes}_{options.slide_px}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        jobs = [
            pool.submit(draw_slide, folder, options.recipes, number, options.slide_px)
            for number in range(options.slides)
        ]
        records = [job.result() for job in jobs]
    cut = {"patch_px": options.patch, "stride_px": options.patch // 2, "min_tissue": 0.3}
    manifest = cut_patches(records, downsample=options.downsample, **cut)
    return make_splits(split_by_donor(manifest, fractions=FRACTIONS), eval_patch_px=512)


def main() -> int:
    """Train on drawn slides, score the real tiles, print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", help="real tiles and their tiles.csv")
    parser.add_argument("folder", type=Path, help="for slides and checkpoints")
    parser.add_argument("--recipes", choices=["random", "donor"], default="random")
    parser.add_argument("--slides", type=int, default=24)
    parser.add_argument("--slide-px", type=int, default=4096)
    parser.add_argument("--model", default="unet_resnet34")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--downsample", type=float, default=4.0)
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--augmentation", default="stain")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    drawn = drawn_splits(options)
    ready = time.perf_counter()
    budget = Budget(
        steps=options.steps,
        validations=4,
        learning_rate=1e-3,
        augmentation=options.augmentation,
        jitter_px=options.patch // 2,
        seed=options.seed,
    )
    loss = build_loss("bce_dice", weight=0.5, positive_weight=1.0)
    name = f"{options.model}_{options.recipes}_{options.steps}_{options.seed}"
    trial = run_trial(
        options.model, drawn, loss=loss, budget=budget, folder=options.folder.resolve(), name=name
    )
    trained = time.perf_counter()
    tiles = cut_patches(
        read_dataset("tiles", options.tiles),
        patch_px=options.patch,
        stride_px=options.patch,
        downsample=options.downsample,
    )
    side = -(-1600 // int(options.downsample) // 32) * 32
    real = Splits(tiles, tiles, cover_images(tiles, patch_px=side))
    row = {"recipes": options.recipes, "steps": options.steps, "seed": options.seed}
    row |= {"draw_min": (ready - started) / 60, "train_min": (trained - ready) / 60}
    row |= {"drawn_dice": trial.row()["test_dice"], "threshold": trial.threshold}
    scores = evaluate(
        load_checkpoint(trial.path)[0],
        real.loader("test"),
        label_set=drawn.label_set,
        threshold=trial.threshold,
    )
    means = scores.loc["mean", ["dice", "precision", "recall"]].astype(float)
    row |= {f"real_{key}": value for key, value in means.items()}
    row |= {"real_object_f1": object_f1(trial, real)}
    print(pd.DataFrame([row]).round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
