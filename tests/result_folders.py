"""Folders of results whose truth is known, written through the library's own writers."""

import hashlib
from pathlib import Path

import numpy as np

from renal_utils.bandstore import BandStore
from renal_utils.labels import LabelSet
from renal_utils.result_folder import RUN_NAME, SUMMARY_NAME
from renal_utils.runtime import write_json
from renal_utils.slide_results import Scale, write_results, write_tissue


def write_folder(
    folder: Path,
    labels: np.ndarray,
    *,
    label_set: LabelSet,
    name: str = "a.tiff",
    mpp: float | None = 2.0,
    downsample: float = 2.0,
    tissue: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    spread: np.ndarray | None = None,
) -> Path:
    """Write what stitching a slide into ``labels`` would leave; ``mpp`` is that of a label pixel.

    A tissue cell is 4 x 4 label pixels.
    """
    folder.mkdir(parents=True)
    height, width = labels.shape
    probability = np.where(labels > 0, 230, 0) if probability is None else probability
    values = [probability, labels] + ([] if spread is None else [spread])
    rows = np.stack(values, axis=2).astype(np.uint8)
    scale = Scale((width, height), downsample, mpp)
    objects = [c.name for c in label_set.foreground if c.name != "interstitial_fibrosis"]
    with BandStore(folder / "rows.bands", width_px=width, channels=rows.shape[2]) as store:
        store.append(rows)
        classes = write_results(
            folder,
            store,
            scale=scale,
            label_set=label_set,
            object_classes=objects,
            min_object_px=0,
        )
    tissue = np.ones((height // 4, width // 4), bool) if tissue is None else tissue
    mpp_l0 = None if mpp is None else mpp / downsample
    found = write_tissue(folder, tissue, 4 * downsample, mpp_l0=mpp_l0)
    made_from = {
        "slide": name,
        "slide_bytes": hashlib.sha256(name.encode()).hexdigest(),
        "slide_size_l0": [round(width * downsample), round(height * downsample)],
        "network": "made by hand",
        "label_set": label_set.name,
        "threshold": 0.5,
    }
    summary = {"size_px": [width, height], "downsample": downsample, "mpp": mpp}
    summary |= {"made_from": made_from, "tissue": found, "classes": classes}
    summary["has_spread"] = spread is not None
    write_json(folder / RUN_NAME, {"made_from": made_from})
    write_json(folder / SUMMARY_NAME, summary)
    return folder


def discs(shape: tuple[int, int], places: list[tuple[int, int, int, int]]) -> np.ndarray:
    """Return labels with discs, each given as (x, y, radius, class id)."""
    labels = np.zeros(shape, np.uint8)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for left, top, radius, class_id in places:
        labels[(x - left) ** 2 + (y - top) ** 2 <= radius**2] = class_id
    return labels
