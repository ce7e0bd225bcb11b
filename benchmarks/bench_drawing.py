"""How fast slides are drawn, all layers with their truth, and what memory that takes.

    python benchmarks/bench_drawing.py

Speed: megapixels a second of image, tissues, glomeruli and nuclei, of one slide of the lessons'
recipe, planning included, on 1 and on 2 processes that share its bands and plan it each for itself:
by the clock (the goal is 10 on two cores), and by what the processor itself worked, which other
work on the machine hardly touches. Each is the median of some runs. Memory: peak of a process that
streams a slide band by band into a tiled pyramid, for a short slide and for one four times as tall.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import cv2
import pandas as pd

from renal_utils.geometry import Box
from renal_utils.runtime import peak_memory_bytes
from renal_utils.slide_writing import write_pyramid
from renal_utils.synthetic import Recipe, draw_region, plan_slide

BAND_PX = 1024


def draw_bands(recipe: Recipe, tops: list[int]) -> float:
    """Plan a slide and draw some of its bands; return the processor's seconds."""
    cv2.setNumThreads(1)
    started = time.process_time()
    plan = plan_slide(recipe, 0)
    width, height = recipe.size_px
    for top in tops:
        draw_region(plan, Box(0, top, width, min(BAND_PX, height - top)))
    return time.process_time() - started


def measure_speed(recipe: Recipe, workers: int, runs: int) -> dict[str, float]:
    """Return the row of one number of processes, which are running before the clock starts."""
    tops = list(range(0, recipe.size_px[1], BAND_PX))
    parts = [tops[i::workers] for i in range(workers)]
    small = Recipe(size_px=(1024, 1024))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(draw_bands, [small] * workers, [[0]] * workers))
        walls, busy = [], []
        for _ in range(runs):
            started = time.perf_counter()
            busy.append(max(pool.map(draw_bands, [recipe] * workers, parts)))
            walls.append(time.perf_counter() - started)
    megapixels = recipe.size_px[0] * recipe.size_px[1] / 1e6
    return {
        "processes": workers,
        "megapixels": megapixels,
        "seconds by the clock": median(walls),
        "MP/s by the clock": megapixels / median(walls),
        "MP/s by processor time": megapixels / median(busy),
    }


def stream_slide(width: int, height: int) -> None:
    """Draw a slide band by band into a pyramid; print the peak memory in MB."""
    recipe = Recipe(size_px=(width, height))
    plan = plan_slide(recipe, 0)
    with tempfile.TemporaryDirectory() as folder:
        bands = (
            draw_region(plan, Box(0, top, width, min(BAND_PX, height - top))).rgb
            for top in range(0, height, BAND_PX)
        )
        write_pyramid(Path(folder) / "slide.tiff", bands, size_px=recipe.size_px, mpp=recipe.mpp)
    print(round(peak_memory_bytes() / 1e6))


def main() -> int:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--stream", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        stream_slide(*options.stream)
        return 0
    recipe = Recipe(size_px=(options.side, options.side))
    rows = [measure_speed(recipe, workers, options.runs) for workers in options.processes]
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    for height in (2048, 8192):
        command = [sys.executable, __file__, "--stream", "2048", str(height)]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(f"2048 x {height} streamed by bands of {BAND_PX}: peak {peak} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
