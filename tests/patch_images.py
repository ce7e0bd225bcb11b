"""Small images with truth for the tests of patching and loading."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from renal_utils.manifests import MANIFEST_COLUMNS
from renal_utils.records import ImageRecord


def write_image(
    folder: Path,
    name: str,
    *,
    size: tuple[int, int] = (320, 256),
    seed: int = 0,
    **fields: object,
) -> ImageRecord:
    """Write a tile, half glass and half tissue with discs in it, and its label image."""
    width, height = size
    rng = np.random.default_rng([seed, *name.encode()])
    y, x = np.mgrid[:height, :width]
    tissue = x >= width // 2
    labels = np.zeros((height, width), np.uint8)
    for _ in range(5):
        cx, cy, radius = rng.integers(width // 2, width), rng.integers(height), rng.integers(12, 30)
        labels[((x - cx) ** 2 + (y - cy) ** 2 < radius**2) & tissue] = 1
    image = np.where(tissue[..., None], [215, 150, 190], [247, 246, 248])
    image = np.where(labels[..., None] == 1, [130, 60, 150], image)
    image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    image_path, truth_path = folder / f"{name}.png", folder / f"{name}-labels.png"
    Image.fromarray(image).save(image_path)
    Image.fromarray(labels).save(truth_path)
    known = {"truth_kind": "label_image", "truth_path": truth_path, "donor": name, "mpp": 0.5}
    return ImageRecord(name, image_path, **(known | fields))


def pixels_of(record: ImageRecord) -> tuple[np.ndarray, np.ndarray]:
    """The image and its class ids, read by Pillow."""
    return np.asarray(Image.open(record.image_path)), np.asarray(Image.open(record.truth_path))


def fill_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Give a table the columns of a manifest that it lacks."""
    usual = dict.fromkeys(MANIFEST_COLUMNS, 0) | {
        "truth_kind": "none",
        "truth_path": "",
        "label_set": "glomeruli",
        "donor": "one",
        "group": "",
        "split": "",
        "patch_px": 64,
        "downsample": 1.0,
        "mpp": 0.5,
        "image_path": "slide.tiff",
        "image_id": "slide",
    }
    usual["patch_id"] = [f"p{i}" for i in range(len(table))]
    table = table.assign(**{k: v for k, v in usual.items() if k not in table})
    return table[list(MANIFEST_COLUMNS)].astype(MANIFEST_COLUMNS)


def lay_grid(stride: int = 64, width: int = 640) -> pd.DataFrame:
    """A manifest of 64-pixel patches of one slide, three rows high, from x_l0 100 on."""
    x = np.arange(100, 100 + width - 63, stride)
    y = np.arange(0, 129, 64)
    xs, ys = (a.ravel() for a in np.meshgrid(x, y))
    return fill_columns(pd.DataFrame({"x_px": xs, "y_px": ys, "x_l0": xs, "y_l0": ys}))
