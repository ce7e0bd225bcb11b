"""Tubules: profiles of every kind, packed edge to edge round glomeruli and vessels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from renal_utils.synthetic.anatomy import Vessel
from renal_utils.synthetic.noise import sample_field
from renal_utils.synthetic.packing import (
    DartBoard,
    PowerCells,
    make_spines,
    power_cells,
    resample,
    resample_all,
    ring_area,
    ring_normals,
    round_rings,
)
from renal_utils.synthetic.recipe import Recipe
from renal_utils.synthetic.terrain import Terrain
from renal_utils.synthetic.tuft import Glomerulus

# Kinds of tubule: radius thrown (they grow by a fifth in the packing), in micrometres, and height
# of the epithelium as a share of the profile's half width.
PROXIMAL, DISTAL, COLLECTING, ASCENDING, THIN = range(5)
TUBULE_NAMES = ("proximal", "distal", "collecting", "ascending", "thin")
TUBULE_RADIUS_UM = (21.5, 15.5, 18.0, 12.5, 7.5)
EPITHELIUM_SHARE = (0.72, 0.47, 0.45, 0.5, 0.3)
EPITHELIUM_LIMIT_UM = (19.0, 9.5, 11.0, 8.0, 3.0)


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

    @cached_property
    def corners(self) -> tuple[Float[np.ndarray, "T 2"], Float[np.ndarray, "T 2"]]:
        """Left top and right bottom corners of the rings."""
        return self.rings.min(1), self.rings.max(1)


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
    for kind, zone, (low, high), bend, share in _ROUNDS:
        along = (aslant if zone in ("medulla", "ray") else 1.0) * um
        lengths = (low * along, high * along)
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
            for i in np.flatnonzero(board.have_room(tries, kind)).tolist():
                if goal > 0 and board.try_spine(tries[i], kind):
                    goal -= 2.6 * board.radii[kind] * (length[i] + 1.6 * board.radii[kind])
                    spines.append(tries[i])
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
    rings = resample_all(cells, 96)
    rings = round_rings(rings, 6.5 * um * np.array([1, 0.9, 1, 0.8, 0.5])[kinds])
    fibrosis = sample_field(terrain.fibrosis, rings, terrain.cell)
    medulla = ~sample_field(terrain.cortex, rings.mean(1), terrain.cell)
    lonely = rng.exponential(0.5, len(rings)) * um
    gap = (0.55 + 1.4 * medulla)[:, None] * um + lonely[:, None]
    gap = gap + fibrosis**1.5 * rng.uniform(2.5, 8, (len(rings), 1)) * um
    rings = rings + ring_normals(rings) * gap[..., None]
    half = np.array([2 * ring_area(r) / np.hypot(*np.diff(r, axis=0).T).sum() for r in rings])
    wall = np.array(EPITHELIUM_SHARE)[kinds] * half * rng.uniform(0.78, 1.22, len(kinds))
    wall *= recipe.epithelium
    wall = np.minimum(wall, np.array(EPITHELIUM_LIMIT_UM)[kinds] * um)
    mean_fibrosis = fibrosis.mean(1)
    wall *= (1 - 0.45 * mean_fibrosis) * (1 - 0.25 * recipe.haze)
    tint = np.exp(rng.normal(0, 0.1 * recipe.tubule_contrast, len(kinds)))
    content = np.exp(np.clip(rng.normal(0.1, 0.7, len(kinds)), -1.5, 0.9))
    return Tubules(rings, kinds, wall, tint, content, mean_fibrosis)
