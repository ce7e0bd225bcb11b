"""Train networks under one equal budget on real tiles and score them on held-out columns.

    python benchmarks/compare_networks.py data/hubmap_tiles build/networks.csv --steps 150

Each network has a process of its own, from scratch: the same steps, crops and seed, the threshold
chosen on the validation column. Prints and writes one row a network: Dice and object F1 (one to
one, IoU 0.5) of the test columns, minutes of training, peak memory. A network that is in the table
already is not trained again, so that a stopped comparison goes on where it was.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from renal_utils.catalogue import read_dataset
from renal_utils.losses import build_loss
from renal_utils.metrics.object_matching import pool_objects
from renal_utils.patching import cut_patches
from renal_utils.runtime import atomic_path, peak_memory_bytes
from renal_utils.splits import split_by_column
from renal_utils.trials import Budget, Splits, Trial, make_splits, run_trial

MODELS = [
    "unet",
    "unetpp",
    "attention_unet",
    "linknet_efficientnet_b2",
    "lsu_net",
    "unext",
    "asrmu_net",
    "variable_unet",
]
COLUMN_L0, VAL, TEST = 1600, [3], [1, 4]  # as in notebooks/params/04_real_tiles.yaml


def read_splits(folder: str, *, downsample: float, patch_px: int) -> Splits:
    """Return the tiles' patches by columns, and squares that cover validation and test."""
    cut = {"patch_px": patch_px, "stride_px": patch_px, "downsample": downsample}
    manifest = cut_patches(read_dataset("tiles", folder), **cut)
    columns = {"val_columns": VAL, "test_columns": TEST}
    manifest = split_by_column(manifest, column_l0=COLUMN_L0, **columns)
    side = -(-COLUMN_L0 // int(downsample) // 32) * 32
    return make_splits(manifest, eval_patch_px=side)


def object_f1(trial: Trial, splits: Splits) -> float:
    """Return F1 of the objects of all test squares together, paired one to one."""
    predict = trial.predictor()

    def squares() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in splits.loader("test"):
            truth = batch["target"][0].numpy()
            found = predict(batch["image"])[0, 0].numpy() > trial.threshold
            yield truth == 1, found & (truth != 255)

    return pool_objects(squares()).f1


def score(options: argparse.Namespace, name: str) -> dict[str, object]:
    """Train one network and return its row."""
    splits = read_splits(options.folder, downsample=options.downsample, patch_px=options.patch)
    budget = Budget(
        steps=options.steps,
        validations=2,
        learning_rate=options.learning_rate,
        augmentation="stain",
        jitter_px=options.patch // 2,
        seed=options.seed,
    )
    loss = build_loss("bce_dice", weight=0.5, positive_weight=1.0)
    folder = options.table.parent / f"{options.table.stem}_checkpoints"
    trial = run_trial(name, splits, loss=loss, budget=budget, folder=folder.resolve())
    row = trial.row() | {"object_f1": object_f1(trial, splits), "steps": options.steps}
    row |= {"seed": options.seed, "minutes": row.pop("seconds") / 60}
    return row | {"peak_gb": peak_memory_bytes() / 1e9}


def main() -> int:
    """Compare the networks that are not in the table yet; return 0 if all were trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="tiles and their tiles.csv")
    parser.add_argument("table", type=Path, help="CSV to write")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--downsample", type=float, default=8.0)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    done = pd.read_csv(options.table) if options.table.exists() else pd.DataFrame({"name": []})
    if options.one:
        table = pd.concat([done, pd.DataFrame([score(options, options.one)])])
        with atomic_path(options.table) as path:
            table.to_csv(path, index=False)
        return 0
    failed = 0
    for name in options.models:
        if name not in set(done["name"]):
            command = [sys.executable, *sys.argv, "--one", name]
            failed += subprocess.run(command, check=False).returncode != 0
    print(pd.read_csv(options.table).replace({np.nan: None}).round(4).to_string(index=False))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
