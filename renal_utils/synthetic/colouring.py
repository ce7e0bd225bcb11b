"""Colouring: materials become concentrations of two stains, these light, light a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from renal_utils.stain import STAIN_VECTORS
from renal_utils.synthetic import materials
from renal_utils.synthetic.noise import noise_tiles
from renal_utils.synthetic.recipe import Recipe

if TYPE_CHECKING:
    from renal_utils.synthetic.plan import SlidePlan
    from renal_utils.synthetic.raster import Canvas

WHITE = np.array([246.0, 244.0, 247.0], np.float32)


def stain_rows(recipe: Recipe) -> Float32[np.ndarray, "2 3"]:
    """Return the donor's unit vectors of haematoxylin and PAS in optical-density space."""
    rows = STAIN_VECTORS["pas"][:2].astype(np.float64)
    lean = np.array([[-0.04, 0.0, 0.06], [0.03, -0.02, 0.08]])
    bluer = np.array([[0.07, -0.02, -0.05], [0.07, -0.03, -0.06]])
    rows = rows + lean + recipe.hue * bluer
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def colour_block(canvas: Canvas, plan: SlidePlan) -> UInt8[np.ndarray, "S S 3"]:
    """Return the picture of a painted canvas."""
    recipe, um = plan.recipe, canvas.um
    tiles = noise_tiles(recipe.mpp, canvas.size)
    noise = {k: t.window(canvas.x, canvas.y, canvas.size) for k, t in tiles.items()}
    h, p = _concentrations(canvas, noise)
    from renal_utils.synthetic.raster import _upsample

    shade = _upsample(plan.terrain.shade, plan.terrain.cell, canvas.x, canvas.y, canvas.size)
    h *= shade * np.float32(recipe.haematoxylin)
    p *= shade * np.float32(recipe.pas)
    for fold in plan.artefacts.folds:
        mask = np.zeros_like(canvas.material)
        canvas.fill(mask, [fold], 1)
        if mask.any():
            double = 1 + 0.75 * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.5 * um)
            h *= double
            p *= double
    rows = stain_rows(recipe)
    density = np.stack([h, p], -1).reshape(-1, 2) @ rows
    density = density.reshape(*h.shape, 3)
    for path in plan.artefacts.pen:
        mask = np.zeros_like(canvas.material)
        canvas.stroke(mask, path, plan.artefacts.pen_px, 1, closed=False)
        if mask.any():
            ink = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 4 * um)
            ink *= 0.75 + 0.06 * noise["wave"]
            density += ink[..., None] * np.array(plan.artefacts.ink, np.float32)
    light = np.exp(density * np.float32(-np.log(10)))
    rgb = light * (WHITE * np.array(recipe.gain, np.float32))
    if recipe.blur_um > 0:
        rgb = cv2.GaussianBlur(rgb, (0, 0), recipe.blur_um * um)
    rgb += noise["camera"][..., None] * np.float32(recipe.noise)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def _concentrations(
    canvas: Canvas, noise: dict[str, np.ndarray]
) -> tuple[Float32[np.ndarray, "S S"], Float32[np.ndarray, "S S"]]:
    """Return haematoxylin and PAS at every pixel, before the donor's strength."""
    ids = canvas.material
    texture = materials.GRAIN[ids] * noise["grain"] + materials.CLOUD[ids] * noise["cloud"]
    texture += materials.FIBRE[ids] * noise["fibre"]
    h = materials.HAEMATOXYLIN[ids]
    p = materials.PAS[ids]
    fibrotic = (ids == materials.ID["interstitium"]) * canvas.fibrosis
    p = p * (1 + 0.5 * fibrotic)
    texture *= 1 + 0.6 * fibrotic
    h *= np.maximum(0.1, 1 + 0.6 * texture) * canvas.tint
    p *= np.maximum(0.1, 1 + texture) * canvas.tint
    nuclei = canvas.nuclei > 0
    chromatin = canvas.nucleus_dye.astype(np.float32) * np.float32(0.01)
    soft = cv2.blur(nuclei.astype(np.float32), (5, 5))
    chromatin *= (1.12 - 0.35 * soft + 0.16 * noise["grain"]) * np.float32(0.62)
    h = np.where(nuclei, chromatin, h)
    p = np.where(nuclei, p * 0.35, p)
    return h, p
