"""Measure how far drawn slides stand from real ones: learn from drawn ones alone, score real ones.

    python benchmarks/measure_gap.py data/hubmap_tiles build/gap --minutes 12 --back

Draws ``--slides`` slides and trains one network on them for about ``--minutes``. ``--recipes``:
``random`` is domain randomisation, ``plain`` the same without odd shapes, ``donor`` what the
lessons use; ``--hold`` leaves fields of the recipe at their default. Threshold and least object are
chosen on drawn slides that it was not trained on, augmented as ``--choose-on`` says: on slides like
those of the training a network is surer than on real ones, and the threshold too high. Then every
real tile is scored: Dice, and F1 of objects (one to one, IoU 0.5). No real pixel is used before.
``--adapt`` adds scores of the network with the statistics of the real tiles in its batch norms.
``--together`` averages networks of earlier runs instead of training one.
``--back`` goes the other way: it trains on five real tiles of the training columns, from the drawn
network and from nothing, and scores the columns kept for test.

Writes ``gap.csv``, a row a score. Slides, checkpoints and rows stay in the folder: what is there is
not done again, and a training that was stopped goes on after its last validation.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from compare_networks import COLUMN_L0, TEST, VAL

from renal_utils.catalogue import read_dataset
from renal_utils.checkpoints import CheckpointInfo, load_checkpoint
from renal_utils.covering import cover_images
from renal_utils.geometry import Box
from renal_utils.labels import GLOMERULI
from renal_utils.loading import PatchDataset, make_loader
from renal_utils.losses import build_loss
from renal_utils.metrics.object_matching import pool_objects
from renal_utils.models.build import build_model
from renal_utils.patching import cut_patches
from renal_utils.prediction import make_predictor
from renal_utils.records import ImageRecord
from renal_utils.runtime import atomic_path, pick_precision, read_json, seed_everything, write_json
from renal_utils.slide_writing import write_pyramid
from renal_utils.slides import open_slide
from renal_utils.splits import split_by_column, split_by_donor
from renal_utils.stain import standardise_stain
from renal_utils.synthetic import (
    GROUPS,
    Recipe,
    donor_recipe,
    draw_region,
    plan_slide,
    random_recipe,
)
from renal_utils.training import fit
from renal_utils.training_plan import TrainingPlan
from renal_utils.validation import forward_logits, logits_of
from renal_utils.views import average_views

SCARS = {"glomeruli": 1, "background": 0, "unknown": 255}
FRACTIONS = {"train": 0.8, "val": 0.2}
BATCH, VALIDATIONS, CALIBRATION_STEPS = 8, 4, 6
THRESHOLDS = np.arange(0.1, 0.91, 0.05)
LEAST_PX = (0, 20, 40, 80, 120, 160, 240, 340, 480, 680)


# ---------------------------------------------------------------- drawn slides


def make_recipe(options: argparse.Namespace, number: int) -> Recipe:
    """Return the recipe of slide ``number``."""
    rng = np.random.default_rng([options.seed + 2, number])
    fixed: dict[str, Any] = {"size_px": (options.slide_px,) * 2, "mpp": options.mpp}
    if options.recipes == "donor":
        return donor_recipe(GROUPS[number % len(GROUPS)], rng, **fixed)
    defaults = {f.name: f.default for f in fields(Recipe)}
    held = {name: defaults[name] for name in options.hold}
    return random_recipe(rng, odd=options.recipes == "random", **fixed, **held)


def draw_slide(folder: Path, recipe: Recipe, number: int, scars: int = 1) -> ImageRecord:
    """Draw a slide with its glomeruli, ``scars`` where sclerosed, unless it is there."""
    image, truth = folder / f"{number:03d}.tiff", folder / f"{number:03d}-truth.tiff"
    if not truth.exists():
        cv2.setNumThreads(1)
        plan = plan_slide(recipe, number)
        drawn = draw_region(plan, Box(0, 0, *recipe.size_px))
        write_pyramid(image, drawn.rgb, size_px=recipe.size_px, mpp=recipe.mpp, quality=85)
        values = np.array([0, *(scars if g.sclerosed else 1 for g in plan.glomeruli)], np.uint8)
        mask = values[drawn.glomeruli]
        write_pyramid(truth, mask, size_px=recipe.size_px, mpp=recipe.mpp, kind="labels")
    return ImageRecord(
        image_id=f"{number:03d}",
        image_path=image,
        truth_kind="label_image",
        truth_path=truth,
        donor=f"{number:03d}",
    )


def standardise(records: list[ImageRecord], folder: Path, downsample: float) -> list[ImageRecord]:
    """Write images with their stain standardised unless they are there; return their records."""
    folder = folder.with_name(f"{folder.name}_standardised")
    folder.mkdir(parents=True, exist_ok=True)
    done = [replace(r, image_path=folder / f"{r.image_id}.tiff") for r in records]
    for before, after in zip(records, done, strict=True):
        if after.image_path.exists():
            continue
        with open_slide(before.image_path, mpp=before.mpp) as slide:
            view = slide.at_downsample(downsample)
            rgb = slide.at_downsample(1).read((0, 0), slide.size_l0)
            rgb = standardise_stain(rgb, like=view.read((0, 0), view.size_px))
            known = {"size_px": slide.size_l0, "mpp": slide.mpp, "quality": 95}
            write_pyramid(after.image_path, rgb, **known)
    return done


def drawn_patches(options: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Draw the slides and return their patches, split by slide."""
    folder.mkdir(parents=True, exist_ok=True)
    recipes = [make_recipe(options, number) for number in range(options.slides)]
    numbers, scars = range(options.slides), SCARS[options.scars]
    jobs = [
        (folder, recipe, number, scars) for recipe, number in zip(recipes, numbers, strict=True)
    ]
    if options.workers > 1:
        with ProcessPoolExecutor(options.workers) as pool:
            records = list(pool.map(draw_slide, *zip(*jobs, strict=True)))
    else:
        records = [draw_slide(*job) for job in jobs]
    if options.standardise:
        records = standardise(records, folder, options.drawn_downsample)
    cut = {"patch_px": options.patch, "stride_px": options.patch // 2, "min_tissue": 0.3}
    manifest = cut_patches(records, downsample=options.drawn_downsample, **cut)
    return split_by_donor(manifest, fractions=FRACTIONS)


# ---------------------------------------------------------------- training


def train(
    model: torch.nn.Module,
    train_rows: pd.DataFrame,
    val_rows: pd.DataFrame,
    options: argparse.Namespace,
    *,
    folder: Path,
    steps: int,
    peak: float,
) -> Path:
    """Train a network, or go on with it; return the path of its best checkpoint."""
    row = train_rows.iloc[0]
    info = CheckpointInfo(
        options.model,
        {"norm": options.norm},
        num_classes=1,
        label_set="glomeruli",
        downsample=float(row["downsample"]),
        mpp=None if np.isnan(row["mpp"]) else float(row["mpp"] * row["downsample"]),
        patch_px=options.patch,
    )
    plan = TrainingPlan(
        epochs=VALIDATIONS,
        learning_rate=peak,
        weight_decay=1e-2,
        monitor="val_best_dice",
        seed=options.seed,
    )
    loss = build_loss("bce_dice", weight=0.5, positive_weight=1.0)
    batches = training_batches(train_rows, options, steps // VALIDATIONS)
    val = make_loader(PatchDataset(val_rows), batch_size=1, shuffle=False)
    known = {"label_set": GLOMERULI, "info": info}
    done = fit(
        model, loss, batches, val, plan=plan, folder=folder, resume=True, progress=False, **known
    )
    return done.best_path


def training_batches(rows: pd.DataFrame, options: argparse.Namespace, steps: int) -> Any:
    """Return a loader of augmented crops, ``steps`` batches an epoch."""
    data = PatchDataset(
        rows,
        augmentation=options.augmentation,
        seed=options.seed,
        jitter_px=options.patch // 2,
        cache="memory",
    )
    return make_loader(
        data, batch_size=BATCH, shuffle=True, seed=options.seed, steps_per_epoch=steps
    )


def count_steps(options: argparse.Namespace, rows: pd.DataFrame, folder: Path) -> int:
    """Return how many steps fit into the minutes: measured once, then kept beside the training."""
    if options.steps:
        return options.steps
    kept = folder / "steps.json"
    if not kept.exists():
        model = build_model(options.model, num_classes=1, norm=options.norm).train()
        model = model.to(memory_format=torch.channels_last)
        loss = build_loss("bce_dice", weight=0.5, positive_weight=1.0)
        seconds = []
        precision = pick_precision("auto", torch.device("cpu"))
        for batch in training_batches(rows, options, CALIBRATION_STEPS):
            started = time.perf_counter()
            logits = logits_of(forward_logits(model, batch["image"], precision))
            loss(logits, batch["target"]).backward()
            seconds.append(time.perf_counter() - started)
        # a tenth for crops, optimiser and validation
        count = int(0.9 * options.minutes * 60 / np.median(seconds)) // VALIDATIONS * VALIDATIONS
        write_json(kept, {"steps": max(VALIDATIONS, count)})
    return int(read_json(kept)["steps"])


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Answers:
    """What a network said of images, and the truth: 0, 1, 255 for unknown."""

    probabilities: list[np.ndarray]
    truths: list[np.ndarray]

    def masks(self, threshold: float, least: int) -> list[np.ndarray]:
        """Return where it sees glomeruli, without objects of fewer than ``least`` pixels."""
        return [
            _drop_small((p > threshold) & (t != 255), least)
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

    Each looks in eight views.
    """
    predict = average_views([make_predictor(model) for model in models], flips=8)
    squares = PatchDataset(cover_images(rows, patch_px=side), augmentation=augmentation)
    probabilities, truths = [], []
    for batch in make_loader(squares, batch_size=1, shuffle=False):
        probabilities.append(predict(batch["image"])[0, 0].float().cpu().numpy())
        truths.append(batch["target"][0].numpy().astype(np.uint8))
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
    """Return the threshold of the best Dice, then the least object of the best object F1."""
    threshold = max(THRESHOLDS, key=lambda t: answers.scores(t, 0)["dice"])
    least = max(LEAST_PX, key=lambda px: answers.scores(threshold, px)["object_f1"])
    return float(threshold), int(least)


# ---------------------------------------------------------------- experiments


def real_patches(options: argparse.Namespace) -> pd.DataFrame:
    """Return the patches of the real tiles, split by column."""
    cut = {"patch_px": options.patch, "stride_px": options.patch // 2}
    records = read_dataset("tiles", options.tiles)
    if options.standardise:
        folder = (options.folder / "tiles").resolve()
        records = standardise(records, folder, options.downsample)
    manifest = cut_patches(records, downsample=options.downsample, **cut)
    columns = {"val_columns": VAL, "test_columns": TEST}
    return split_by_column(manifest, column_l0=COLUMN_L0, **columns)


def slides_folder(options: argparse.Namespace) -> Path:
    """Return where the drawn slides of these options are."""
    held = "-".join(["", *sorted(options.hold)]) if options.hold else ""
    held += "" if options.scars == "glomeruli" else f"_{options.scars}"
    slides = f"slides_{options.recipes}{held}_{options.slide_px}_{options.mpp}_{options.seed}"
    return (options.folder / slides).resolve()


def measure_drawn(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Train on drawn slides alone; return the rows of all real tiles and of the test columns."""
    started = time.perf_counter()
    drawn = drawn_patches(options, slides_folder(options))
    ready = time.perf_counter()
    rows = {split: drawn[drawn["split"] == split] for split in ("train", "val")}
    val_squares = cover_images(rows["val"], patch_px=options.square)
    folder = (options.folder / name).resolve()
    folder.mkdir(exist_ok=True)
    steps = count_steps(options, rows["train"], folder)
    seed_everything(options.seed)
    model = build_model(options.model, num_classes=1, norm=options.norm)
    path = train(
        model, rows["train"], val_squares, options, folder=folder, steps=steps, peak=options.peak
    )
    trained = time.perf_counter()
    shift = {"augmentation": options.choose_on}
    model = load_checkpoint(path)[0]
    on_drawn = answer([model], rows["val"], options.square, **shift)
    threshold, least = choose(on_drawn)
    real = real_patches(options)
    row = {"name": name, "steps": steps, "threshold": threshold, "least_px": least}
    row |= {"draw_min": (ready - started) / 60, "train_min": (trained - ready) / 60}
    row["drawn_dice"] = on_drawn.scores(threshold, least)["dice"]
    scored = score_parts([model], real, options, (threshold, least))
    if options.adapt:
        adapted = score_parts([adapt(model, real)], real, options, (threshold, least))
        scored += [part | {"scored": f"{part['scored']}, adapted"} for part in adapted]
    return [row | part for part in scored]


def measure_together(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Score the mean of networks that were trained before, chosen for on slides none has seen."""
    paths = [options.folder / member / "best.safetensors" for member in options.together]
    models = [load_checkpoint(path)[0] for path in paths]
    drawn = drawn_patches(options, slides_folder(options))
    val, shift = drawn[drawn["split"] == "val"], {"augmentation": options.choose_on}
    on_drawn = answer(models, val, options.square, **shift)
    chosen = choose(on_drawn)
    row = {"name": name, "threshold": chosen[0], "least_px": chosen[1]}
    row["drawn_dice"] = on_drawn.scores(*chosen)["dice"]
    return [row | part for part in score_parts(models, real_patches(options), options, chosen)]


def score_parts(
    models: list[torch.nn.Module],
    real: pd.DataFrame,
    options: argparse.Namespace,
    chosen: tuple[float, int],
) -> list[dict[str, Any]]:
    """Return the scores of all real tiles and of the test columns."""
    parts = {"all real tiles": real, "test columns": real[real["split"] == "test"]}
    return [
        {"scored": part} | answer(models, some, options.square).scores(*chosen)
        for part, some in parts.items()
    ]


def measure_back(options: argparse.Namespace, name: str, drawn: str) -> list[dict[str, Any]]:
    """Train on a few real tiles, from the drawn network and from nothing; return two rows."""
    real = real_patches(options)
    parts = {split: real[real["split"] == split] for split in ("train", "val", "test")}
    tiles = parts["train"].groupby("image_id")["positive_fraction"].max()
    whole = sorted(tiles[tiles > 0].index)
    chosen = np.random.default_rng(options.seed).choice(whole, options.tiles_back, replace=False)
    few = parts["train"][parts["train"]["image_id"].isin(chosen)]
    val_squares = cover_images(parts["val"], patch_px=options.square)
    rows = []
    for start in ("drawn", "nothing"):
        folder = (options.folder / f"{name}_from_{start}").resolve()
        seed_everything(options.seed)
        model = build_model(options.model, num_classes=1, norm=options.norm)
        if start == "drawn":
            model = load_checkpoint(next((options.folder / drawn).glob("best.safetensors")))[0]
        begun = time.perf_counter()
        settings = {"folder": folder, "steps": options.steps_back}
        peak = options.peak / 2 if start == "drawn" else options.peak
        path = train(model, few, val_squares, options, peak=peak, **settings)
        minutes = (time.perf_counter() - begun) / 60
        model = load_checkpoint(path)[0]
        threshold, least = choose(answer([model], parts["val"], options.square))
        row = {"name": f"{name}_from_{start}", "steps": options.steps_back, "train_min": minutes}
        row |= {"threshold": threshold, "least_px": least, "scored": "test columns"}
        rows.append(row | answer([model], parts["test"], options.square).scores(threshold, least))
    return rows


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", help="real tiles and their tiles.csv")
    parser.add_argument("folder", type=Path, help="for slides, checkpoints and gap.csv")
    parser.add_argument("--recipes", choices=["random", "plain", "donor"], default="random")
    parser.add_argument("--hold", nargs="*", default=[], help="fields left at their default")
    parser.add_argument("--slides", type=int, default=60)
    parser.add_argument("--slide-px", type=int, default=1920)
    parser.add_argument("--mpp", type=float, default=1.0, help="at which slides are drawn")
    parser.add_argument("--drawn-downsample", type=float, default=3.4)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--model", default="unet_resnet34")
    parser.add_argument("--norm", choices=["batch", "group"], default="batch", help="of the model")
    parser.add_argument("--minutes", type=float, default=12.0, help="of training")
    parser.add_argument("--steps", type=int, default=0, help="instead of minutes")
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--downsample", type=float, default=5.0, help="of the real tiles")
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--square", type=int, default=320, help="side of what is scored at once")
    parser.add_argument("--augmentation", default="strong")
    parser.add_argument("--standardise", action="store_true", help="the stain of every image")
    parser.add_argument("--choose-on", default="strong", help="augmentation where one chooses")
    parser.add_argument("--scars", choices=SCARS, default="background", help="what they are")
    parser.add_argument("--adapt", action="store_true", help="score with adapted batch norms too")
    parser.add_argument("--together", nargs="*", help="names of trained networks to average")
    parser.add_argument("--back", action="store_true", help="five real tiles, with and without")
    parser.add_argument("--tiles-back", type=int, default=5)
    parser.add_argument("--steps-back", type=int, default=200)
    parser.add_argument("--name", default="", help="of the rows; made of the options otherwise")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Do what is not in the table yet and print the table."""
    options = read_options()
    options.folder.mkdir(parents=True, exist_ok=True)
    table = options.folder / "gap.csv"
    held = f"_without_{'-'.join(sorted(options.hold))}" if options.hold else ""
    name = options.name or f"{options.model}_{options.recipes}{held}_{options.seed}"
    measure = measure_together if options.together else measure_drawn
    jobs = {name: lambda: measure(options, name)}
    if options.back:
        back = f"{name}_{options.tiles_back}_tiles"
        jobs[f"{back}_from_nothing"] = lambda: measure_back(options, back, name)
    for key, job in jobs.items():
        done = pd.read_csv(table) if table.exists() else pd.DataFrame({"name": []})
        if key not in set(done["name"]):
            with atomic_path(table) as path:
                pd.concat([done, pd.DataFrame(job())]).to_csv(path, index=False)
    print(pd.read_csv(table).round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
