"""How fast nuclei are separated and scored, beside plain loops over the objects.

On a drawn tile of 1000 x 1000 with 500 nuclei:

- Algorithm 1 against its printed form (each object in turn dilated by OpenCV over the whole image),
  with identical labels. Target: at least 50 times as fast.
- AJI, AJI+ and PQ together against comparing the masks of objects one pair after the other, with
  equal scores. Target: at least 20 times.

Then both on tiles set side by side up to 10,000 x 10,000 (25 million with ``--small``): the time a
pixel, over that at 1000 x 1000. Target: at most 3, near-linear; a pass over the image for each ring
or a table of all pairs of objects would show here. Ratios are of medians of processor time.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from renal_utils.instance_maps import contour_map
from renal_utils.instances import label_components, separate_nuclei
from renal_utils.metrics.instance import score_instances

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from nuclei_scenes import draw_nuclei, grow_literally, score_literally

GROWTH_TARGET, SCORES_TARGET, LINEAR_TARGET = 50, 20, 3
SQUARE = np.ones((3, 3), np.uint8)


def seconds(work: Callable[[], object], runs: int) -> float:
    """Return the median processor time of a call, after one that is not counted."""
    taken = []
    for _ in range(runs + (runs > 1)):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken[-runs:])


def dilate(part: np.ndarray) -> np.ndarray:
    return cv2.dilate(part.view(np.uint8), SQUARE).view(bool)


def compare_growth(mask: np.ndarray, contour: np.ndarray) -> float:
    """Return how many times as fast as the printed loop growth is; stop if labels differ."""
    seeds = label_components(mask & ~contour)
    literal = []
    slow = seconds(lambda: literal.append(grow_literally(seeds, mask, dilate=dilate)), 1)
    fast = seconds(lambda: separate_nuclei(mask, contour, leftovers="drop"), 11)
    if not np.array_equal(literal[0], separate_nuclei(mask, contour, leftovers="drop")):
        sys.exit("  Algorithm 1: labels differ from the printed loop's")
    print(f"  Algorithm 1: {fast:.4f} s, printed loop {slow:.2f} s, identical labels: ", end="")
    print(f"{slow / fast:.0f} times (at least {GROWTH_TARGET})")
    return slow / fast


def compare_scores(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return how many times as fast as comparing masks the scores are; stop if they differ."""
    literal = []
    slow = seconds(lambda: literal.append(score_literally(truth, predicted)), 1)
    fast = seconds(lambda: score_instances(truth, predicted), 11)
    found = score_instances(truth, predicted)
    if not np.allclose(list(literal[0].values()), [getattr(found, name) for name in literal[0]]):
        sys.exit("  AJI, AJI+, PQ: scores differ from the loop's")
    print(f"  AJI, AJI+, PQ: {fast:.4f} s, loop over objects {slow:.2f} s, equal scores: ", end="")
    print(f"{slow / fast:.0f} times (at least {SCORES_TARGET})")
    return slow / fast


def side_by_side(truth: np.ndarray, times: int) -> np.ndarray:
    """Return the tile repeated, each repetition with ids of its own."""
    size, last = len(truth), int(truth.max())
    whole = np.tile(truth, (times, times))
    for number in range(times * times):
        y, x = divmod(number, times)
        part = whole[y * size : (y + 1) * size, x * size : (x + 1) * size]
        part[part > 0] += number * last
    return whole


def measure_size(truth: np.ndarray, times: int) -> tuple[float, float]:
    """Return nanoseconds a pixel of separating and of scoring an image of that many tiles."""
    whole = side_by_side(truth, times)
    mask, contour = whole > 0, contour_map(whole, thickness_px=5)
    moved, runs = np.roll(whole, 2, axis=0), 5 if times == 1 else 1
    grow = seconds(lambda: separate_nuclei(mask, contour), runs)
    score = seconds(lambda: score_instances(whole, moved), runs)
    print(f"  {len(whole)} x {len(whole)}: separated in {grow:.3f} s, scored in {score:.3f} s")
    return grow / whole.size, score / whole.size


def main() -> int:
    """Return 0 if every target is met."""
    truth = draw_nuclei(1000, 500, radii=(8, 18))
    mask, contour = truth > 0, contour_map(truth, thickness_px=5)
    met = compare_growth(mask, contour) >= GROWTH_TARGET
    met &= compare_scores(truth, separate_nuclei(mask, contour)) >= SCORES_TARGET
    sizes = (1, 5) if "--small" in sys.argv else (1, 3, 10)
    per_pixel = np.array([measure_size(truth, times) for times in sizes])
    growth, scores = per_pixel[-1] / per_pixel[0]
    print(f"  time a pixel, largest over smallest: separating {growth:.2f}, ", end="")
    print(f"scoring {scores:.2f} (at most {LINEAR_TARGET})")
    return int(not (met and max(growth, scores) <= LINEAR_TARGET))


if __name__ == "__main__":
    sys.exit(main())
