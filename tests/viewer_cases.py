"""Slides and results for the tests of the slide view."""

from pathlib import Path

import cv2
import numpy as np
import tifffile
from result_folders import discs, write_folder

from renal_utils.labels import GLOMERULI
from renal_utils.result_folder import file_identity
from renal_utils.runtime import read_json, write_json
from renal_utils.slides import write_pyramid


def make_image(size, seed=0):
    """Return smooth colours that no two places share, with grain of some pixels over them."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    image = np.stack([150 + 90 * x, 120 + 90 * y, 200 - 60 * x * y], axis=2)
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 12, (max(1, height // 4), max(1, width // 4)))
    grain = cv2.resize(grain, size, interpolation=cv2.INTER_CUBIC)
    return np.clip(image + grain[..., None], 0, 255).astype(np.uint8)


def write_slide(path: Path, size, mpp=0.5, **options) -> Path:
    write_pyramid(path, make_image(size), size_px=size, mpp=mpp, **options)
    return path


def write_results_of(slide: Path, folder: Path, size, places) -> Path:
    """Write results of a slide at half its scale, with a glomerulus at each place."""
    labels = discs((round(size[1] / 2), round(size[0] / 2)), places)
    probability = cv2.blur(np.where(labels > 0, 250, 5).astype(np.uint8), (15, 15))
    write_folder(folder, labels, label_set=GLOMERULI, mpp=1.0, probability=probability)
    for name in ("run.json", "summary.json"):
        content = read_json(folder / name)
        content["made_from"] |= {"slide_bytes": file_identity(slide), "slide_size_l0": list(size)}
        write_json(folder / name, content)
    return folder


def spoil_tile(path: Path, number: int, level: int = 0) -> None:
    """Overwrite the start of one stored tile of a TIFF, so that it cannot be decoded."""
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[level].pages[0]
        offset = page.dataoffsets[number]
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)
