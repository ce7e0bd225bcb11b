"""Anatomy: where cortex, medulla, glomeruli, vessels and tubules of a slide lie, as vectors.

The kidney's pole (the papilla) lies beyond one side of the slide and the capsule on the other;
medullary rays and the medulla's tubules run towards the pole. All is in slide pixels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from renal_utils.synthetic.noise import coarse_field, sample_field
from renal_utils.synthetic.packing import (
    DartBoard,
    PowerCells,
    make_spines,
    power_cells,
    resample,
    ring_area,
    ring_normals,
    round_rings,
    wobbly_ring,
)
from renal_utils.synthetic.recipe import Recipe
from renal_utils.synthetic.tuft import Glomerulus, make_glomerulus

FIELD_CELL_UM = 16.0

# Kinds of tubule: radius thrown (they grow by a fifth in the packing), in micrometres, and height
# of the epithelium as a share of the profile's half width.
PROXIMAL, DISTAL, COLLECTING, ASCENDING, THIN = range(5)
TUBULE_NAMES = ("proximal", "distal", "collecting", "ascending", "thin")
TUBULE_RADIUS_UM = (21.5, 15.5, 18.0, 12.5, 7.5)
EPITHELIUM_SHARE = (0.72, 0.47, 0.45, 0.5, 0.3)
EPITHELIUM_LIMIT_UM = (19.0, 9.5, 11.0, 8.0, 3.0)


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


@dataclass(frozen=True)
class Tubules:
    """Profiles of tubules.

    Attributes:
        rings: Outer edges (basement membrane), insides on the left, slide pixels.
        kind: Index into ``TUBULE_NAMES``.
        wall_px: Height of the epithelium.
        tint: Factor on the stain of each.
        content: Factor on what fills the lumen of each.
        fibrosis: Fibrosis around each, 0 to 1.
    """

    rings: Float[np.ndarray, "T K 2"]
    kind: Int[np.ndarray, " T"]
    wall_px: Float[np.ndarray, " T"]
    tint: Float[np.ndarray, " T"]
    content: Float[np.ndarray, " T"]
    fibrosis: Float[np.ndarray, " T"]


@dataclass(frozen=True)
class Vessel:
    """An artery, arteriole or vein: rings in slide pixels, insides on their left."""

    kind: str
    outline: Float[np.ndarray, "n 2"]
    lumen: Float[np.ndarray, "n 2"]


def survey_terrain(recipe: Recipe, rng: np.random.Generator) -> Terrain:
    """Lay out tissue edge, cortex, rays and fibrosis of a slide."""
    size = np.array(recipe.size_px, float)
    cell = FIELD_CELL_UM / recipe.mpp
    shape = (int(np.ceil(size[1] / cell)), int(np.ceil(size[0] / cell)))
    turn = rng.uniform(0, 2 * np.pi)
    outward = np.array([np.cos(turn), np.sin(turn)])
    outline = _tissue_outline(size, rng)
    pole = size / 2 - outward * 0.95 * size.max()
    capsule = ring_normals(outline[None])[0] @ -outward > 0.45
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
    return Terrain(cell, outline, capsule, pole, cortex, ray, fibrosis, shade, inside)


def _tissue_outline(size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the edge of a section that nearly fills the slide, with glass around it."""
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    power = rng.uniform(2.6, 4.5)
    box = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle)) ** power) ** (-1 / power)
    wobble = np.zeros_like(angle)
    for order in range(1, 90):
        wobble += rng.normal() * 0.07 / order**1.5 * np.cos(order * angle + rng.uniform(0, 7))
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) * (box * (0.455 + 0.5 * wobble))[:, None]
    for _ in range(int(rng.integers(1, 4))):  # straight cuts of the knife
        turn = rng.uniform(0, 2 * np.pi)
        side = np.array([np.cos(turn), np.sin(turn)])
        beyond = ring @ side - rng.uniform(0.34, 0.46)
        ring -= np.maximum(beyond, 0)[:, None] * side
    return resample(np.clip(ring, -0.49, 0.49) * size + size / 2, 960)


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


def place_glomeruli(terrain: Terrain, recipe: Recipe, rng: np.random.Generator) -> list[Glomerulus]:
    """Scatter glomeruli over the cortex, away from rays and each other; draw up each."""
    radius_px = recipe.glomerulus_um / 2 / recipe.mpp
    room = terrain.cortex & terrain.inside & ~terrain.ray
    area_mm2 = (terrain.cortex & terrain.inside).sum() * (FIELD_CELL_UM / 1000) ** 2
    wanted = max(1, round(area_mm2 * recipe.glomeruli_per_mm2)) * (recipe.glomeruli_per_mm2 > 0)
    cells = np.argwhere(room)
    rng.shuffle(cells)
    kept: list[tuple[float, float, float]] = []
    edge = terrain.outline
    for row, column in cells[:4000]:
        if len(kept) >= wanted:
            break
        size = radius_px * np.exp(np.clip(rng.normal(), -2.2, 2.2) * recipe.glomerulus_spread)
        x, y = (np.array([column, row]) + rng.random(2)) * terrain.cell
        if np.hypot(*(edge - (x, y)).T).min() < 1.12 * size + 30 / recipe.mpp:
            continue
        if all(np.hypot(x - a, y - b) > 1.08 * (size + c) + 12 / recipe.mpp for a, b, c in kept):
            kept.append((float(x), float(y), float(size)))
    sclerosed = _pick_sclerosed(kept, terrain, recipe, rng)
    return [
        make_glomerulus(
            i + 1,
            (x, y),
            size * (0.72 if dead else 1.0),
            sclerosed=dead,
            recipe=recipe,
            rng=np.random.default_rng(rng.integers(2**63)),
        )
        for i, ((x, y, size), dead) in enumerate(zip(kept, sclerosed, strict=True))
    ]


def _pick_sclerosed(
    kept: list[tuple[float, float, float]],
    terrain: Terrain,
    recipe: Recipe,
    rng: np.random.Generator,
) -> list[bool]:
    """Choose which glomeruli are sclerosed: the recipe's share, sooner where it is fibrotic."""
    if not kept:
        return []
    places = np.array(kept)[:, :2]
    score = sample_field(terrain.fibrosis, places, terrain.cell) + rng.normal(0, 0.35, len(kept))
    count = recipe.sclerosed_fraction * len(kept)
    count = int(count) + int(rng.random() < count % 1)
    dead = np.zeros(len(kept), bool)
    dead[np.argsort(-score)[:count]] = True
    return dead.tolist()


def place_vessels(
    terrain: Terrain,
    glomeruli: list[Glomerulus],
    recipe: Recipe,
    rng: np.random.Generator,
) -> list[Vessel]:
    """Place arteries with their veins near the rays' ends, and arterioles by the glomeruli."""
    um = 1 / recipe.mpp
    taken = [(*g.xy, g.radius) for g in glomeruli]
    vessels: list[Vessel] = []

    def place(kind: str, near: np.ndarray, reach: float, radius: float) -> None:
        for _ in range(40):
            turn, out = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1) * reach
            x, y = near + np.array([np.cos(turn), np.sin(turn)]) * out
            clear = np.hypot(*(terrain.outline - (x, y)).T).min() > radius + 25 * um
            clear &= bool(sample_field(terrain.inside, np.array([x, y]), terrain.cell))
            if clear and all(np.hypot(x - a, y - b) > radius + c + 3 * um for a, b, c in taken):
                taken.append((float(x), float(y), radius))
                vessels.append(make_vessel(kind, np.array([x, y]), radius, recipe, rng))
                return

    cells = np.argwhere(terrain.cortex & terrain.inside) if terrain.cortex.any() else []
    area_mm2 = len(cells) * (FIELD_CELL_UM / 1000) ** 2
    for i in range(max(2, round(1.6 * area_mm2))):
        row, column = cells[rng.integers(len(cells))]
        near = np.array([column, row]) * terrain.cell
        radius = rng.uniform(55, 90) * um if i == 0 else rng.uniform(22, 46) * um
        place("artery", near, 500 * um, radius)
        if rng.random() < 0.7:
            place("vein", near, 320 * um, radius * rng.uniform(0.9, 1.7))
    for g in glomeruli:
        for _ in range(int(rng.integers(0, 3))):
            reach = g.radius + 24 * um
            place("arteriole", np.array(g.xy), reach, rng.uniform(9, 15) * um)
    return vessels


def make_vessel(
    kind: str,
    xy: Float[np.ndarray, " 2"],
    radius: float,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Vessel:
    """Draw up one vessel, cut somewhat aslant."""
    um = 1 / recipe.mpp
    aslant = np.array([1.0, rng.uniform(0.62, 1.0)])
    turn = rng.uniform(0, np.pi)
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    wobble = {"vein": 0.1, "artery": 0.04, "arteriole": 0.06}[kind]
    ring = wobbly_ring(radius, rng, wobble=wobble)
    share = rng.uniform(0.36, 0.5) if kind == "artery" else rng.uniform(0.44, 0.58)
    wall = 2.2 * um if kind == "vein" else share * radius * min(1.5, recipe.wall_scale**0.5)
    inner = ring * max(0.15, 1 - wall / radius)
    if kind == "artery":
        angle = np.linspace(0, 2 * np.pi, len(inner), endpoint=False)
        folds = np.cos(round(radius * recipe.mpp / 3.2) * angle + rng.normal(0, 0.5, len(angle)))
        inner = inner * (1 + 0.05 * folds[:, None])
        inner = round_rings(inner[None], 0.06 * radius)[0]
    return Vessel(kind, ring * aslant @ rotate + xy, inner * aslant @ rotate + xy)


def pack_tubules(
    terrain: Terrain,
    glomeruli: list[Glomerulus],
    vessels: list[Vessel],
    recipe: Recipe,
    rng: np.random.Generator,
) -> tuple[Tubules, Float[np.ndarray, "J 2"]]:
    """Fill the tissue with tubule profiles, edge to edge, round glomeruli and vessels.

    Returns:
        The tubules, and the points where three of them meet (room for capillaries).
    """
    um = 1 / recipe.mpp
    radii = tuple(r * um * recipe.tubule_scale for r in TUBULE_RADIUS_UM)
    board = DartBoard(recipe.size_px, radii, cell=max(1, round(2 * um)))
    board.block(terrain.outline, outside=True)
    solids = [g.outline for g in glomeruli] + [v.outline for v in vessels]
    for ring in solids:
        board.block(ring)
    spines, kinds = _throw_spines(board, terrain, recipe, rng)
    cells = _cells_of(spines, kinds, radii, solids, terrain, rng)
    owners = list(cells.outlines)
    outlines = list(cells.outlines.values())
    tubules = _finish_tubules(outlines, np.array(kinds)[owners], terrain, recipe, rng)
    return tubules, cells.junctions


# Rounds of darts: kind, zone, range of lengths in um, bend (radians per 100 um), share of the room.
_ROUNDS = (
    (COLLECTING, "medulla", (250, 700), 0.15, 0.16),
    (COLLECTING, "ray", (150, 500), 0.15, 0.2),
    (ASCENDING, "medulla", (150, 600), 0.2, 0.5),
    (ASCENDING, "ray", (100, 400), 0.3, 1.0),
    (PROXIMAL, "labyrinth", (90, 230), 1.9, 0.16),
    (DISTAL, "labyrinth", (40, 150), 1.6, 0.06),
    (PROXIMAL, "labyrinth", (20, 100), 1.5, 0.4),
    (DISTAL, "labyrinth", (0, 50), 1.2, 0.11),
    (PROXIMAL, "labyrinth", (0, 45), 0.8, 1.0),
    (PROXIMAL, "labyrinth", (0, 5), 0.0, 1.0),
    (ASCENDING, "medulla", (0, 120), 0.3, 0.8),
    (DISTAL, "labyrinth", (0, 20), 0.0, 1.0),
    (THIN, "medulla", (60, 350), 0.3, 1.0),
    (ASCENDING, "any", (0, 15), 0.0, 1.0),
    (THIN, "medulla", (0, 40), 0.0, 1.0),
    (THIN, "ray", (0, 80), 0.0, 1.0),
)


def _throw_spines(
    board: DartBoard, terrain: Terrain, recipe: Recipe, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[int]]:
    """Throw the rounds of darts; each stops at its share of the room or when none fits."""
    um, size = 1 / recipe.mpp, board.taken[0].shape
    places = (np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1) + 0.5) * board.cell
    cortex = sample_field(terrain.cortex, places, terrain.cell)
    ray = sample_field(terrain.ray, places, terrain.cell)
    zones = {"medulla": ~cortex, "ray": ray, "labyrinth": cortex & ~ray, "any": cortex | ~cortex}
    spines: list[np.ndarray] = []
    kinds: list[int] = []
    aslant = rng.uniform(0.25, 1.0)
    for kind, zone, lengths, bend, share in _ROUNDS:
        along = aslant if zone in ("medulla", "ray") else 1.0
        lengths = (lengths[0] * along * um, lengths[1] * along * um)
        goal = share * len(board.free_cells(kind, zones[zone])) * board.cell**2
        for _ in range(14):
            free = board.free_cells(kind, zones[zone])
            if goal <= 0 or not len(free):
                break
            middle, angle, length = _draw_batch(free, board, terrain, lengths, rng)
            if zone in ("labyrinth", "any"):
                angle = rng.uniform(0, np.pi, len(angle))
            turn = rng.normal(0, 1, len(length)) * bend * length / (100 * um)
            step = 0.8 * board.radii[kind]
            tries = make_spines(middle, angle, length, np.clip(turn, -3.6, 3.6), step=step)
            for spine, size in zip(tries, length, strict=True):
                if goal > 0 and board.try_spine(spine, kind):
                    goal -= 2.6 * board.radii[kind] * (size + 1.6 * board.radii[kind])
                    spines.append(spine)
                    kinds.append(kind)
    return spines, kinds


def _draw_batch(
    free: np.ndarray,
    board: DartBoard,
    terrain: Terrain,
    lengths: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw up to some hundred darts: middles in free cells, directions towards the pole."""
    area = (np.pi * board.radii[2] ** 2) / board.cell**2
    count = int(np.clip(len(free) / area * 4, 24, 1500))
    picked = rng.choice(free, min(count, len(free)), replace=False)
    width = board.taken[0].shape[1]
    middle = (np.stack([picked % width, picked // width], 1) + 0.5) * board.cell
    to_pole = np.arctan2(*(terrain.pole - middle).T[::-1])
    angle = to_pole + rng.normal(0, 0.09, len(picked))
    return middle, angle, rng.uniform(*lengths, len(picked))


def _cells_of(
    spines: list[np.ndarray],
    kinds: list[int],
    radii: tuple[float, ...],
    solids: list[np.ndarray],
    terrain: Terrain,
    rng: np.random.Generator,
) -> PowerCells:
    """Share the tissue out among spines; glomeruli, vessels and glass hold their ground."""
    counts = [len(spine) for spine in spines]
    size = np.array(radii)[kinds] * rng.uniform(0.88, 1.08, len(kinds))
    points, weights = [np.concatenate(spines)], [np.repeat(size, counts)]
    owners = [np.repeat(np.arange(len(spines)), counts)]
    guard = radii[DISTAL]
    for ring in solids:
        hold = min(guard, 0.3 * np.ptp(ring, axis=0).min())
        thick = resample(ring, max(8, int(np.pi * np.ptp(ring[:, 0]) / hold)))
        points.append(thick + ring_normals(thick[None])[0] * hold)
        weights.append(np.full(len(thick), hold))
    edge = terrain.outline - ring_normals(terrain.outline[None])[0] * guard
    far = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * 4.0 * terrain.outline.max()
    points += [edge, far]
    weights.append(np.full(len(edge) + len(far), guard))
    owners.append(np.full(sum(len(p) for p in points[1:]), -1))
    return power_cells(np.concatenate(points), np.concatenate(weights), np.concatenate(owners))


def _finish_tubules(
    cells: list[np.ndarray],
    kinds: np.ndarray,
    terrain: Terrain,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Tubules:
    """Round the cells, leave interstitium between them, more where it is fibrotic."""
    um = 1 / recipe.mpp
    rings = np.stack([resample(cell, 96) for cell in cells])
    rings = round_rings(rings, 6.5 * um * np.array([1, 0.9, 1, 0.8, 0.5])[kinds])
    fibrosis = sample_field(terrain.fibrosis, rings, terrain.cell)
    medulla = ~sample_field(terrain.cortex, rings.mean(1), terrain.cell)
    lonely = rng.exponential(0.5, len(rings)) * um
    gap = (0.55 + 1.4 * medulla)[:, None] * um + lonely[:, None]
    gap = gap + fibrosis**1.5 * rng.uniform(2.5, 8, (len(rings), 1)) * um
    rings = rings + ring_normals(rings) * gap[..., None]
    half = np.array([2 * ring_area(r) / np.hypot(*np.diff(r, axis=0).T).sum() for r in rings])
    wall = np.array(EPITHELIUM_SHARE)[kinds] * half * rng.uniform(0.78, 1.22, len(kinds))
    wall = np.minimum(wall, np.array(EPITHELIUM_LIMIT_UM)[kinds] * um)
    mean_fibrosis = fibrosis.mean(1)
    wall *= (1 - 0.45 * mean_fibrosis) * (1 - 0.25 * recipe.haze)
    tint = np.exp(rng.normal(0, 0.1, len(kinds)))
    content = np.exp(np.clip(rng.normal(0.1, 0.7, len(kinds)), -1.5, 0.9))
    return Tubules(rings, kinds, wall, tint, content, mean_fibrosis)
