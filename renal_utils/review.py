"""Review: the objects of a slide that are most worth a look, and why.

Each object gets up to four doubts, 0 to 1: its mean probability is near the threshold, its size is
far from that of its class, it lies at the slide's edge (so a part is missing), the answers of
several views or networks differ. An object's own doubt puts them together as if they were
independent; the largest come first. It is an order for looking, not a probability of being wrong.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from renal_utils.polygon_files import read_polygons, write_geojson
from renal_utils.polygons import PolygonObject
from renal_utils.result_folder import GEOJSON_NAME
from renal_utils.segmented import SegmentedSlide

REASONS = {
    "low_probability": "near the threshold",
    "odd_size": "unusual size",
    "at_edge": "cut by the slide's edge",
    "unsteady": "answers differ",
}
OUTSIDE = "outside the cortex, not counted"  # told beside the reasons; no doubt of its own
FLAGGED = 0.5  # a doubt from which on its reason is told
_EDGE_DOUBT = 0.5
_FAR = 7.0  # robust standard deviations of log area that count as full doubt; half is 3.5
_SPREAD = 0.25  # mean standard deviation that counts as full doubt; 0.5 is the most there can be
_MIN_OBJECTS = 8  # fewer do not say what is usual


def find_doubts(slide: SegmentedSlide) -> pd.DataFrame:
    """Return the objects of a slide with their doubts, the greatest first.

    Size is judged by the modified z-score of the logarithm of the area, within the class, from 8
    objects on; 3.5 is where Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993) call a
    value an outlier, and gives a doubt of 0.5.

    Returns:
        The columns of ``objects.csv``, one a key of ``REASONS``, ``doubt``, and ``reasons`` in
        words ("" where none of the doubts reaches 0.5), with ``OUTSIDE`` behind them where a cortex
        is outlined and the object lies beyond it.
    """
    table = slide.objects.copy()
    table["low_probability"] = _near_threshold(slide)
    sizes = np.log(table["area_px"].astype(float)).groupby(table["class"])
    table["odd_size"] = sizes.transform(lambda values: _oddity(values.to_numpy()))
    table["at_edge"] = np.where(_touches_edge(slide), _EDGE_DOUBT, 0.0)
    spread = table["mean_spread"] if "mean_spread" in table else pd.Series(0.0, table.index)
    table["unsteady"] = (spread / _SPREAD).clip(0, 1)
    doubts = table[list(REASONS)].astype(float)
    table["doubt"] = 1 - (1 - doubts).prod(axis=1)
    words = np.array([*REASONS.values(), OUTSIDE])
    told = doubts.to_numpy() >= FLAGGED
    told = np.column_stack([told, told.any(axis=1) & ~slide.counted()])
    table["reasons"] = [", ".join(words[row]) for row in told]
    return table.sort_values("doubt", ascending=False, kind="stable", ignore_index=True)


def choose_review(slide: SegmentedSlide, *, limit: int = 25) -> pd.DataFrame:
    """Return the rows of ``find_doubts`` that give a reason to look, at most ``limit``.

    Raises:
        ValueError: If ``limit`` is negative.
    """
    if limit < 0:
        raise ValueError(f"limit must be 0 or more objects a slide, not {limit}")
    doubts = find_doubts(slide)
    return doubts[doubts["reasons"] != ""].head(limit).reset_index(drop=True)


def write_review(path: str | Path, slide: SegmentedSlide, chosen: pd.DataFrame) -> int:
    """Write the chosen objects' outlines as GeoJSON that QuPath opens; return their number.

    Each is an annotation named by its place in the list and its reasons, with its doubts as
    measurements. Coordinates are the slide's level-0 pixels, as in ``objects.geojson``.

    Raises:
        ValueError: If ``objects.geojson`` does not hold the objects of ``objects.csv``.
    """
    source = slide.folder / GEOJSON_NAME
    outlines = read_polygons(source)
    if len(outlines) != len(slide.objects):
        raise ValueError(
            f"{source} holds {len(outlines)} objects, objects.csv {len(slide.objects)}; was one of "
            "them edited? segment the slide again"
        )
    features = [
        _feature(place, row, outlines[int(row["object"]) - 1])
        for place, row in enumerate(chosen.to_dict("records"), start=1)
    ]
    return write_geojson(path, features, label_set=slide.label_set)


def _feature(place: int, row: dict[str, Any], outline: PolygonObject) -> PolygonObject:
    name = f"Look {place}: {row['class']} {int(row['object'])} ({row['reasons']})"
    measured = {key: round(float(row[key]), 4) for key in ("doubt", *REASONS, "mean_probability")}
    properties = {"name": name, "measurements": measured}
    return PolygonObject(row["class"], outline.polygon, properties)


def _near_threshold(slide: SegmentedSlide) -> Float[np.ndarray, " n"]:
    """Return 1 at the probability an object needs at least, falling to 0 where it is 1."""
    outputs = slide.label_set.num_outputs
    least = float(slide.summary["made_from"]["threshold"]) if outputs == 1 else 1 / outputs
    probability = slide.objects["mean_probability"].to_numpy(float)
    return np.clip((1 - probability) / (1 - least), 0, 1)


def _oddity(logs: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    if len(logs) < _MIN_OBJECTS:
        return np.zeros(len(logs))
    distance = np.abs(logs - np.median(logs))
    scale = np.median(distance) / 0.6745
    if scale == 0:
        return np.zeros(len(logs))
    return np.clip(distance / scale / _FAR, 0, 1)


def _touches_edge(slide: SegmentedSlide) -> np.ndarray:
    table, (width, height) = slide.objects, slide.size_l0
    step = float(slide.summary["downsample"])  # the last working pixel may be a rounded one
    right, bottom = table["left_l0"] + table["width_l0"], table["top_l0"] + table["height_l0"]
    beyond = (right > width - step) | (bottom > height - step)
    return ((table["left_l0"] <= 0) | (table["top_l0"] <= 0) | beyond).to_numpy()
