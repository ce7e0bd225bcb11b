"""What stitching costs beyond the network: time on a tissue slide, memory on tall and wide ones.

Time: the wall clock of ``stitch_slide``, from the slide's file to all results, over that of the
network alone on the same batches, which lie ready in memory. Both in turns, median of the ratios.
Memory: peak resident size of a process that stitches, less that of the same process when it had
only run the network; for 8,000 and 32,000 rows of equal width, and for a slide 20,000 pixels wide.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from renal_utils.augment import to_tensor
from renal_utils.labels import GLOMERULI
from renal_utils.models.build import build_model
from renal_utils.prediction import make_predictor
from renal_utils.runtime import peak_memory_bytes
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.stitch_plan import StitchPlan, choose_windows
from renal_utils.stitching import stitch_slide
from renal_utils.window_reader import read_windows

RUNS = 3
TILE = 2048
MB = 2**20


def draw_tile() -> np.ndarray:
    """Return a square of pink tissue with purple blobs of glomerular size, and some glass."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((TILE, TILE)), 48, mode="wrap")
    fine = ndimage.gaussian_filter(rng.standard_normal((TILE, TILE)), 2, mode="wrap")
    purple = blobs > np.quantile(blobs, 0.93)
    pixels = np.where(purple[..., None], (120.0, 60.0, 150.0), (225.0, 170.0, 200.0))
    pixels += (fine / fine.std() * 12)[..., None]
    pixels[: TILE // 2, : TILE // 4] = 247
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_slide(path: Path, width: int, height: int) -> Path:
    """Write a JPEG pyramid that repeats one drawn square."""
    tile = draw_tile()
    columns = np.arange(width) % TILE
    bands = (
        tile[np.arange(y, min(y + 512, height)) % TILE][:, columns] for y in range(0, height, 512)
    )
    write_pyramid(path, bands, size_px=(width, height), mpp=0.5, compression="jpeg")
    return path


class Darkness:
    """A network run at its full cost, but answering by darkness: objects as a trained one finds."""

    def __init__(self, network: nn.Module) -> None:
        self.network = make_predictor(network)
        self.identity = self.network.identity

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.network(images)
        return (-images[:, :1]).sigmoid()


def stitch(path: Path, predict: Darkness, plan: StitchPlan) -> tuple[float, float]:
    """Stitch a slide into a fresh folder; return its seconds, and those inside the network."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, open_slide(path) as slide:
        started = time.perf_counter()
        result = stitch_slide(
            slide, predict, folder, plan=plan, label_set=GLOMERULI, progress=False
        )
        return time.perf_counter() - started, result.summary["run"]["network_seconds"]


def measure_time(folder: Path) -> bool:
    """Print wall time over forward time; return whether it meets its target."""
    path = write_slide(folder / "tissue.ome.tiff", 3000, 3000)
    predict = Darkness(build_model("unet_resnet34", num_classes=1))
    plan = StitchPlan(patch_px=256, stride_px=128, downsample=1.0, batch_size=8)
    with open_slide(path) as slide:
        view = slide.at_downsample(1.0)
        windows, planned = choose_windows(view, plan)
        batches = [
            torch.stack([to_tensor(image) for image in batch.images])
            for batch in read_windows(view, windows, 256, batch_size=8)
        ]
    predict(batches[0])
    ratios, inside = [], []
    for _ in range(RUNS):
        started = time.perf_counter()
        for batch in batches:
            predict(batch)
        forward = time.perf_counter() - started
        wall, network = stitch(path, predict, plan)
        ratios.append(wall / forward)
        inside.append(wall / network)
    ratio = statistics.median(ratios)
    print(f"  {len(windows)} of {planned} windows; the network alone: {forward:.1f} s")
    print(f"  wall / forward: {ratio:.3f} (target at most 1.15; runs {_list(ratios)})")
    print(f"  wall / time in the network in the same run: {_list(inside)}")
    return ratio <= 1.15


def measure_memory(folder: Path) -> bool:
    """Print peak memory above the network for tall and wide slides; return whether both fit."""
    above = {}
    for name, width, height in (
        ("8k rows", 4096, 8192),
        ("32k rows", 4096, 32768),
        ("20k wide", 20_000, 4096),
    ):
        path = write_slide(folder / f"{width}_{height}.ome.tiff", width, height)
        command = [sys.executable, __file__, str(path)]
        runs = [
            int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(RUNS)
        ]
        path.unlink()
        above[name] = statistics.median(runs)
        print(f"  {name} of {width} x {height}: {above[name] / MB:.0f} MiB above the network")
    ratio = above["32k rows"] / above["8k rows"]
    print(f"  32k rows / 8k rows: {ratio:.3f} (target at most 1.05)")
    print(f"  20,000 px wide: {above['20k wide'] / MB / 1024:.2f} GiB (target below 1.5)")
    return ratio <= 1.05 and above["20k wide"] < 1.5 * 1024 * MB


def print_memory(path: Path) -> None:
    """Print by how many bytes stitching raises the peak of a process that ran the network."""
    predict = Darkness(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)))
    plan = StitchPlan(patch_px=512, stride_px=384, downsample=1.0, batch_size=4)
    for _ in range(5):
        predict(torch.zeros(4, 3, 512, 512))
    before = peak_memory_bytes()
    stitch(path, predict, plan)
    print(peak_memory_bytes() - before)


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


PARTS = {"time": measure_time, "memory": measure_memory}


def main(what: str = "") -> int:
    """Measure all parts, or the one named; given a slide's path, print the memory it takes."""
    if what and what not in PARTS:
        print_memory(Path(what))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        met = [measure(Path(folder)) for name, measure in PARTS.items() if what in ("", name)]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
