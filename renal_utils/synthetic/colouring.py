"""Colouring: materials become concentrations of two stains, these absorb light, light a picture.

Concentrations are optical densities (base 10) along the stains' unit vectors, as in `stain`, so
that `stain.separate_stains` finds what was put in.
"""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from renal_utils.stain import STAIN_VECTORS
from renal_utils.synthetic import materials
from renal_utils.synthetic.canvas import Canvas
from renal_utils.synthetic.noise import noise_tiles
from renal_utils.synthetic.plan import SlidePlan
from renal_utils.synthetic.recipe import Recipe

Plane = Float32[np.ndarray, "S S"]

_WHITE = np.array([246.0, 244.0, 247.0])
# Lean of real slides' stains from the published vectors, and where a hue of 1 takes them.
_LEAN = np.array([[-0.04, 0.0, 0.06], [0.03, -0.02, 0.08]])
_BLUER = np.array([[0.07, -0.02, -0.05], [0.07, -0.03, -0.06]])
_HAZE = (0.07, 0.17)  # haematoxylin and PAS of full haze
_PATCH = 0.35  # by how much, in logarithms, patchiness of 1 changes the stains
_CHROMATIN = 0.62  # haematoxylin of an ordinary nucleus


def stain_rows(recipe: Recipe) -> Float32[np.ndarray, "2 3"]:
    """Return a donor's unit vectors of haematoxylin and PAS in optical-density space."""
    rows = STAIN_VECTORS["pas"][:2] + _LEAN + recipe.hue * _BLUER
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def colour(canvas: Canvas, plan: SlidePlan, fibrosis: Plane) -> UInt8[np.ndarray, "S S 3"]:
    """Return the picture of a painted canvas.

    Args:
        canvas: Painted by `painting.paint`.
        plan: What it was painted from.
        fibrosis: 0 to 1 at every pixel of the canvas.
    """
    recipe = plan.recipe
    noise = noise_tiles(recipe.mpp, canvas.size)
    haematoxylin, pas = _concentrations(canvas, plan, fibrosis)
    strength = canvas.spread(plan.terrain.shade, plan.terrain.cell)
    if plan.terrain.patches is not None:
        patches = canvas.spread(plan.terrain.patches, plan.terrain.cell)
        strength *= np.exp(np.float32(_PATCH * recipe.patchiness) * np.clip(patches, -2, 2))
    strength *= _thickness(canvas, plan)
    haematoxylin *= strength * np.float32(recipe.haematoxylin)
    pas *= strength * np.float32(recipe.pas)
    ink = _ink(canvas, plan)
    planes = []
    for channel, (h, p) in enumerate(stain_rows(recipe).T.tolist()):
        white = float(np.log(_WHITE[channel] * recipe.gain[channel]))
        light: Plane = cv2.addWeighted(haematoxylin, -h * np.log(10), pas, -p * np.log(10), white)
        if ink is not None:
            light = light - ink * np.float32(np.log(10) * plan.artefacts.ink[channel])
        planes.append(cv2.convertScaleAbs(cv2.exp(light)))
    rgb = cv2.merge(planes)
    if recipe.blur_um > 0:
        rgb = cv2.GaussianBlur(rgb, (0, 0), recipe.blur_um * canvas.um)
    if recipe.noise > 0:
        grain = noise["camera"].window(canvas) * np.float32(recipe.noise)
        rgb = cv2.add(rgb, cv2.merge([np.rint(grain).astype(np.int16)] * 3), dtype=cv2.CV_8U)
    return rgb


def _concentrations(canvas: Canvas, plan: SlidePlan, fibrosis: Plane) -> tuple[Plane, Plane]:
    """Return haematoxylin and PAS at every pixel, before the donor's strengths."""
    tiles = noise_tiles(plan.recipe.mpp, canvas.size)
    grain = tiles["grain"].window(canvas)
    texture = cv2.LUT(canvas.material, materials.GRAIN) * grain
    texture += cv2.LUT(canvas.material, materials.CLOUD) * tiles["cloud"].window(canvas)
    texture += cv2.LUT(canvas.material, materials.FIBRE) * tiles["fibre"].window(canvas)
    scar = (canvas.material == materials.ID["interstitium"]) * fibrosis
    texture *= 1 + np.float32(0.6) * scar
    haematoxylin = cv2.LUT(canvas.material, materials.HAEMATOXYLIN) * canvas.tint
    haematoxylin *= np.maximum(np.float32(0.6) * texture, np.float32(-0.9)) + 1
    pas = cv2.LUT(canvas.material, materials.PAS) * canvas.tint
    pas *= np.maximum(texture, np.float32(-0.9)) + 1
    pas *= 1 + np.float32(0.5) * scar
    if plan.recipe.interstitium != 1:
        between = canvas.material == materials.ID["interstitium"]
        haematoxylin[between] *= np.float32(plan.recipe.interstitium)
        pas[between] *= np.float32(plan.recipe.interstitium)
    if plan.recipe.haze > 0:
        haze = cv2.LUT(canvas.material, materials.VOID) * canvas.veil
        haze *= np.float32(plan.recipe.haze) * (1 + np.float32(0.12) * grain)
        pas += np.float32(_HAZE[1]) * haze
        haematoxylin += np.float32(_HAZE[0]) * haze
    nuclei = canvas.nuclei > 0
    rim = cv2.blur(nuclei.view(np.uint8) * np.uint8(100), (5, 5)) * np.float32(-0.0035)
    chromatin = (rim + np.float32(1.12) + np.float32(0.16) * grain) * np.float32(_CHROMATIN / 100)
    np.copyto(haematoxylin, chromatin * canvas.nucleus_dye, where=nuclei)
    np.copyto(pas, pas * np.float32(0.35), where=nuclei)
    return haematoxylin, pas


def _thickness(canvas: Canvas, plan: SlidePlan) -> Plane | np.float32:
    """Return how many times the section's thickness lies at each pixel: more in folds."""
    folds = [fold for fold in plan.artefacts.folds if canvas.sees_ring(fold, 8 * canvas.um)]
    if not folds:
        return np.float32(1)
    mask = np.zeros(canvas.material.shape, np.float32)
    canvas.fill(mask, folds, 0.75)
    return 1 + cv2.GaussianBlur(mask, (0, 0), 2.5 * canvas.um)


def _ink(canvas: Canvas, plan: SlidePlan) -> Plane | None:
    """Return how thick the pen's ink lies, 0 to about 1; None where there is none."""
    width = plan.artefacts.pen_px
    paths = [path for path in plan.artefacts.pen if canvas.sees_ring(path, width)]
    if not paths:
        return None
    mask = np.zeros(canvas.material.shape, np.float32)
    for path in paths:
        canvas.stroke(mask, path, width, 1, closed=False)
    wave = noise_tiles(plan.recipe.mpp, canvas.size)["wave"].window(canvas)
    return cv2.GaussianBlur(mask, (0, 0), 4 * canvas.um) * (0.75 + np.float32(0.06) * wave)
