"""Painting: a plan's vectors become pixels, block by block.

Blocks lie on a fixed grid of the slide and are painted with a margin, so a pixel shows the same
whatever region is asked for, and memory is bounded by the region. Each block is painted with
material ids and truth, then coloured (`colouring.colour_block`).
"""

from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from renal_utils.geometry import Box
from renal_utils.labels import KIDNEY_TISSUES
from renal_utils.synthetic import materials
from renal_utils.synthetic.colouring import colour_block
from renal_utils.synthetic.materials import ID
from renal_utils.synthetic.noise import noise_tiles
from renal_utils.synthetic.plan import SlidePlan
from renal_utils.synthetic.tuft import Glomerulus

BLOCK_PX = 1024
_SUB = 4  # bits of a pixel's fraction that polygons keep


@dataclass(frozen=True)
class DrawnRegion:
    """A painted part of a slide with its truth.

    Attributes:
        rgb: The image.
        tissues: Class ids of ``labels.KIDNEY_TISSUES``.
        glomeruli: Instance ids, 0 elsewhere.
        nuclei: Instance ids, 0 elsewhere.
    """

    rgb: UInt8[np.ndarray, "H W 3"]
    tissues: UInt8[np.ndarray, "H W"]
    glomeruli: Int32[np.ndarray, "H W"]
    nuclei: Int32[np.ndarray, "H W"]


@dataclass
class Canvas:
    """A block with its margin while it is painted; all maps are ``size`` x ``size``.

    Attributes:
        x, y: Slide pixel of its top left corner.
        size: Width and height with margins.
        um: Pixels a micrometre.
        material: Material ids.
        fibrosis: 0 to 1.
        tint: Factor on the stains.
        glomeruli: Instance ids.
        nuclei: Instance ids.
        nucleus_dye: Haematoxylin of nuclei, in hundredths.
    """

    x: int
    y: int
    size: int
    um: float
    material: np.ndarray
    fibrosis: np.ndarray
    tint: np.ndarray
    glomeruli: np.ndarray
    nuclei: np.ndarray
    nucleus_dye: np.ndarray

    def points(self, ring: np.ndarray) -> np.ndarray:
        """Return a ring as OpenCV's fixed-point pixels; there a pixel's centre has whole numbers."""
        return np.round((ring - (self.x + 0.5, self.y + 0.5)) * (1 << _SUB)).astype(np.int32)

    def fill(self, target: np.ndarray, rings: list[np.ndarray], value: int) -> None:
        """Fill closed rings that do not overlap."""
        if len(rings):
            cv2.fillPoly(target, [self.points(r) for r in rings], value, shift=_SUB)

    def stroke(
        self, target: np.ndarray, path: np.ndarray, width_px: float, value: int, *, closed: bool
    ) -> None:
        """Draw a line along a path."""
        width = max(1, round(width_px))
        cv2.polylines(target, [self.points(path)], closed, value, width, shift=_SUB)

    def sees(self, low: np.ndarray, high: np.ndarray, reach: float = 0) -> np.ndarray:
        """Say which boxes (corners N x 2) touch the canvas, ``reach`` pixels more on each side."""
        corner = np.array([self.x, self.y])
        return np.all((high > corner - reach) & (low < corner + self.size + reach), axis=-1)


def draw_region(plan: SlidePlan, box_l0: Box) -> DrawnRegion:
    """Paint a region of a slide.

    Any two regions agree, bit for bit and id for id, where they overlap.

    Args:
        plan: From `plan_slide`.
        box_l0: Region within the slide, level-0 pixels.

    Raises:
        ValueError: If the region is not within the slide.
    """
    width, height = plan.size_px
    if min(box_l0.x, box_l0.y) < 0 or box_l0.right > width or box_l0.bottom > height:
        raise ValueError(f"region {box_l0} does not lie within the slide of {width} x {height}")
    shape = (box_l0.height, box_l0.width)
    out = DrawnRegion(
        np.empty((*shape, 3), np.uint8),
        np.empty(shape, np.uint8),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
    )
    for y in range(box_l0.y // BLOCK_PX * BLOCK_PX, box_l0.bottom, BLOCK_PX):
        for x in range(box_l0.x // BLOCK_PX * BLOCK_PX, box_l0.right, BLOCK_PX):
            part = box_l0.intersection(Box(x, y, BLOCK_PX, BLOCK_PX))
            if part is not None:
                _copy(_draw_block(plan, x, y), part.shifted(-x, -y), out, part, box_l0)
    return out


def _copy(block: DrawnRegion, source: Box, out: DrawnRegion, part: Box, box: Box) -> None:
    target = part.shifted(-box.x, -box.y).slices
    for name in ("rgb", "tissues", "glomeruli", "nuclei"):
        getattr(out, name)[target] = getattr(block, name)[source.slices]


_LAST: OrderedDict[tuple[int, int, int], tuple[SlidePlan, DrawnRegion]] = OrderedDict()


def _draw_block(plan: SlidePlan, x: int, y: int) -> DrawnRegion:
    """Return a block, kept for the next few calls; keeping the plan keeps its id from re-use."""
    key = (id(plan), x, y)
    if key not in _LAST:
        _LAST[key] = (plan, _paint_block(plan, x, y))
        while len(_LAST) > 4:
            _LAST.popitem(last=False)
    return _LAST[key][1]


def _paint_block(plan: SlidePlan, x: int, y: int) -> DrawnRegion:
    """Paint one block, its truth and its colours."""
    um = 1 / plan.recipe.mpp
    margin = int(np.ceil(32 * um))
    canvas = _empty_canvas(plan, x - margin, y - margin, BLOCK_PX + 2 * margin)
    _paint_ground(canvas, plan)
    bodies = _paint_solids(canvas, plan)
    _paint_tubules(canvas, plan, bodies)
    for tear in plan.artefacts.tears:
        canvas.fill(canvas.material, [tear], ID["glass"])
    _paint_nuclei(canvas, plan)
    glass = canvas.material == ID["glass"]
    canvas.glomeruli[glass] = 0
    canvas.nuclei[glass] = 0
    tissues = materials.TISSUE[canvas.material]
    scarred = (canvas.material == ID["interstitium"]) & (canvas.fibrosis > 0.5)
    tissues[scarred] = KIDNEY_TISSUES.id_of("interstitial_fibrosis")
    rgb = colour_block(canvas, plan)
    inner = (slice(margin, margin + BLOCK_PX),) * 2
    return DrawnRegion(
        rgb[inner].copy(),
        tissues[inner].copy(),
        canvas.glomeruli[inner].copy(),
        canvas.nuclei[inner].copy(),
    )


def _empty_canvas(plan: SlidePlan, x: int, y: int, size: int) -> Canvas:
    shape = (size, size)
    return Canvas(
        x,
        y,
        size,
        1 / plan.recipe.mpp,
        np.zeros(shape, np.uint8),
        _upsample(plan.terrain.fibrosis, plan.terrain.cell, x, y, size),
        np.ones(shape, np.float32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.uint8),
    )


def _upsample(field: np.ndarray, cell: float, x: int, y: int, size: int) -> np.ndarray:
    """Return a coarse field at every pixel of a window, by linear interpolation."""
    shift = np.array([[1 / cell, 0, (x + 0.5) / cell - 0.5], [0, 1 / cell, (y + 0.5) / cell - 0.5]])
    return cv2.warpAffine(
        field.astype(np.float32),
        shift,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _paint_ground(canvas: Canvas, plan: SlidePlan) -> None:
    """Paint interstitium within the tissue's edge, the capsule along it, small capillaries."""
    terrain, um = plan.terrain, canvas.um
    canvas.fill(canvas.material, [terrain.outline], ID["interstitium"])
    ring, on = terrain.outline, terrain.capsule
    runs = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(int)))
    capsule = np.zeros_like(canvas.material)
    for first, last in runs.reshape(-1, 2):
        canvas.stroke(capsule, ring[first:last], 28 * um, 1, closed=False)
    canvas.material[(capsule > 0) & (canvas.material > 0)] = ID["capsule"]
    spots = plan.junctions[canvas.sees(plan.junctions, plan.junctions, 8 * um)]
    for i, (px, py) in enumerate(spots):
        size = (2.0 + 2.2 * ((px * 7.13 + py * 3.71) % 1.0)) * um
        middle = (round((px - canvas.x - 0.5) * 16), round((py - canvas.y - 0.5) * 16))
        axes = (round(size * 16), round(size * (0.4 + 0.5 * ((px * 3.3) % 1.0)) * 16))
        if (px * 1.37 + py) % 1.0 < 0.6:
            turn = (px * 11 + py * 5) % 180
            cv2.ellipse(
                canvas.material, middle, axes, turn, 0, 360, ID["capillary"], -1, shift=_SUB
            )


def _paint_solids(canvas: Canvas, plan: SlidePlan) -> np.ndarray:
    """Paint vessels and glomeruli; return the mask of what tubules must not cover."""
    mask = np.zeros_like(canvas.material)
    um = canvas.um
    for vessel in plan.vessels:
        ring = vessel.outline
        if not canvas.sees(ring.min(0), ring.max(0), 8 * um):
            continue
        thin = vessel.kind == "vein"
        for target, value in ((mask, 1), (canvas.material, ID["adventitia"])):
            canvas.fill(target, [ring], value)
        inner = vessel.lumen + (ring - vessel.lumen) * (0.6 if thin else 0.86)
        canvas.fill(canvas.material, [inner], ID["adventitia" if thin else "media"])
        canvas.fill(canvas.material, [vessel.lumen], ID["vessel_lumen"])
        width = (0.9 if thin else 1.5) * um
        canvas.stroke(canvas.material, vessel.lumen, width, ID["intima"], closed=True)
    for glomerulus in plan.glomeruli:
        ring = glomerulus.outline
        if canvas.sees(ring.min(0), ring.max(0)):
            canvas.fill(mask, [ring], 1)
            canvas.fill(canvas.glomeruli, [ring], glomerulus.id)
            _paint_glomerulus(canvas, glomerulus, plan)
    return mask


def _paint_glomerulus(canvas: Canvas, g: Glomerulus, plan: SlidePlan) -> None:
    """Paint capsule, Bowman's space, tuft, mesangium, slits and loops."""
    paint, um = canvas.material, canvas.um
    names = (
        ("scar_capsule", "scar_space", "scar")
        if g.sclerosed
        else ("bowman_capsule", "bowman_space", "tuft")
    )
    capsule, space, tuft = (ID[name] for name in names)
    middle = np.array(g.xy)
    inner = middle + (g.outline - middle) * (1 - g.capsule_px / g.radius)
    canvas.fill(paint, [g.outline], capsule)
    canvas.fill(paint, [inner], space)
    canvas.fill(paint, [g.tuft], tuft)
    canvas.fill(canvas.tint, [g.outline], g.tint[0])
    if g.sclerosed:
        return
    canvas.fill(paint, g.mesangium, ID["mesangium"])
    canvas.fill(paint, g.nodules, ID["nodule"])
    canvas.fill(paint, list(g.slits), space)
    canvas.fill(paint, list(g.loops), ID["loop_wall"])
    wall = 0.75 * um * min(1.6, plan.recipe.wall_scale)
    middles = g.loops.mean(1, keepdims=True) if len(g.loops) else g.loops
    reach = np.linalg.norm(g.loops - middles, axis=-1).mean(1) if len(g.loops) else np.zeros(0)
    shrink = np.maximum(0.25, 1 - wall / np.maximum(reach, 1e-3))[:, None, None]
    lumens = middles + (g.loops - middles) * shrink
    filled = np.arange(len(lumens)) % 5 < 2
    canvas.fill(paint, list(lumens[~filled]), ID["loop_open"])
    canvas.fill(paint, list(lumens[filled]), ID["loop_filled"])


def _paint_tubules(canvas: Canvas, plan: SlidePlan, solid: np.ndarray) -> None:
    """Paint tubules: membrane, epithelium, apical border and lumen by depth below the edge."""
    tubules, um, recipe = plan.tubules, canvas.um, plan.recipe
    rings = tubules.rings
    seen = np.flatnonzero(canvas.sees(rings.min(1), rings.max(1)))
    numbers = np.zeros(canvas.material.shape, np.uint16)
    for local, i in enumerate(seen):
        cv2.fillPoly(numbers, [canvas.points(rings[i])], local + 1, shift=_SUB)
    numbers[(solid > 0) | (canvas.material == ID["glass"])] = 0
    inside = (numbers > 0).view(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
    tiles = noise_tiles(recipe.mpp, canvas.size)
    ruffle = tiles["cloud"].window(canvas.x, canvas.y, canvas.size) * np.float32(1.1 * um)
    table = lambda values: np.concatenate([[0], values[seen]]).astype(np.float32)  # noqa: E731
    wall = table(tubules.wall_px)[numbers] + ruffle
    thick = 0.55 * um * recipe.wall_scale**0.5 * (1 + 2.5 * tubules.fibrosis)
    membrane = table(thick)[numbers]
    zone = (depth > membrane).view(np.uint8) + (depth > wall - 1.6 * um) + (depth > wall + 0.6 * um)
    first = np.concatenate([[0], materials.FIRST_TUBULE + 4 * tubules.kind[seen]]).astype(np.uint8)
    painted = first[numbers] + zone
    np.copyto(canvas.material, painted, where=inside.view(bool))
    tint = np.where(zone == 3, table(tubules.content)[numbers], table(tubules.tint)[numbers])
    np.copyto(canvas.tint, tint, where=inside.view(bool))


def _paint_nuclei(canvas: Canvas, plan: SlidePlan) -> None:
    """Paint nuclei as ellipses, in the order of their ids."""
    nuclei, low = plan.nuclei, np.array([canvas.x + 0.5, canvas.y + 0.5])
    seen = np.flatnonzero(canvas.sees(nuclei.xy, nuclei.xy, 8 * canvas.um))
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    a, b = nuclei.axes[seen].T[:, :, None]
    cosine, sine = np.cos(nuclei.angle[seen])[:, None], np.sin(nuclei.angle[seen])[:, None]
    x = a * circle[0] * cosine - b * circle[1] * sine
    y = a * circle[0] * sine + b * circle[1] * cosine
    rings = np.stack([x, y], -1) + (nuclei.xy[seen] - low)[:, None]
    rings = np.round(rings * (1 << _SUB)).astype(np.int32)
    dye = np.clip(100 * nuclei.darkness[seen], 1, 255)
    for ring, number, dark in zip(rings, (seen + 1).tolist(), dye.tolist(), strict=True):
        cv2.fillConvexPoly(canvas.nuclei, ring, number, shift=_SUB)
        cv2.fillConvexPoly(canvas.nucleus_dye, ring, dark, shift=_SUB)
