"""Terrain: where tissue, cortex, medullary rays and fibrosis of a slide lie.

The kidney's pole (the papilla) lies beyond one side of the slide and the capsule on the other;
medullary rays and the medulla's tubules run towards the pole. All is in slide pixels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from renal_utils.synthetic.noise import coarse_field, periodic_noise
from renal_utils.synthetic.packing import resample, ring_normals
from renal_utils.synthetic.recipe import Recipe

FIELD_CELL_UM = 16.0


@dataclass(frozen=True)
class Terrain:
    """The lie of the land: coarse fields on cells of ``cell`` slide pixels.

    Attributes:
        outline: Edge of the tissue, slide pixels.
        capsule: Which points of the outline lie on the kidney's capsule.
        pole: The papilla, slide pixels; may lie outside the slide.
        cortex: Where cortex is.
        ray: Where medullary rays are, within the cortex.
        fibrosis: 0 to 1, how fibrotic the interstitium is.
        shade: Slow change of the stain, near 1.
        inside: Where tissue is.
        patches: Change of the stain from patch to patch, about unit variance; None for none.
        defocus: How far out of focus, 0 to 1; None where all is sharp.
    """

    cell: float
    outline: Float[np.ndarray, "n 2"]
    capsule: np.ndarray
    pole: Float[np.ndarray, " 2"]
    cortex: np.ndarray
    ray: np.ndarray
    fibrosis: np.ndarray
    shade: np.ndarray
    inside: np.ndarray
    patches: np.ndarray | None = None
    defocus: np.ndarray | None = None


def survey_terrain(recipe: Recipe, rng: np.random.Generator) -> Terrain:
    """Lay out tissue edge, cortex, rays and fibrosis of a slide."""
    odd, lens = rng.spawn(2)  # leaves ``rng`` as it is
    size = np.array(recipe.size_px, float)
    cell = FIELD_CELL_UM / recipe.mpp
    shape = (int(np.ceil(size[1] / cell)), int(np.ceil(size[0] / cell)))
    turn = rng.uniform(0, 2 * np.pi)
    outward = np.array([np.cos(turn), np.sin(turn)])
    outline, cut = _tissue_outline(size, 6 / recipe.mpp, rng)
    pole = size / 2 - outward * 0.95 * size.max()
    capsule = (ring_normals(outline[None])[0] @ -outward > 0.45) & ~cut
    places = (np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), -1) + 0.5) * cell
    radius = np.hypot(*np.moveaxis(places - pole, -1, 0))
    outer, inner = np.hypot(*(outline - pole).T).max(), np.hypot(*(outline - pole).T).min()
    waves = coarse_field(shape, 160 / FIELD_CELL_UM, rng) * 0.045
    depth = (outer - radius) / (outer - inner) + waves
    cortex = depth < recipe.cortex_fraction
    ray = cortex & _rays(places - pole, outer, depth, recipe, rng)
    fibrosis = _fibrosis(shape, cortex, recipe, rng)
    shade = 1 + 0.07 * coarse_field(shape, 350 / FIELD_CELL_UM, rng)
    inside = _points_in(outline, places)
    patches = None
    if recipe.patchiness > 0:
        patches = coarse_field(shape, odd.uniform(30, 110) / FIELD_CELL_UM, odd)
    defocus = _defocus(shape, recipe.blur_patches, lens) if recipe.blur_patches > 0 else None
    fields = (cortex, ray, fibrosis, shade, inside, patches, defocus)
    return Terrain(cell, outline, capsule, pole, *fields)


def _defocus(
    shape: tuple[int, int], share: float, rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """Return soft patches that are more than half out of focus on a share of the slide."""
    field = coarse_field(shape, 110 / FIELD_CELL_UM, rng)
    soft = 1 / (1 + np.exp(-(field - np.quantile(field, 1 - share)) / 0.12))
    return np.clip((soft - 0.1) / 0.8, 0, 1).astype(np.float32)


def _tissue_outline(
    size: np.ndarray, rough_px: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the edge of a section that nearly fills the slide, and where the knife cut it."""
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    power = rng.uniform(2.6, 4.5)
    box = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle)) ** power) ** (-1 / power)
    wobble = np.zeros_like(angle)
    for order in range(1, 90):
        wobble += rng.normal() * 0.07 / order**1.5 * np.cos(order * angle + rng.uniform(0, 7))
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) * (box * (0.455 + 0.5 * wobble))[:, None]
    turns = rng.uniform(0, 2 * np.pi, int(rng.integers(1, 4)))
    sides = np.stack([np.cos(turns), np.sin(turns)])
    limits = rng.uniform(0.34, 0.46, len(turns))
    for side, limit in zip(sides.T, limits, strict=True):
        ring -= np.maximum(ring @ side - limit, 0)[:, None] * side
    ring = resample(np.clip(ring, -0.485, 0.485) * size + size / 2, 960)
    cut = ((ring - size / 2) / size @ sides > limits - 0.003).any(1)
    rough = periodic_noise((960, 8), (4.0, 2.0), rng)[0] * rough_px
    return ring + ring_normals(ring[None])[0] * rough[:, None], cut


def _points_in(ring: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Say which places lie inside a ring that is star-shaped about its middle."""
    middle = ring.mean(0)
    angle = np.arctan2(*(ring - middle).T[::-1])
    order = np.argsort(angle)
    offset = places - middle
    limit = np.interp(
        np.arctan2(offset[..., 1], offset[..., 0]),
        angle[order],
        np.hypot(*(ring - middle).T)[order],
        period=2 * np.pi,
    )
    return np.hypot(offset[..., 0], offset[..., 1]) < limit


def _rays(
    offset: np.ndarray, outer: float, depth: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> np.ndarray:
    """Return the medullary rays: stripes towards the pole that taper to the capsule."""
    spacing = 620 / recipe.mpp / outer
    bend = coarse_field(depth.shape, 200 / FIELD_CELL_UM, rng) * 0.07
    phase = np.arctan2(offset[..., 1], offset[..., 0]) / spacing + rng.random() + bend
    off = np.abs((phase % 1) - 0.5)
    return (off < 0.03 + 0.1 * depth / recipe.cortex_fraction) & (depth > 0.1)


def _fibrosis(
    shape: tuple[int, int], cortex: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> np.ndarray:
    """Return patches of fibrosis that cover about the recipe's share of the cortex."""
    field = coarse_field(shape, 110 / FIELD_CELL_UM, rng)
    field += 0.35 * coarse_field(shape, 40 / FIELD_CELL_UM, rng)
    if recipe.fibrosis == 0 or not cortex.any():
        return np.zeros(shape, np.float32)
    limit = np.quantile(field[cortex], 1 - recipe.fibrosis)
    soft = 1 / (1 + np.exp(-(field - limit) / 0.22))
    return np.where(cortex, soft, 0.5 * soft).astype(np.float32)
