"""Whether training waits for its data: a step with the real loader over one with a repeated batch.

The task is that of lesson 04 on the drawn slides: patches of 256 pixels at a downsample of 2, moved
at random, augmentation "stain", 8 a batch, a U-Net with a ResNet-34 encoder. Stretches of a few
steps with each way of loading and with one batch over and over are measured in turns; the ratio is
that of the medians. Target: at most 1.1.
"""

import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from renal_utils.archive import ensure_drawn
from renal_utils.datasets.hubmap import read_hubmap
from renal_utils.loading import PatchDataset, make_loader
from renal_utils.losses import build_loss
from renal_utils.models.build import build_model
from renal_utils.patching import cut_patches
from renal_utils.runtime import resolve_path
from renal_utils.training import TrainingPlan
from renal_utils.training_step import prepare, take_step

TARGET = 1.1
BATCH, STEPS, RUNS = 8, 5, 4
WAYS = {
    "images in memory, no worker": ("memory", 0),
    "from the files, no worker": ("none", 0),
    "from the files, 2 workers": ("none", 2),
}


def endless(loader: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches for ever, an epoch after the other."""
    epoch = 0
    while True:
        loader.dataset.set_epoch(epoch)
        yield from loader
        epoch += 1


def make_loaders() -> dict[str, Iterable[dict[str, torch.Tensor]]]:
    """Return each way to load the training patches of the drawn slides."""
    folder = ensure_drawn(resolve_path("data/drawn"))
    records = read_hubmap(folder / "hubmap")
    manifest = cut_patches(records, patch_px=256, stride_px=128, downsample=2, min_tissue=0.2)
    manifest = manifest[manifest["split"] != "test"]
    loaders = {}
    for name, (cache, workers) in WAYS.items():
        dataset = PatchDataset(manifest, augmentation="stain", jitter_px=64, cache=cache)
        loader = make_loader(
            dataset, batch_size=BATCH, shuffle=True, num_workers=workers, steps_per_epoch=50
        )
        loaders[name] = endless(loader)
    return loaders


def measure(ways: dict[str, Iterator[dict[str, torch.Tensor]]]) -> dict[str, float]:
    """Return the median seconds of a step for each way to get batches."""
    torch.manual_seed(0)
    trainee = prepare(build_model("unet_resnet34"), build_loss("bce_dice"), TrainingPlan())
    trainee.model.train()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(RUNS + 1):
        for name, batches in ways.items():
            next(batches)  # workers may have filled their queue while others were measured
            start = time.perf_counter()
            for _ in range(STEPS):
                take_step(trainee, next(batches), where="benchmark", of=None)
            if run > 0:
                taken[name].append((time.perf_counter() - start) / STEPS)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> int:
    """Return 0 if every way of loading meets the target."""
    loaders = make_loaders()
    batch = next(iter(loaders["images in memory, no worker"]))
    repeated = iter(lambda: batch, None)
    seconds = measure({"one batch repeated": repeated, **loaders})
    base = seconds.pop("one batch repeated")
    print(f"  one batch repeated: {base:.3f} s a step, median of {RUNS} x {STEPS}")
    for name, value in seconds.items():
        print(f"  {name}: {value:.3f} s a step, ratio {value / base:.3f} (at most {TARGET})")
    return int(max(seconds.values()) / base > TARGET)


if __name__ == "__main__":
    sys.exit(main())
