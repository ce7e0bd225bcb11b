"""Train on four MoNuSeg tiles, test on the other three: HARU-Net with its growth, and U-Net.

    python benchmarks/train_monuseg.py data/monuseg build/monuseg

From scratch, each network in a process of its own. Epoch, thresholds and least area are chosen on a
strip of each training tile; the test tiles choose nothing. Prints one row a network and
post-processing: Dice, AJI and PQ as the mean of the test tiles, and pooled; minutes of training,
peak memory. A stopped run goes on where it was; ``--minutes`` measures a step first, plans as many
as fit, and stops in time. ``--validation-only`` never opens the test tiles: for tuning.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from renal_utils.datasets.nuclei import read_nuclei
from renal_utils.nuclei_maps import choose_separation, list_separations, score_nuclei
from renal_utils.nuclei_trials import (
    NucleiSplits,
    NucleiTrial,
    predict_strips,
    predict_tests,
    split_tiles,
    train_nuclei,
)
from renal_utils.runtime import atomic_path, peak_memory_bytes, read_json, write_json
from renal_utils.trials import Budget

# The last kidney tile, and the first and third of the other organs: by their order, not by result.
TEST = ["TCGA-B0-5711-01Z-00-DX1", "TCGA-AO-A0J2-01A-01-BSA", "TCGA-EJ-A46H-01A-03-TSC"]
METHODS = {"haru_net": ("algorithm_1", "watershed")}
WIDTHS = {"haru_net": ("width", 32), "unet": ("base_width", 16)}
TIMED_STEPS, SHARE_OF_TIME = 6, 0.9
SCORES = ["dice", "aji", "pq"]


def plan(options: argparse.Namespace, steps: int, validations: int) -> Budget:
    return Budget(
        steps=steps,
        validations=validations,
        batch_size=options.batch,
        learning_rate=options.learning_rate,
        augmentation=options.augmentation,
        seed=options.seed,
    )


def network_options(options: argparse.Namespace, name: str) -> dict[str, int]:
    if name not in WIDTHS:
        return {}
    option, usual = WIDTHS[name]
    return {option: options.width or usual}


def choose_steps(options: argparse.Namespace, name: str, splits: NucleiSplits) -> int:
    """Return how many steps fit into the minutes, measured once a run."""
    if options.minutes is None:
        return options.steps
    note = options.out / f"{name}_steps.json"
    if not note.exists():
        with tempfile.TemporaryDirectory() as folder:
            timed = plan(options, TIMED_STEPS, 1)
            widths = network_options(options, name)
            trial = train_nuclei(name, splits, budget=timed, folder=folder, options=widths)
        steps = round(SHARE_OF_TIME * options.minutes / (trial.minutes / TIMED_STEPS))
        write_json(note, {"steps": max(options.validations, steps)})
    return read_json(note)["steps"]


def score(options: argparse.Namespace, name: str) -> pd.DataFrame:
    """Train one network and return a row for each of its post-processings."""
    records = read_nuclei(options.folder)
    splits = split_tiles(records, test_ids=TEST, patch_px=options.patch)
    trial = train_nuclei(
        name,
        splits,
        budget=plan(options, choose_steps(options, name, splits), options.validations),
        folder=options.out.resolve(),
        options=network_options(options, name),
        contour_px=options.contour,
        resume=True,
        max_minutes=options.minutes,
    )
    print(trial.history.filter(regex="loss|dice|seconds").round(4).to_string(), flush=True)
    rows = _score_methods(options, trial, splits)
    facts = {"steps": trial.steps, "minutes": trial.minutes, "parameters": trial.parameters}
    return pd.DataFrame(rows).assign(**facts, peak_gb=peak_memory_bytes() / 1e9)


def _score_methods(
    options: argparse.Namespace, trial: NucleiTrial, splits: NucleiSplits
) -> list[dict[str, object]]:
    strips = predict_strips(trial, splits, turns=options.turns)
    tests = None if options.validation_only else predict_tests(trial, splits, turns=options.turns)
    rows = []
    for method in METHODS.get(trial.name, ("watershed",)):
        contours = trial.contours and method != "watershed"
        chosen, _ = choose_separation(list_separations(method, contours=contours), *strips)
        print(trial.name, chosen, flush=True)
        maps, truths = (dict(enumerate(part)) for part in strips) if tests is None else tests
        table = score_nuclei(chosen, maps, truths)
        print(table.round(4).to_string(), flush=True)
        row = {"network": trial.name, "method": method}
        row |= table.loc["mean of images", SCORES].to_dict()
        rows.append(row | {f"pooled_{s}": table.loc["pooled", s] for s in SCORES})
    return rows


def main() -> int:
    """Train the networks that are not in the table yet; return 0 if all were trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="images/ and masks_instance/ of the seven tiles")
    parser.add_argument("out", type=Path, help="gets checkpoints and table.csv")
    parser.add_argument("--network", nargs="+", default=["haru_net", "unet"])
    parser.add_argument("--width", type=int, help="of the networks; default 32 and 16")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--minutes", type=float, help="of each training, instead of steps")
    parser.add_argument("--patch", type=int, default=192)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--contour", type=int, default=3, help="thickness of contours, pixels")
    parser.add_argument("--validations", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--augmentation", default="stain_he")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", action="store_true", help="average over eight orientations")
    parser.add_argument("--validation-only", action="store_true", help="for tuning")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.out / "table.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame({"network": []})
    if options.one:
        with atomic_path(path) as temporary:
            pd.concat([done, score(options, options.one)]).to_csv(temporary, index=False)
        return 0
    failed = 0
    print(f"tested on: {', '.join(TEST)}", flush=True)
    for name in options.network:
        if name not in set(done["network"]):
            command = [sys.executable, *sys.argv, "--one", name]
            failed += subprocess.run(command, check=False).returncode != 0
    if path.exists():
        print(pd.read_csv(path).round(4).to_string(index=False))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
