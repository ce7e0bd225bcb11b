"""Painting: vectors of a plan become material ids and truth on a canvas."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from renal_utils.synthetic import materials
from renal_utils.synthetic.canvas import SUBPIXEL_BITS, Canvas
from renal_utils.synthetic.crescent import Crescent
from renal_utils.synthetic.materials import ID
from renal_utils.synthetic.noise import noise_tiles
from renal_utils.synthetic.plan import SlidePlan
from renal_utils.synthetic.tuft import Glomerulus

_NUCLEUS_CORNERS = 14
# Where softness is 1: depth over which brush borders and lumens fade, and how far (as an exponent)
# lumens are filled alike.
_FADE_UM, _EVEN = 9.0, 0.7


def paint(canvas: Canvas, plan: SlidePlan) -> None:
    """Paint all that a plan has on a canvas: materials, glomeruli, nuclei."""
    _paint_ground(canvas, plan)
    solid = _paint_vessels(canvas, plan)
    for i in np.flatnonzero(canvas.sees(*plan.glomerulus_corners)).tolist():
        glomerulus = plan.glomeruli[i]
        canvas.fill(canvas.glomeruli, [glomerulus.outline], glomerulus.id)
        around = canvas.around(glomerulus.outline)
        before = canvas.material[around].copy()
        _paint_glomerulus(canvas, glomerulus, plan.recipe.wall_scale)
        outside = canvas.glomeruli[around] != glomerulus.id
        np.copyto(canvas.material[around], before, where=outside)
    solid[canvas.glomeruli > 0] = 1
    _paint_tubules(canvas, plan, solid)
    canvas.fill(canvas.material, plan.artefacts.tears, ID["glass"])
    _paint_nuclei(canvas, plan)
    glass = canvas.material == ID["glass"]
    canvas.glomeruli[glass] = 0
    canvas.nuclei[glass] = 0


def _paint_ground(canvas: Canvas, plan: SlidePlan) -> None:
    """Paint interstitium within the tissue's edge, the capsule along it, small capillaries."""
    ring, on = plan.terrain.outline, plan.terrain.capsule
    canvas.fill(canvas.material, [ring], ID["interstitium"])
    runs = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(int)))
    capsule = np.zeros_like(canvas.material)
    for first, last in runs.reshape(-1, 2):
        canvas.stroke(capsule, ring[first:last], 28 * canvas.um, 1, closed=False)
    canvas.material[(capsule > 0) & (canvas.material > 0)] = ID["capsule"]
    _paint_capillaries(canvas, plan)


def _paint_capillaries(canvas: Canvas, plan: SlidePlan) -> None:
    """Paint an ellipse at some junctions of tubules; its shape follows from its place."""
    at = plan.junctions[canvas.sees(plan.junctions, plan.junctions, 8 * canvas.um)]
    x, y = at.T
    open_ = (x * 1.37 + y) % 1.0 < 0.6
    size = (2.0 + 2.2 * ((x * 7.13 + y * 3.71) % 1.0)) * canvas.um * (1 << SUBPIXEL_BITS)
    flat, turn = 0.4 + 0.5 * ((x * 3.3) % 1.0), (x * 11 + y * 5) % 180
    middles = canvas.points(at)
    for i in np.flatnonzero(open_):
        axes = (round(size[i]), round(size[i] * flat[i]))
        middle, angle = middles[i].tolist(), float(turn[i])
        cv2.ellipse(
            canvas.material, middle, axes, angle, 0, 360, ID["capillary"], -1, shift=SUBPIXEL_BITS
        )


def _paint_vessels(canvas: Canvas, plan: SlidePlan) -> UInt8[np.ndarray, "S S"]:
    """Paint vessels; return a mask of them, which tubules must not cover."""
    mask, um, paint = np.zeros_like(canvas.material), canvas.um, canvas.material
    for i in np.flatnonzero(canvas.sees(*plan.vessel_corners, 8 * um)).tolist():
        vessel = plan.vessels[i]
        ring, vein = vessel.outline, vessel.kind == "vein"
        canvas.fill(mask, [ring], 1)
        canvas.fill(paint, [ring], ID["adventitia"])
        muscle = vessel.lumen + (ring - vessel.lumen) * (0.6 if vein else 0.86)
        canvas.fill(paint, [muscle], ID["adventitia" if vein else "media"])
        canvas.fill(paint, [vessel.lumen], ID["vessel_lumen"])
        width = (0.9 if vein else 1.5) * um
        canvas.stroke(paint, vessel.lumen, width, ID["intima"], closed=True)
    return mask


def _paint_glomerulus(canvas: Canvas, g: Glomerulus, wall_scale: float) -> None:
    """Paint capsule, Bowman's space, tuft, mesangium, slits and loops, each over the last."""
    paint = canvas.material
    first = "scar" if g.sclerosed else "bowman"
    canvas.fill(canvas.tint, [g.outline], g.tint[0])
    canvas.fill(paint, [g.outline], ID[f"{first}_capsule"])
    canvas.fill(paint, [g.inner], ID["empty_space" if g.empty_space else f"{first}_space"])
    if g.crescent is not None:
        _paint_crescent(canvas, g.crescent)
    canvas.fill(paint, [g.tuft], ID["scar" if g.sclerosed else "tuft"])
    canvas.fill(paint, g.mesangium, ID["mesangium"])
    canvas.fill(paint, g.nodules, ID["nodule"])
    canvas.fill(paint, g.slits, ID["bowman_space"])
    canvas.fill(paint, g.loops, ID["loop_wall"])
    if not len(g.loops):
        return
    middles = g.loops.mean(1, keepdims=True)
    reach = np.linalg.norm(g.loops - middles, axis=-1).mean(1)
    wall = 0.75 * canvas.um * min(1.6, wall_scale)
    lumens = middles + (g.loops - middles) * np.maximum(0.25, 1 - wall / reach)[:, None, None]
    canvas.fill(paint, lumens[~g.filled], ID["loop_open"])
    canvas.fill(paint, lumens[g.filled], ID["loop_filled"])


def _paint_crescent(canvas: Canvas, crescent: Crescent) -> None:
    """Paint a crescent, with thin seams between its layers of cells."""
    canvas.fill(canvas.material, [crescent.outline], ID["crescent"])
    inside = np.zeros_like(canvas.material)
    canvas.fill(inside, [crescent.outline], 1)
    seams = np.zeros_like(inside)
    for layer in range(1, crescent.layers):
        path = crescent.path(layer / crescent.layers)
        for first in range(layer % 3 * 4, len(path) - 8, 13):
            canvas.stroke(seams, path[first : first + 9], 0.6 * canvas.um, 1, closed=False)
    canvas.material[(seams > 0) & (inside > 0)] = ID["crescent_seam"]


def _paint_tubules(canvas: Canvas, plan: SlidePlan, solid: UInt8[np.ndarray, "S S"]) -> None:
    """Paint tubules: membrane, epithelium, apical border and lumen by depth below the edge."""
    tubules = plan.tubules
    seen = np.flatnonzero(canvas.sees(*tubules.corners))
    if plan.recipe.softness > 0:
        canvas.soft = np.zeros(canvas.material.shape, np.float32)
    numbers = np.zeros(canvas.material.shape, np.uint16)
    for local, ring in enumerate(canvas.points(tubules.rings[seen]), start=1):
        cv2.fillPoly(numbers, [ring], local, shift=SUBPIXEL_BITS)
    numbers[(solid > 0) | (canvas.material == ID["glass"])] = 0

    depth = cv2.distanceTransform((numbers > 0).view(np.uint8), cv2.DIST_L2, 5)
    ruffle = noise_tiles(plan.recipe.mpp, canvas.size)["cloud"].window(canvas)
    tables = _tubule_tables(plan, seen)
    for at in canvas.strips():
        _paint_walls(canvas, at, numbers[at], depth[at], ruffle[at], tables)


def _tubule_tables(plan: SlidePlan, seen: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each tubule on the canvas looks like, by its number there; 0 is none."""
    tubules, recipe = plan.tubules, plan.recipe
    membrane = 0.55 / recipe.mpp * recipe.wall_scale**0.5 * (1 + 2.5 * tubules.fibrosis)
    columns = {
        "wall": tubules.wall_px,
        "membrane": membrane,
        "tint": tubules.tint,
        "content": tubules.content ** (1 - _EVEN * recipe.softness),
    }
    tables = {
        name: np.concatenate([[0], values[seen]]).astype(np.float32)
        for name, values in columns.items()
    }
    first = materials.FIRST_TUBULE + 4 * tubules.kind[seen]
    veil = tables["content"] ** 0.5
    return tables | {"first": np.concatenate([[0], first]).astype(np.uint8), "veil": veil}


def _paint_walls(
    canvas: Canvas,
    at: tuple[slice, slice],
    numbers: UInt16[np.ndarray, "h w"],
    depth: Float32[np.ndarray, "h w"],
    ruffle: Float32[np.ndarray, "h w"],
    tables: dict[str, np.ndarray],
) -> None:
    """Paint the tubules of a strip: zones by depth below the edge, tints, veils."""
    um, inside, index = canvas.um, numbers > 0, numbers.astype(np.intp)

    def each(name: str) -> np.ndarray:
        return tables[name].take(index, mode="clip")

    wall = each("wall") + ruffle * np.float32(1.1 * um)
    zone = (depth > each("membrane")).view(np.uint8)
    zone += depth > wall - np.float32(1.6 * um)
    zone += depth > wall + np.float32(0.6 * um)
    np.copyto(canvas.material[at], each("first") + zone, where=inside)
    np.copyto(canvas.tint[at], each("tint"), where=inside)
    np.copyto(canvas.tint[at], each("content"), where=inside & (zone == 3))
    veil = np.clip(1 - (depth - wall) * np.float32(1 / (14 * um)), 0.4, 1)
    np.copyto(canvas.veil[at], veil * each("veil"), where=inside)
    if canvas.soft is not None:
        fade = 1 - (depth - wall + np.float32(1.6 * um)) * np.float32(1 / (_FADE_UM * um))
        np.copyto(canvas.soft[at], np.clip(fade, 0, 1), where=zone > 1)


def _paint_nuclei(canvas: Canvas, plan: SlidePlan) -> None:
    """Paint nuclei as ellipses, in the order of their ids."""
    nuclei = plan.nuclei
    seen = np.flatnonzero(canvas.sees(nuclei.xy, nuclei.xy, 8 * canvas.um))
    turn = np.linspace(0, 2 * np.pi, _NUCLEUS_CORNERS, endpoint=False)
    along, across = (nuclei.axes[seen, i, None] * f(turn) for i, f in ((0, np.cos), (1, np.sin)))
    cosine, sine = np.cos(nuclei.angle[seen])[:, None], np.sin(nuclei.angle[seen])[:, None]
    rings = np.stack([along * cosine - across * sine, along * sine + across * cosine], -1)
    points = canvas.points(rings + nuclei.xy[seen, None])
    for ring, number in zip(points, (seen + 1).tolist(), strict=True):
        cv2.fillConvexPoly(canvas.nuclei, ring, number, shift=SUBPIXEL_BITS)
    dye = np.rint(np.clip(100 * nuclei.darkness, 1, 255)).astype(np.uint8)
    stained = np.flatnonzero(canvas.nuclei)
    canvas.nucleus_dye.ravel()[stained] = dye[canvas.nuclei.ravel()[stained] - 1]
