"""Compare what can be counted on drawn and on real slides: colours, fineness, sizes of glomeruli.

    python benchmarks/compare_statistics.py data/hubmap_tiles build/statistics.png

Draws ``--slides`` slides of domain randomisation and as many of the lessons' donors, looks at them
and at the real tiles at one scale (the median glomerulus is equally wide in all), and writes one
figure: histograms of the three colours, the power spectrum of the green channel, and diameters of
glomeruli over their median. Prints what share of the real tiles lies within the drawn ones' range.
"""

import argparse
import sys
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from compare_networks import COLUMN_L0, TEST, VAL
from scipy import ndimage

from renal_utils.catalogue import read_dataset
from renal_utils.geometry import Box
from renal_utils.label_sources import open_labels
from renal_utils.plots import use_course_style
from renal_utils.runtime import atomic_path
from renal_utils.slides import open_slide
from renal_utils.synthetic import GROUPS, Recipe, donor_recipe, draw_region, plan_slide
from renal_utils.synthetic import random_recipe as draw_random

GLOMERULUS_PX = 50.0  # width of the median glomerulus at the common scale
SIDE = 256  # of the squares whose spectra are taken
COLOURS = {"red": "#b2182b", "green": "#1b7837", "blue": "#2166ac"}
STYLES = {"real": "k", "randomised": "#e08214", "lessons": "#2166ac"}


def draw(kind: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a drawn picture and its glomeruli."""
    cv2.setNumThreads(1)
    rng, size = np.random.default_rng([9, number]), {"size_px": (1536, 1536), "mpp": 1.0}
    lessons = kind == "lessons"
    recipe: Recipe = (
        donor_recipe(GROUPS[number % 4], rng, **size) if lessons else draw_random(rng, **size)
    )
    drawn = draw_region(plan_slide(recipe, number), Box(0, 0, 1536, 1536))
    return drawn.rgb, drawn.glomeruli


def read_real(folder: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the real tiles with their glomeruli, without the columns kept for choice and test."""
    pictures = []
    for record in read_dataset("tiles", folder):
        if record.x_l0 // COLUMN_L0 in {*VAL, *TEST}:
            continue
        with open_slide(record.image_path) as slide, open_labels(record) as labels:
            rgb = slide.at_downsample(1).read((0, 0), slide.size_l0)
            truth = labels.read((0, 0), slide.size_l0, 1)
        pictures.append((rgb, ndimage.label(truth == 1)[0]))
    return pictures


def diameters(ids: np.ndarray) -> np.ndarray:
    """Return the diameters of whole glomeruli, pixels of the picture."""
    areas = np.bincount(ids.ravel())[1:].astype(float)
    rim = np.unique(np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]]))
    areas[rim[rim > 0] - 1] = 0
    return 2 * np.sqrt(areas[areas > 0] / np.pi)


def spectrum(grey: np.ndarray) -> np.ndarray:
    """Return the power of one square at 1, 2, ... cycles a side, mean over directions."""
    window = np.hanning(SIDE)[:, None] * np.hanning(SIDE)
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(SIDE, 1 / SIDE)] * 2))
    rings = np.round(frequency).astype(int).ravel()
    return (np.bincount(rings, power.ravel()) / np.bincount(rings))[1 : SIDE // 2]


def describe(pictures: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return histograms, spectra (one row a picture), mean colours and diameters."""
    widths = np.concatenate([diameters(ids) for _, ids in pictures])
    factor = GLOMERULUS_PX / np.median(widths)
    small = [cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=3) for rgb, _ in pictures]
    middles = [_middle(rgb) for rgb in small]
    return {
        "histogram": np.stack(
            [
                [np.bincount(m[..., c].ravel(), minlength=256) / m[..., c].size for c in range(3)]
                for m in middles
            ]
        ),
        "spectrum": np.stack([spectrum(m[..., 1].astype(float)) for m in middles]),
        "colour": np.stack([m.reshape(-1, 3).mean(0) for m in middles]),
        "contrast": np.array([m[..., 1].std() for m in middles]),
        "diameter": widths / np.median(widths),
    }


def _middle(rgb: np.ndarray) -> np.ndarray:
    """Return the middle square of a picture, mirrored where the picture is smaller."""
    pad = [(max(0, SIDE - side + 1) // 2 + 1,) * 2 for side in rgb.shape[:2]]
    padded = np.pad(rgb, (*pad, (0, 0)), mode="reflect")
    y, x = ((side - SIDE) // 2 for side in padded.shape[:2])
    return padded[y : y + SIDE, x : x + SIDE]


def plot_statistics(found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Write the figure."""
    use_course_style()
    _, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
    for channel, name in enumerate(COLOURS):
        for kind, values in found.items():
            smooth = ndimage.gaussian_filter1d(values["histogram"][:, channel].mean(0), 2)
            axes[0, channel].plot(smooth, color=STYLES[kind], label=kind)
        axes[0, channel].set(title=f"{name.capitalize()} values", yticks=[])
    for kind, values in found.items():
        power = values["spectrum"]
        low, mid, high = np.quantile(power, [0.05, 0.5, 0.95], axis=0)
        cycles = np.arange(1, len(mid) + 1) / SIDE
        axes[1, 0].loglog(cycles, mid, color=STYLES[kind])
        axes[1, 0].fill_between(cycles, low, high, color=STYLES[kind], alpha=0.15, linewidth=0)
        bins = np.linspace(0, 2.2, 23)
        axes[1, 1].hist(values["diameter"], bins, density=True, histtype="step", color=STYLES[kind])
        axes[1, 2].scatter(
            values["colour"][:, 1], values["contrast"], s=12, color=STYLES[kind], label=kind
        )
    axes[1, 0].set(title="Power spectrum, median and 90 %", xlabel="cycles a pixel")
    axes[1, 1].set(title="Diameter over its median", yticks=[])
    axes[1, 2].set(title="Green: mean and spread", xlabel="mean", ylabel="standard deviation")
    axes[1, 2].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        plt.savefig(temporary, dpi=110, format="png")


def share_within(real: np.ndarray, drawn: np.ndarray) -> float:
    """Return the share of real values between the least and greatest drawn one."""
    return float(((real >= drawn.min(0)) & (real <= drawn.max(0))).mean())


def main() -> int:
    """Count, print, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", help="real tiles and their tiles.csv")
    parser.add_argument("figure", type=Path, help="PNG to write")
    parser.add_argument("--slides", type=int, default=16)
    options = parser.parse_args()
    found = {"real": describe(read_real(options.tiles))}
    for kind in ("randomised", "lessons"):
        found[kind] = describe([draw(kind, number) for number in range(options.slides)])
    rows = []
    for kind, values in found.items():
        row = {"slides": kind} | dict(zip(COLOURS, values["colour"].mean(0), strict=True))
        row |= {"contrast": values["contrast"].mean(), "diameter_cv": values["diameter"].std()}
        for name in ("colour", "contrast", "spectrum"):
            logs = np.log(found["real"][name]), np.log(values[name])
            row[f"real_{name}_within"] = share_within(*logs)
        rows.append(row)
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    plot_statistics(found, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
