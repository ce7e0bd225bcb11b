"""Regions: any part of a planned slide as pixels with truth.

Blocks lie on a fixed grid of the slide and are painted with a margin, so a pixel shows the same
whatever region is asked for, and memory is bounded by the region.
"""

from collections import OrderedDict
from dataclasses import dataclass, fields

import cv2
import numpy as np
from jaxtyping import Int32, UInt8

from renal_utils.geometry import Box
from renal_utils.labels import KIDNEY_TISSUES
from renal_utils.synthetic import materials
from renal_utils.synthetic.canvas import Canvas
from renal_utils.synthetic.colouring import DEFOCUS_UM, colour
from renal_utils.synthetic.painting import paint
from renal_utils.synthetic.plan import SlidePlan
from renal_utils.synthetic.recipe import Recipe

BLOCK_PX = 1024
_MARGIN_UM = 32  # more than the thickest epithelium, so that depths are right at a block's edge
_FIBROTIC = 0.5  # interstitium counts as fibrotic above this
_KEPT_BLOCKS = 4


@dataclass(frozen=True)
class DrawnRegion:
    """A part of a slide with its truth.

    Attributes:
        rgb: The image.
        tissues: Class ids of ``labels.KIDNEY_TISSUES``.
        glomeruli: Instance ids, 0 elsewhere.
        nuclei: Instance ids, 0 elsewhere.
        structures: Index into ``materials.STRUCTURES``: tuft, crescent, kinds of tubule, ...
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    tissues: UInt8[np.ndarray, "h w"]
    glomeruli: Int32[np.ndarray, "h w"]
    nuclei: Int32[np.ndarray, "h w"]
    structures: UInt8[np.ndarray, "h w"]


def draw_region(plan: SlidePlan, box_l0: Box) -> DrawnRegion:
    """Draw a region of a slide.

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
        np.empty(shape, np.uint8),
    )
    for y in range(box_l0.y // BLOCK_PX * BLOCK_PX, box_l0.bottom, BLOCK_PX):
        for x in range(box_l0.x // BLOCK_PX * BLOCK_PX, box_l0.right, BLOCK_PX):
            part = box_l0.intersection(Box(x, y, BLOCK_PX, BLOCK_PX))
            if part is not None:
                source, target = part.shifted(-x, -y), part.shifted(-box_l0.x, -box_l0.y)
                block = _kept_block(plan, x, y)
                for layer in fields(DrawnRegion):
                    crop = getattr(block, layer.name)[source.slices]
                    getattr(out, layer.name)[target.slices] = crop
    return out


# The last blocks drawn. Each entry holds its plan, so a plan's id cannot pass to another one.
_KEPT: OrderedDict[tuple[int, int, int], tuple[SlidePlan, DrawnRegion]] = OrderedDict()


def _kept_block(plan: SlidePlan, x: int, y: int) -> DrawnRegion:
    key = (id(plan), x, y)
    if key not in _KEPT:
        _KEPT[key] = (plan, _draw_block(plan, x, y))
        while len(_KEPT) > _KEPT_BLOCKS:
            _KEPT.popitem(last=False)
    return _KEPT[key][1]


def _draw_block(plan: SlidePlan, x: int, y: int) -> DrawnRegion:
    """Draw one block of the grid with its margin; return it without."""
    um = 1 / plan.recipe.mpp
    margin = int(np.ceil(_MARGIN_UM * um))
    reach = _blur_reach(plan.recipe)
    canvas = Canvas(x - margin, y - margin, BLOCK_PX + 2 * margin, um, margin - reach)
    paint(canvas, plan)
    fibrosis = canvas.spread(plan.terrain.fibrosis, plan.terrain.cell)
    rgb = colour(canvas, plan, fibrosis)[(slice(reach, reach + BLOCK_PX),) * 2]
    inner = (slice(margin, margin + BLOCK_PX),) * 2
    material = canvas.material[inner]
    tissues = cv2.LUT(material, materials.TISSUE)
    scarred = (material == materials.ID["interstitium"]) & (fibrosis[inner] > _FIBROTIC)
    tissues[scarred] = KIDNEY_TISSUES.id_of("interstitial_fibrosis")
    instances = (canvas.glomeruli[inner].copy(), canvas.nuclei[inner].copy())
    return DrawnRegion(rgb.copy(), tissues, *instances, cv2.LUT(material, materials.STRUCTURE))


def _blur_reach(recipe: Recipe) -> int:
    """Return how many pixels round a block its blur needs.

    A multiple of 8, so that strips hold whole vectors of the processor: the last few numbers of a
    row may be rounded in another way.
    """
    blur_um = recipe.blur_um + DEFOCUS_UM * (recipe.blur_patches > 0)
    return 8 * int(np.ceil((3 * blur_um / recipe.mpp + 2) / 8))
