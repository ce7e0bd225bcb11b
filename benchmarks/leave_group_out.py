"""Train without each disease group of the drawn slides, and score every network on every group.

    python benchmarks/leave_group_out.py build/leave_group_out.csv --steps 120 --seeds 3

Writes one row for each seed, group left out and group scored on (``transfer.leave_one_group_out``).
A seed that is in the table already is not trained again. Lesson 14 draws the table.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from renal_utils.catalogue import read_dataset
from renal_utils.losses import build_loss
from renal_utils.patching import cut_patches
from renal_utils.runtime import atomic_path
from renal_utils.transfer import leave_one_group_out, transfer_costs, transfer_matrix
from renal_utils.trials import Budget


def read_manifest(folder: str) -> pd.DataFrame:
    """Return patches of the drawn slides; the donors that are kept from training are scored."""
    records = read_dataset("drawn", folder)
    manifest = cut_patches(records, patch_px=128, stride_px=64, downsample=8.0, min_tissue=0.1)
    return manifest.assign(split=manifest["split"].replace("val", "test"))


def run_seed(manifest: pd.DataFrame, seed: int, *, steps: int, folder: Path) -> pd.DataFrame:
    """Return the scores of one seed."""
    scores = leave_one_group_out(
        "unet",
        manifest,
        loss=lambda: build_loss("bce_dice", weight=0.5, positive_weight=3.0),
        budget=Budget(steps=steps, validations=1, seed=seed),
        folder=folder / f"seed_{seed}",
        options={"base_width": 8, "depth": 4},
    )
    return scores.assign(dice=scores["dice"].round(4), steps=steps, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--data", default="data/drawn")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("build/leave_group_out"))
    options = parser.parse_args()
    table = pd.read_csv(options.table) if options.table.exists() else pd.DataFrame()
    manifest = read_manifest(options.data)
    for seed in range(options.seeds):
        if len(table) and (table["seed"] == seed).any():
            continue
        started = time.perf_counter()
        scores = run_seed(manifest, seed, steps=options.steps, folder=options.runs)
        table = pd.concat([table, scores], ignore_index=True)
        with atomic_path(options.table) as path:
            table.to_csv(path, index=False)
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    print(transfer_matrix(table).round(3).to_string())
    print(transfer_costs(table).round(3).to_string())


if __name__ == "__main__":
    main()
