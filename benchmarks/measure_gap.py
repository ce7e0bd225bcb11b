"""Measure how far drawn slides stand from real ones: learn from drawn ones alone, score real ones.

    python benchmarks/measure_gap.py data/hubmap_tiles build/gap --minutes 12 --back

Draws ``--slides`` slides and trains one network on them for about ``--minutes``: to tell all
tissues apart, or glomeruli alone (``--classes``). ``--recipes``: ``random`` is domain
randomisation, ``plain`` the same without odd shapes, ``donor`` what the lessons use. Threshold and
least object are chosen on drawn slides of another kind, ``--choose-recipes``, augmented as
``--choose-on`` says: on slides like those of the training a network is surer than on real ones, and
the threshold too high. Then every real tile is scored: Dice, and F1 of objects (one to one, IoU
0.5). No real pixel is used before. Globally sclerosed glomeruli are background, drawn and real.
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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from gap_scores import Answers, adapt, answer, choose
from gap_slides import LABEL_SETS, RECIPES, choosing_patches, real_patches, training_patches

from renal_utils.checkpoints import CheckpointInfo, load_checkpoint
from renal_utils.covering import cover_images
from renal_utils.labels import GLOMERULI, LabelSet, get_label_set
from renal_utils.loading import PatchDataset, make_loader
from renal_utils.losses import build_loss
from renal_utils.models.build import build_model
from renal_utils.runtime import atomic_path, pick_precision, read_json, seed_everything, write_json
from renal_utils.training import fit
from renal_utils.training_plan import TrainingPlan
from renal_utils.validation import forward_logits, logits_of

BATCH, VALIDATIONS, CALIBRATION_STEPS = 8, 4, 6


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
    labels = get_label_set(row["label_set"])
    info = CheckpointInfo(
        options.model,
        {"norm": options.norm},
        num_classes=labels.num_outputs,
        label_set=labels.name,
        downsample=float(row["downsample"]),
        mpp=None if np.isnan(row["mpp"]) else float(row["mpp"] * row["downsample"]),
        patch_px=options.patch,
    )
    plan = TrainingPlan(
        epochs=VALIDATIONS,
        learning_rate=peak,
        weight_decay=1e-2,
        monitor="val_best_dice" if labels.num_outputs == 1 else "val_dice",
        seed=options.seed,
    )
    batches = training_batches(train_rows, options, steps // VALIDATIONS)
    val = make_loader(PatchDataset(val_rows), batch_size=1, shuffle=False)
    known = {"label_set": labels, "info": info, "plan": plan, "folder": folder}
    loss = make_loss(labels)
    done = fit(model, loss, batches, val, resume=True, progress=False, **known)
    return done.best_path


def make_model(options: argparse.Namespace, labels: LabelSet) -> torch.nn.Module:
    return build_model(options.model, num_classes=labels.num_outputs, norm=options.norm)


def make_loss(labels: LabelSet) -> torch.nn.Module:
    if labels.num_outputs > 1:
        return build_loss("ce_dice", weight=0.5)
    return build_loss("bce_dice", weight=0.5, positive_weight=1.0)


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
        labels = get_label_set(rows.iloc[0]["label_set"])
        model = make_model(options, labels).train().to(memory_format=torch.channels_last)
        loss = make_loss(labels)
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


# ---------------------------------------------------------------- experiments


def measure_drawn(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Train on drawn slides alone; return the rows of all real tiles and of the test columns."""
    started = time.perf_counter()
    drawn = training_patches(options)
    ready = time.perf_counter()
    rows = {split: drawn[drawn["split"] == split] for split in ("train", "val")}
    val_squares = cover_images(rows["val"], patch_px=options.square)
    folder = (options.folder / name).resolve()
    folder.mkdir(exist_ok=True)
    steps = count_steps(options, rows["train"], folder)
    seed_everything(options.seed)
    model = make_model(options, LABEL_SETS[options.classes])
    path = train(
        model, rows["train"], val_squares, options, folder=folder, steps=steps, peak=options.peak
    )
    trained = time.perf_counter()
    model = load_checkpoint(path)[0]
    on_drawn = answer_drawn([model], options)
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
    """Score the mean of networks that were trained before."""
    paths = [options.folder / member / "best.safetensors" for member in options.together]
    models = [load_checkpoint(path)[0] for path in paths]
    on_drawn = answer_drawn(models, options)
    chosen = choose(on_drawn)
    row = {"name": name, "threshold": chosen[0], "least_px": chosen[1]}
    row["drawn_dice"] = on_drawn.scores(*chosen)["dice"]
    return [row | part for part in score_parts(models, real_patches(options), options, chosen)]


def answer_drawn(models: list[torch.nn.Module], options: argparse.Namespace) -> Answers:
    """Ask networks about the drawn slides to choose on."""
    rows = choosing_patches(options)
    return answer(models, rows, options.square, augmentation=options.choose_on)


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
        model = make_model(options, GLOMERULI)
        if start == "drawn":
            take_weights(model, load_checkpoint(options.folder / drawn / "best.safetensors")[0])
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


def take_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    """Give a network the weights of another, but for a last layer of other classes."""
    own = model.state_dict()
    fitting = {n: w for n, w in other.state_dict().items() if w.shape == own[n].shape}
    model.load_state_dict(own | fitting)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", help="real tiles and their tiles.csv")
    parser.add_argument("folder", type=Path, help="for slides, checkpoints and gap.csv")
    parser.add_argument("--recipes", choices=RECIPES, default="random", help="learned from")
    parser.add_argument("--classes", choices=LABEL_SETS, default="tissues", help="learned")
    parser.add_argument("--slides", type=int, default=60)
    parser.add_argument("--slide-px", type=int, default=1920)
    parser.add_argument("--mpp", type=float, default=1.0, help="at which slides are drawn")
    parser.add_argument("--drawn-downsample", type=float, default=3.4)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--model", default="unet_resnet34")
    parser.add_argument("--norm", choices=["batch", "group"], default="group", help="of the model")
    parser.add_argument("--minutes", type=float, default=12.0, help="of training")
    parser.add_argument("--steps", type=int, default=0, help="instead of minutes")
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--downsample", type=float, default=5.0, help="of the real tiles")
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--square", type=int, default=320, help="side of what is scored at once")
    parser.add_argument("--augmentation", default="strong")
    parser.add_argument("--choose-recipes", choices=RECIPES, default="donor")
    parser.add_argument("--choose-slides", type=int, default=24)
    parser.add_argument("--choose-on", default="strong", help="augmentation where one chooses")
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
    name = options.name or f"{options.model}_{options.recipes}_{options.seed}"
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
