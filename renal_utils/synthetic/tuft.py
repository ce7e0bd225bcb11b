"""Glomeruli: capsule, tuft, capillary loops and mesangium of each, as vectors.

A tuft is packed with small cells (`packing.power_cells`). Those along the stalks of its lobules are
mesangium, those between lobules are slits of Bowman's space, the rest are capillary loops, one or
two cells long. Sclerosed glomeruli are small, solid and nearly bare of nuclei.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from renal_utils.synthetic.crescent import Crescent, make_crescent
from renal_utils.synthetic.packing import (
    power_cells,
    resample_all,
    ring_normals,
    round_rings,
    wobbly_ring,
)
from renal_utils.synthetic.recipe import Recipe


@dataclass(frozen=True)
class Glomerulus:
    """One glomerulus; all rings in slide pixels, insides on their left.

    Attributes:
        id: Instance id, from 1.
        xy: Centre.
        radius: Mean radius of the capsule's outer edge, pixels.
        sclerosed: Whether it is globally sclerosed.
        outline: Outer edge of Bowman's capsule: the border of the truth.
        capsule_px: Thickness of the capsule.
        tuft: Outer edge of the tuft.
        loops: Capillary loops.
        filled: Which loops are filled, not open.
        mesangium: Patches of mesangium, unrounded cells.
        slits: Slits of Bowman's space between lobules.
        nodules: Solid patches (segmental sclerosis, nodules of diabetic disease).
        tint: Factors on its PAS and its brightness, near 1.
        crescent: Cells that fill part of Bowman's space; None for none.
        empty_space: Whether Bowman's space is torn wide and shows bare glass.
    """

    id: int
    xy: tuple[float, float]
    radius: float
    sclerosed: bool
    outline: Float[np.ndarray, "n 2"]
    capsule_px: float
    tuft: Float[np.ndarray, "n 2"]
    loops: Float[np.ndarray, "L k 2"]
    filled: Bool[np.ndarray, " L"]
    mesangium: list[Float[np.ndarray, "_ 2"]]
    slits: Float[np.ndarray, "S k 2"]
    nodules: list[Float[np.ndarray, "_ 2"]]
    tint: tuple[float, float]
    crescent: Crescent | None = None
    empty_space: bool = False

    @property
    def inner(self) -> Float[np.ndarray, "n 2"]:
        """Inner edge of the capsule."""
        middle = np.array(self.xy)
        return middle + (self.outline - middle) * (1 - self.capsule_px / self.radius)


def make_glomerulus(
    number: int,
    xy: tuple[float, float],
    radius: float,
    *,
    sclerosed: bool,
    crescent: bool = False,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Glomerulus:
    """Draw up one glomerulus.

    Args:
        number: Its instance id.
        xy: Centre, slide pixels.
        radius: Mean radius, pixels.
        sclerosed: Whether it is globally sclerosed.
        crescent: Whether it has a crescent; one that is sclerosed has none.
        recipe: Of the donor: mesangium, wall thickness, scale.
        rng: Its own source of chance.
    """
    um = 1 / recipe.mpp
    odd, third = rng.spawn(2)  # leaves ``rng`` as it is, so that the other draws do not change
    outline = wobbly_ring(radius, rng, wobble=0.045 * recipe.irregularity)
    outline = _stretch(outline, recipe.irregularity, odd) + xy
    empty = np.zeros((0, 24, 2))
    capsule = rng.uniform(1.3, 2.2) * um * recipe.wall_scale * (1.8 if sclerosed else 1)
    capsule *= recipe.capsule_scale
    tint = (float(rng.normal(1, 0.06) * recipe.tuft_stain), float(rng.normal(1, 0.06)))
    parts = (number, xy, radius, sclerosed, outline, capsule)
    if sclerosed:
        tuft = (outline - xy) * rng.uniform(0.86, 0.97) + rng.normal(0, 0.02 * radius, 2) + xy
        return Glomerulus(*parts, tuft, empty, np.zeros(0, bool), [], empty, [], tint)
    room = (1 - 0.65 * recipe.haze) * recipe.bowman
    tuft, lobes = _make_tuft(outline - xy, radius, room, rng)
    at, sickle, empty_space = np.asarray(xy), None, False
    if crescent:
        edge = (outline - xy) * (1 - capsule / radius)
        sickle, tuft, lobes = make_crescent(edge, tuft, lobes, um=um, rng=third)
        sickle = sickle.moved(at)
    elif odd.random() < recipe.collapsed_fraction:
        shrink, turn = odd.uniform(0.65, 0.95), odd.uniform(0, 2 * np.pi)
        aside = (1 - shrink) * np.linalg.norm(outline - xy, axis=1).min() * odd.uniform(0.4, 1)
        empty_space = bool(odd.random() < 0.6)
        at = at + np.array([np.cos(turn), np.sin(turn)]) * aside
        tuft, lobes, radius = tuft * shrink, lobes * shrink, radius * shrink
    cells, middles = _tuft_cells(tuft, 7.6 * um * recipe.loop_scale * rng.uniform(0.92, 1.1), rng)
    stalk, seam = _lobe_distances(middles, lobes)
    solid = _solid_places(middles, radius, recipe, rng)
    mesangial, slit = _pick_roles(stalk, seam, middles, radius, recipe.mesangium, rng)
    slit &= ~solid
    loop = ~(mesangial | slit | solid)
    loops = _rounded([c for c, k in zip(cells, loop, strict=True) if k], 0.5 * um, at, rng)
    return Glomerulus(
        *parts,
        tuft + at,
        loops,
        rng.random(len(loops)) < rng.uniform(0.15 + 0.5 * recipe.haze, 0.8),
        [c + at for c, k in zip(cells, mesangial, strict=True) if k],
        _rounded([c for c, k in zip(cells, slit, strict=True) if k], 0.6 * um, at, rng),
        [c + at for c, k in zip(cells, solid, strict=True) if k],
        tint,
        sickle,
        empty_space,
    )


def _stretch(ring: np.ndarray, irregularity: float, rng: np.random.Generator) -> np.ndarray:
    """Stretch a ring about (0, 0) along a chance direction, by at most a fifth; keep its area."""
    if irregularity <= 1:
        return ring
    turn, longer = rng.uniform(0, np.pi), 1 + rng.uniform(0, 0.1) * (irregularity - 1)
    along = np.array([np.cos(turn), np.sin(turn)])
    across = np.array([-along[1], along[0]])
    return np.outer(ring @ along, along) * longer + np.outer(ring @ across, across) / longer


def _make_tuft(
    outline: np.ndarray, radius: float, room: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tuft's edge, lobed and drawn to one side, and the middles of its lobules.

    Args:
        outline: Capsule, about (0, 0).
        radius: Its mean radius, pixels.
        room: Factor on the width of Bowman's space.
        rng: Source of chance.
    """
    angle = np.arctan2(outline[:, 1], outline[:, 0])
    hilum, lobe_count = rng.uniform(0, 2 * np.pi), int(rng.integers(5, 9))
    space = room * rng.choice([0.05, 0.09, 0.14, 0.22], p=[0.35, 0.35, 0.2, 0.1])
    phases = hilum + (np.arange(lobe_count) + 0.5 + rng.normal(0, 0.1, lobe_count)) * (
        2 * np.pi / lobe_count
    )
    lobed = np.max(np.cos(angle[:, None] - phases[None]), axis=1)
    away = 0.5 - 0.5 * np.cos(angle - hilum)
    size = 0.985 - space * (0.35 + 1.1 * away) - room * rng.uniform(0.5, 1.3) * (1 - lobed)
    tuft = outline * size[:, None]
    lobes = np.stack([np.cos(phases), np.sin(phases)], 1) * radius * 0.56
    inner = rng.uniform(0.05, 0.2) * radius
    lobes = np.vstack([lobes, [[np.cos(hilum) * inner, np.sin(hilum) * inner]]])
    return tuft, lobes


def _tuft_cells(
    tuft: np.ndarray, spacing: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Pack a tuft with cells; some are pairs of neighbours, which gives longer loops."""
    reach = np.abs(tuft).max() + 2 * spacing
    rows = np.arange(-reach, reach, spacing * 0.87)
    columns = np.arange(-reach, reach, spacing)
    grid = np.stack(np.meshgrid(columns, rows), -1)
    grid[1::2, :, 0] += spacing / 2
    points = grid.reshape(-1, 2) + rng.normal(0, 0.23 * spacing, (grid.size // 2, 2))
    inset = tuft * (1 - 0.35 * spacing / np.linalg.norm(tuft, axis=1, keepdims=True).mean())
    inside = _inside(inset, points)
    owners = np.where(inside, np.arange(len(points)), -1)
    pairs = cKDTree(points).query_pairs(1.25 * spacing, output_type="ndarray")
    rng.shuffle(pairs)
    single = np.ones(len(points), bool)
    for i, j in pairs.tolist():
        if inside[i] and inside[j] and single[j] and (single[i] or rng.random() < 0.18):
            owners[j] = owners[i]
            single[i] = single[j] = False
    radii = rng.uniform(0.1, 0.62, len(points)) * spacing
    cells = power_cells(points, radii, owners).outlines
    rings = [cells[k] for k in sorted(cells)]
    middles = np.array([ring.mean(0) for ring in rings]).reshape(-1, 2)
    return rings, middles


def _inside(ring: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Say which points lie in a ring that is star-shaped about (0, 0)."""
    angle = np.arctan2(ring[:, 1], ring[:, 0])
    order = np.argsort(angle)
    size = np.hypot(*ring[order].T)
    limit = np.interp(np.arctan2(points[:, 1], points[:, 0]), angle[order], size, period=2 * np.pi)
    return np.hypot(*points.T) < limit


def _lobe_distances(middles: np.ndarray, lobes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distances to the nearest lobule's stalk and to the seam between two lobules."""
    root = lobes[-1]
    stalks = np.stack([root + (lobe - root) * t for t in (0.35, 0.7, 1.05) for lobe in lobes])
    nearest = cKDTree(stalks).query(middles)[0]
    two = cKDTree(lobes[:-1]).query(middles, k=2)[0]
    return nearest, two[:, 1] - two[:, 0]


def _pick_roles(
    stalk: np.ndarray,
    seam: np.ndarray,
    middles: np.ndarray,
    radius: float,
    share: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells are mesangium and which are slits."""
    score = stalk + rng.normal(0, 0.1 * radius, len(stalk))
    mesangial = score <= np.quantile(score, min(share, 0.95)) if len(score) else score < 0
    outer = np.hypot(*middles.T) > 0.5 * radius
    slit = (seam < 0.1 * radius) & outer & ~mesangial & (rng.random(len(seam)) < 0.7)
    return mesangial, slit


def _solid_places(
    middles: np.ndarray, radius: float, recipe: Recipe, rng: np.random.Generator
) -> np.ndarray:
    """Return cells that are solid: nodules where mesangium is much, segmental scars."""
    solid = np.zeros(len(middles), bool)
    nodules = rng.poisson(max(0.0, recipe.mesangium - 0.36) * 9)
    scars = rng.random() < 0.9 * recipe.sclerosed_fraction
    for size in [rng.uniform(0.12, 0.22)] * nodules + [rng.uniform(0.3, 0.55)] * int(scars):
        turn, out = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7) * radius
        middle = np.array([np.cos(turn), np.sin(turn)]) * out
        solid |= np.hypot(*(middles - middle).T) < size * radius
    return solid


def _rounded(
    cells: list[np.ndarray], gap: float, at: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Round small cells and draw them in by about ``gap``; move them to the slide."""
    if not cells:
        return np.zeros((0, 24, 2))
    rings = resample_all(cells, 24)
    spacing = np.hypot(*np.moveaxis(rings[:, 1] - rings[:, 0], -1, 0))
    rings = round_rings(rings, 1.2 * spacing)
    inset = gap * rng.uniform(0.6, 1.8, (len(rings), 1, 1))
    return rings + ring_normals(rings) * inset + at
