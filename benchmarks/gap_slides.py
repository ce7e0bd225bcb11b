"""Drawn slides and real tiles as `measure_gap` trains on them and scores them."""

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from compare_networks import COLUMN_L0, TEST, VAL

from renal_utils.catalogue import read_dataset
from renal_utils.geometry import Box
from renal_utils.labels import GLOMERULI, KIDNEY_TISSUES
from renal_utils.patching import cut_patches
from renal_utils.records import ImageRecord
from renal_utils.slide_writing import write_pyramid
from renal_utils.splits import split_by_column, split_by_donor
from renal_utils.synthetic import (
    GROUPS,
    Recipe,
    donor_recipe,
    draw_region,
    plan_slide,
    random_recipe,
)

LABEL_SETS = {"tissues": KIDNEY_TISSUES, "glomeruli": GLOMERULI}
RECIPES = ("random", "plain", "donor")
FRACTIONS = {"train": 0.8, "val": 0.2}
CHOOSING_SEED = 1000


def training_patches(options: argparse.Namespace) -> pd.DataFrame:
    """Return patches of the slides to learn from, split by slide into "train" and "val"."""
    patches = _drawn_patches(options, options.recipes, options.slides, options.seed)
    return split_by_donor(patches, fractions=FRACTIONS)


def choosing_patches(options: argparse.Namespace) -> pd.DataFrame:
    """Return patches of the slides to choose on, the same for networks of all seeds."""
    return _drawn_patches(options, options.choose_recipes, options.choose_slides, CHOOSING_SEED)


def _drawn_patches(options: argparse.Namespace, kind: str, count: int, seed: int) -> pd.DataFrame:
    """Draw slides unless they are there, and return their patches."""
    parts = ("slides", kind, options.classes, options.slide_px, options.mpp, seed)
    folder = (options.folder / "_".join(map(str, parts))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    size, numbers = {"size_px": (options.slide_px,) * 2, "mpp": options.mpp}, range(count)
    recipes = [make_recipe(kind, number, seed, size) for number in numbers]
    jobs = ([folder] * len(recipes), recipes, numbers, [options.classes] * len(recipes))
    if options.workers > 1:
        with ProcessPoolExecutor(options.workers) as pool:
            records = list(pool.map(draw_slide, *jobs))
    else:
        records = list(map(draw_slide, *jobs))
    cut = {"patch_px": options.patch, "stride_px": options.patch // 2, "min_tissue": 0.3}
    return cut_patches(records, downsample=options.drawn_downsample, **cut)


def make_recipe(kind: str, number: int, seed: int, size: dict[str, Any]) -> Recipe:
    """Return the recipe of slide ``number``, of a kind of ``RECIPES``."""
    rng = np.random.default_rng([seed + 2, number])
    if kind == "donor":
        return donor_recipe(GROUPS[number % len(GROUPS)], rng, **size)
    return random_recipe(rng, odd=kind == "random", **size)


def draw_slide(folder: Path, recipe: Recipe, number: int, classes: str) -> ImageRecord:
    """Draw a slide with its truth, all tissues or glomeruli that are no scars, unless it is there.

    Args:
        folder: Where both files are written.
        recipe: What to draw.
        number: Of the slide: its name and its seed.
        classes: A key of ``LABEL_SETS``.
    """
    image, truth = folder / f"{number:03d}.tiff", folder / f"{number:03d}-truth.tiff"
    labels = LABEL_SETS[classes]
    if not truth.exists():
        cv2.setNumThreads(1)
        drawn = draw_region(plan_slide(recipe, number), Box(0, 0, *recipe.size_px))
        write_pyramid(image, drawn.rgb, size_px=recipe.size_px, mpp=recipe.mpp, quality=85)
        mask = drawn.tissues
        if labels is GLOMERULI:
            mask = (mask == KIDNEY_TISSUES.id_of("glomerulus")).astype(np.uint8)
        write_pyramid(truth, mask, size_px=recipe.size_px, mpp=recipe.mpp, kind="labels")
    return ImageRecord(
        image_id=f"{number:03d}",
        image_path=image,
        truth_kind="label_image",
        truth_path=truth,
        label_set=labels.name,
        donor=f"{number:03d}",
    )


def real_patches(options: argparse.Namespace) -> pd.DataFrame:
    """Return the patches of the real tiles, split by column."""
    cut = {"patch_px": options.patch, "stride_px": options.patch // 2}
    records = read_dataset("tiles", options.tiles)
    manifest = cut_patches(records, downsample=options.downsample, **cut)
    columns = {"val_columns": VAL, "test_columns": TEST}
    return split_by_column(manifest, column_l0=COLUMN_L0, **columns)
