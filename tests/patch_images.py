"""Small images with truth for the tests of patching and loading."""

from pathlib import Path

import numpy as np
from PIL import Image

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
