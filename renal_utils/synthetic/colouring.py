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
from renal_utils.synthetic.terrain import Terrain

Plane = Float32[np.ndarray, "S S"]  # of a whole canvas
Part = Float32[np.ndarray, "h w"]  # of a strip of it
Span = tuple[slice, slice]

_WHITE = np.array([246.0, 244.0, 247.0])
# Lean of real slides' stains from the published vectors, and where a hue of 1 takes them.
_LEAN = np.array([[-0.04, 0.0, 0.06], [0.03, -0.02, 0.08]])
_BLUER = np.array([[0.07, -0.02, -0.05], [0.07, -0.03, -0.06]])
_HAZE = (0.07, 0.17)  # haematoxylin and PAS of full haze
_PATCH = 0.35  # by how much, in logarithms, patchiness of 1 changes the stains
_CHROMATIN = 0.62  # haematoxylin of an ordinary nucleus
_VEILED = 0.4  # how far nuclei look like what surrounds them where softness is 1
DEFOCUS_UM = 3.2  # standard deviation of the blur where it is furthest out of focus
_DEFOCUS_STEPS = 3


def stain_rows(recipe: Recipe) -> Float32[np.ndarray, "2 3"]:
    """Return a donor's unit vectors of haematoxylin and PAS in optical-density space."""
    rows = STAIN_VECTORS["pas"][:2] + _LEAN + recipe.hue * _BLUER
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def colour(canvas: Canvas, plan: SlidePlan, fibrosis: Plane) -> UInt8[np.ndarray, "C C 3"]:
    """Return the picture of a painted canvas's core.

    Args:
        canvas: Painted by `painting.paint`.
        plan: What it was painted from.
        fibrosis: 0 to 1 at every pixel of the canvas.
    """
    recipe = plan.recipe
    strength = _strength(canvas, plan)
    ink = _ink(canvas, plan)
    rim = cv2.blur((canvas.nuclei > 0).view(np.uint8) * np.uint8(100), (5, 5))
    side = canvas.size - 2 * canvas.edge
    rgb = np.empty((side, side, 3), np.uint8)
    for at in canvas.strips():
        haematoxylin, pas = _concentrations(canvas, plan, fibrosis, rim, at)
        haematoxylin *= strength[at] * np.float32(recipe.haematoxylin)
        pas *= strength[at] * np.float32(recipe.pas)
        rows = slice(at[0].start - canvas.edge, at[0].stop - canvas.edge)
        rgb[rows] = _light(haematoxylin, pas, None if ink is None else ink[at], plan)
    if recipe.blur_um > 0:
        rgb = cv2.GaussianBlur(rgb, (0, 0), recipe.blur_um * canvas.um)
    rgb = _put_out_of_focus(rgb, canvas, plan.terrain)
    if recipe.noise > 0:
        _add_noise(rgb, canvas, recipe)
    return rgb


def _strength(canvas: Canvas, plan: SlidePlan) -> Plane:
    """Return the factor on both stains: slow changes, patches, folds."""
    strength = canvas.spread(plan.terrain.shade, plan.terrain.cell)
    if plan.terrain.patches is not None:
        patches = canvas.spread(plan.terrain.patches, plan.terrain.cell)
        strength *= np.exp(np.float32(_PATCH * plan.recipe.patchiness) * np.clip(patches, -2, 2))
    folds = [fold for fold in plan.artefacts.folds if canvas.sees_ring(fold, 8 * canvas.um)]
    if folds:
        mask = np.zeros(canvas.material.shape, np.float32)
        canvas.fill(mask, folds, 0.75)
        strength *= 1 + cv2.GaussianBlur(mask, (0, 0), 2.5 * canvas.um)
    return strength


def _light(haematoxylin: Part, pas: Part, ink: Part | None, plan: SlidePlan) -> np.ndarray:
    """Return what light is left, as a picture, by Beer and Lambert."""
    recipe, planes = plan.recipe, []
    for channel, (h, p) in enumerate(stain_rows(recipe).T.tolist()):
        white = float(np.log(_WHITE[channel] * recipe.gain[channel]))
        light = cv2.addWeighted(haematoxylin, -h * np.log(10), pas, -p * np.log(10), white)
        if ink is not None:
            light = light - ink * np.float32(np.log(10) * plan.artefacts.ink[channel])
        planes.append(cv2.convertScaleAbs(cv2.exp(light)))
    return cv2.merge(planes)


def _put_out_of_focus(
    rgb: UInt8[np.ndarray, "C C 3"], canvas: Canvas, terrain: Terrain
) -> UInt8[np.ndarray, "C C 3"]:
    """Blur by patches: between a few strengths of blur the picture is mixed."""
    if terrain.defocus is None or not (far := canvas.spread(terrain.defocus, terrain.cell)).any():
        return rgb
    far, mixed = far[canvas.core] * np.float32(_DEFOCUS_STEPS), rgb.astype(np.float32)
    for step in range(_DEFOCUS_STEPS):
        sigma = DEFOCUS_UM * canvas.um * (step + 1) / _DEFOCUS_STEPS
        weight = np.clip(far - np.float32(step), 0, 1)[..., None]
        mixed += weight * (cv2.GaussianBlur(rgb, (0, 0), sigma) - mixed)
    return np.rint(mixed).astype(np.uint8)


def _add_noise(rgb: UInt8[np.ndarray, "C C 3"], canvas: Canvas, recipe: Recipe) -> None:
    """Add the camera's noise, the same to all three colours, in place."""
    camera = noise_tiles(recipe.mpp, canvas.size)["camera"].window(canvas)
    for at in canvas.strips():
        grain = np.rint(camera[at] * np.float32(recipe.noise)).astype(np.int16)
        strip = rgb[at[0].start - canvas.edge : at[0].stop - canvas.edge]
        strip[:] = cv2.add(strip, cv2.merge([grain] * 3), dtype=cv2.CV_8U)


def _concentrations(
    canvas: Canvas, plan: SlidePlan, fibrosis: Plane, rim: UInt8[np.ndarray, "S S"], at: Span
) -> tuple[Part, Part]:
    """Return haematoxylin and PAS of a strip of the canvas, before the donor's strengths."""
    tiles = noise_tiles(plan.recipe.mpp, canvas.size)
    material, tint = canvas.material[at], canvas.tint[at]
    grain = tiles["grain"].window(canvas)[at]
    texture = cv2.LUT(material, materials.GRAIN) * grain
    texture += cv2.LUT(material, materials.CLOUD) * tiles["cloud"].window(canvas)[at]
    texture += cv2.LUT(material, materials.FIBRE) * tiles["fibre"].window(canvas)[at]
    scar = (material == materials.ID["interstitium"]) * fibrosis[at]
    texture *= 1 + np.float32(0.6) * scar
    haematoxylin = cv2.LUT(material, materials.HAEMATOXYLIN) * tint
    haematoxylin *= np.maximum(np.float32(0.6) * texture, np.float32(-0.9)) + 1
    pas = cv2.LUT(material, materials.PAS) * tint
    pas *= np.maximum(texture, np.float32(-0.9)) + 1
    pas *= 1 + np.float32(0.5) * scar
    if canvas.soft is not None:
        wall = cv2.LUT(material, materials.WALL)
        soft = canvas.soft[at] * np.float32(plan.recipe.softness)
        haematoxylin += soft * (cv2.LUT(wall, materials.HAEMATOXYLIN) - haematoxylin)
        pas += soft * (cv2.LUT(wall, materials.PAS) - pas)
    if plan.recipe.interstitium != 1:
        between = material == materials.ID["interstitium"]
        haematoxylin[between] *= np.float32(plan.recipe.interstitium)
        pas[between] *= np.float32(plan.recipe.interstitium)
    if plan.recipe.haze > 0:
        haze = cv2.LUT(material, materials.VOID) * canvas.veil[at]
        haze *= np.float32(plan.recipe.haze) * (1 + np.float32(0.12) * grain)
        pas += np.float32(_HAZE[1]) * haze
        haematoxylin += np.float32(_HAZE[0]) * haze
    nuclei = canvas.nuclei[at] > 0
    chromatin = rim[at] * np.float32(-0.0035) + np.float32(1.12) + np.float32(0.16) * grain
    chromatin *= np.float32(_CHROMATIN / 100)
    chromatin *= canvas.nucleus_dye[at]
    veiled = _VEILED * plan.recipe.softness
    if veiled > 0:
        chromatin += np.float32(veiled) * (haematoxylin - chromatin)
    np.copyto(haematoxylin, chromatin, where=nuclei)
    np.multiply(pas, np.float32(0.35 + 0.65 * veiled), out=pas, where=nuclei)
    return haematoxylin, pas


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
