"""Slides, plans and networks to stitch with, and what came of it."""

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from renal_utils.augment import PIXEL_MEAN, PIXEL_STD
from renal_utils.labels import GLOMERULI
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.stitching import StitchPlan, stitch_slide

OUTPUTS = ("labels.ome.tiff", "probability.ome.tiff", "objects.geojson", "objects.csv")


def identity(images):
    """A network that gives back the red channel."""
    return (images[:, :1] * PIXEL_STD[0] + PIXEL_MEAN[0]).clamp(0, 1)


def make_slide(folder, size_px, *, seed=0, mpp=0.5, tile_px=64, background=False):
    """Write a slide of smooth random purple; with ``background``, glass but for two islands."""
    width, height = size_px
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 24 + 2, width // 24 + 2))
    smooth = 40 + 200 * ndimage.zoom(coarse, 24, order=1)[:height, :width]
    pixels = np.rint(smooth[..., None] * (1, 0.5, 0.8)).astype(np.uint8)
    if background:
        glass = np.ones((height, width), bool)
        glass[height // 8 : height // 3, : width // 3] = False
        glass[2 * height // 3 :, width // 2 :] = False
        pixels[glass] = 250
    path = Path(folder) / f"slide_{width}_{height}_{seed}.ome.tiff"
    write_pyramid(path, pixels, size_px=size_px, mpp=mpp, tile_px=tile_px, compression="none")
    return path


def whole(path, downsample=1.0, channel=0):
    with open_slide(path) as slide:
        view = slide.at_downsample(downsample)
        return view.read((0, 0), view.size_px)[..., channel]


def plan_of(**settings):
    plain = {"patch_px": 64, "stride_px": 32, "downsample": 1.0, "skip_background": False}
    return StitchPlan(**{**plain, "batch_size": 5, **settings})


def stitch(path, folder, predict=identity, *, label_set=GLOMERULI, plan=None, mpp=None, **options):
    with open_slide(path, mpp=mpp) as slide:
        return stitch_slide(
            slide,
            predict,
            folder,
            plan=plan or plan_of(),
            label_set=label_set,
            progress=False,
            **options,
        )


def leftovers(folder):
    """Temporary files; the lock that nobody holds any more is none."""
    return [path for path in Path(folder).glob(".*") if path.name != ".lock"]


def content(folder):
    """Bytes of all outputs, and the summary without what a clock or a machine adds."""
    summary = json.loads((Path(folder) / "summary.json").read_text())
    summary.pop("run")
    return {name: (Path(folder) / name).read_bytes() for name in OUTPUTS}, summary
