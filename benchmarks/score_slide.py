"""Score a stitched slide against a label image of the same slide, in chosen columns.

    python benchmarks/score_slide.py FOUND/labels.ome.tiff SLIDE-labels.ome.tiff --columns 2400 7200

Dice over all labelled pixels of the columns together; objects at IoU 0.5, per column (an object
that a column border cuts is cut in both), paired in the three modes of
``metrics.object_matching``. Pixels that nobody labelled do not count.
Columns are given by their left edges, in level-0 pixels of the slide the tiles came from.
"""

import argparse
import json

import numpy as np

from renal_utils.labels import IGNORE_ID
from renal_utils.metrics.object_matching import MODES, match_objects
from renal_utils.slides import open_slide


def read_column(path: str, left: int, right: int, downsample: float) -> np.ndarray:
    """Return the labels of a slide between two level-0 columns, at a scale."""
    with open_slide(path) as slide:
        view = slide.at_downsample(downsample)
        x = round(left / downsample)
        size = (round(right / downsample) - x, view.size_px[1])
        return view.read_labels((x, 0), size, fill=IGNORE_ID)


def score_column(found: np.ndarray, truth: np.ndarray, min_area_px: int) -> dict[str, int]:
    """Return the counts of one column: pixels for Dice, objects in each mode."""
    height = min(len(found), len(truth))
    known = truth[:height] != IGNORE_ID
    predicted, true = (found[:height] == 1) & known, truth[:height] == 1
    pixels = {"both": predicted & true, "predicted": predicted, "true": true}
    counts = {name: int(mask.sum()) for name, mask in pixels.items()}
    for mode in MODES:
        objects = match_objects(true, predicted, mode=mode, min_area_px=min_area_px)
        counts |= {f"{mode}_{n}": getattr(objects, n) for n in ("tp", "fp", "fn")}
    return counts


def main() -> None:
    """Print the score of the columns together, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels")
    parser.add_argument("truth")
    parser.add_argument("--columns", type=int, nargs="+", required=True)
    parser.add_argument("--width", type=int, default=1600, help="of a column, level-0 pixels")
    parser.add_argument(
        "--origin", type=int, default=800, help="level-0 x of the slide's left edge"
    )
    parser.add_argument("--downsample", type=float, default=4.0, help="of the labels")
    parser.add_argument("--min-area", type=int, default=0, help="pixels of the labels")
    options = parser.parse_args()
    total: dict[str, int] = {}
    for column in options.columns:
        left = column - options.origin
        spans = [(left / d, (left + options.width) / d) for d in (options.downsample, 1.0)]
        found = read_column(options.labels, *(round(v) for v in spans[0]), 1.0)
        truth = read_column(options.truth, *(round(v) for v in spans[1]), options.downsample)
        for name, count in score_column(found, truth, options.min_area).items():
            total[name] = total.get(name, 0) + count
    dice = 2 * total["both"] / (total["predicted"] + total["true"])
    scores = {"dice": round(dice, 4)}
    for mode in MODES:
        tp, fp, fn = (total[f"{mode}_{n}"] for n in ("tp", "fp", "fn"))
        scores |= {f"f1_{mode}": round(2 * tp / (2 * tp + fp + fn), 4)}
        scores |= {f"tp_{mode}": tp, f"fp_{mode}": fp, f"fn_{mode}": fn}
    both = total["one_to_one_tp"]
    scores["counted"] = both + total["one_to_one_fp"]
    scores["annotated"] = both + total["one_to_one_fn"]
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
