"""A small network and small slides to segment."""

import numpy as np
import torch

from renal_utils.checkpoints import CheckpointInfo, save_checkpoint
from renal_utils.models.build import build_model
from renal_utils.slides import write_pyramid


def make_checkpoint(folder, name="tiny", seed=0, **info):
    torch.manual_seed(seed)
    options = {"base_width": 4, "depth": 2}
    path = folder / f"{name}.safetensors"
    given = {"patch_px": 32, "downsample": 2.0, **info}
    described = CheckpointInfo(model="unet", options=options, **given)
    save_checkpoint(path, build_model("unet", num_classes=1, **options), described)
    return path


def purple(size, seed=0):
    """Noise in the colour of tissue."""
    grey = np.random.default_rng(seed).integers(120, 220, (size[1], size[0], 1))
    return (grey * (1, 0.5, 0.8)).astype(np.uint8)


def make_slide(path, seed=0, size=(130, 97)):
    pixels = purple(size, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, pixels, size_px=size, mpp=0.5, tile_px=64, compression="none")
    return path
