"""Nuclei: placed where each tissue has them, as ellipses with instance ids."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from renal_utils.synthetic.anatomy import Vessel
from renal_utils.synthetic.crescent import Crescent
from renal_utils.synthetic.noise import sample_field
from renal_utils.synthetic.packing import resample, ring_normals
from renal_utils.synthetic.recipe import Recipe
from renal_utils.synthetic.terrain import Terrain
from renal_utils.synthetic.tubules import Tubules
from renal_utils.synthetic.tuft import Glomerulus

NUCLEUS_NAMES = (
    "tubular",
    "flat",
    "interstitial",
    "lymphocyte",
    "glomerular",
    "podocyte",
    "muscle",
    "crescent",
)
TUBULAR, FLAT, INTERSTITIAL, LYMPHOCYTE, GLOMERULAR, PODOCYTE, MUSCLE, CRESCENT = range(8)

# Half axes in micrometres and darkness of each kind.
_AXES_UM = np.array(
    [[2.9, 2.6], [3.3, 1.2], [4.2, 1.2], [2.5, 2.3], [3.0, 2.2], [3.2, 2.6], [5, 1], [3.6, 1.9]]
)
_DARKNESS = np.array([0.78, 1.0, 1.08, 1.3, 1.05, 0.8, 0.9, 0.95])
# Spacing of nuclei along a tubule's wall in micrometres, by the tubule's kind.
_SPACING_UM = np.array([11.0, 9.6, 9.6, 9.6, 17.0])


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of a slide; the instance id of row i is i + 1.

    Attributes:
        xy: Centres, slide pixels.
        axes: Half axes, pixels.
        angle: Direction of the first axis, radians.
        kind: Index into ``NUCLEUS_NAMES``.
        darkness: Haematoxylin of each, about 1.
    """

    xy: Float[np.ndarray, "N 2"]
    axes: Float[np.ndarray, "N 2"]
    angle: Float[np.ndarray, " N"]
    kind: Int[np.ndarray, " N"]
    darkness: Float[np.ndarray, " N"]


class _Heap:
    """Gathers places, directions and kinds of nuclei."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def add(self, xy: np.ndarray, angle: np.ndarray, kind: int) -> None:
        xy = xy.reshape(-1, 2)
        self.rows.append(np.column_stack([xy, np.ravel(angle), np.full(len(xy), kind)]))


def place_nuclei(
    terrain: Terrain,
    glomeruli: list[Glomerulus],
    vessels: list[Vessel],
    tubules: Tubules,
    junctions: Float[np.ndarray, "J 2"],
    *,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Nuclei:
    """Place all nuclei of a slide; none overlaps another by much."""
    um = 1 / recipe.mpp
    outer, inner = _Heap(), _Heap()
    _line_tubules(outer, tubules, um, rng)
    _fill_interstitium(outer, terrain, tubules, junctions, um, rng)
    _line_capsule(outer, terrain, um, rng)
    for vessel in vessels:
        _line_vessel(inner, vessel, um, rng)
    for glomerulus in glomeruli:
        _fill_glomerulus(inner, glomerulus, um, rng)
    free = np.concatenate(outer.rows)
    free = free[~_in_solids(free[:, :2], glomeruli, vessels, recipe)]
    rows = np.concatenate([free, *inner.rows])
    return _finish(_thin_out(rows, 3.9 * um), um, rng)


def _walk(
    rings: np.ndarray, spacing: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ring index, position along it in vertices, ) of points about ``spacing`` apart."""
    perimeter = np.hypot(*np.moveaxis(np.roll(rings, -1, 1) - rings, -1, 0)).sum(1)
    counts = np.maximum(perimeter / spacing * rng.uniform(0.8, 1.1, len(rings)), 0).astype(int)
    which = np.repeat(np.arange(len(rings)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    order = np.arange(len(which)) - first + rng.uniform(-0.45, 0.45, len(which))
    return which, order / np.maximum(counts[which], 1) * rings.shape[1], counts


def _at(values: np.ndarray, which: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Interpolate per-vertex values of rings at fractional vertex positions."""
    count = values.shape[1]
    low = np.floor(place).astype(int)
    part = (place - low)[:, None]
    return values[which, low % count] * (1 - part) + values[which, (low + 1) % count] * part


def _line_tubules(heap: _Heap, tubules: Tubules, um: float, rng: np.random.Generator) -> None:
    """Line tubules with nuclei in the basal half of the epithelium."""
    normals = ring_normals(tubules.rings)
    which, place, _ = _walk(tubules.rings, _SPACING_UM[tubules.kind] * um, rng)
    depth = np.maximum(tubules.wall_px[which] * rng.uniform(0.32, 0.62, len(which)), 2.6 * um)
    thin = tubules.kind[which] == 4
    depth[thin] = 1.6 * um
    normal = _at(normals, which, place)
    xy = _at(tubules.rings, which, place) + normal * depth[:, None]
    angle = np.arctan2(normal[:, 1], normal[:, 0]) + np.pi / 2
    heap.add(xy[~thin], angle[~thin] + rng.uniform(0, 3, (~thin).sum()), TUBULAR)
    heap.add(xy[thin], angle[thin], FLAT)


def _fill_interstitium(
    heap: _Heap,
    terrain: Terrain,
    tubules: Tubules,
    junctions: np.ndarray,
    um: float,
    rng: np.random.Generator,
) -> None:
    """Put spindle cells along tubules and at junctions, lymphocytes where it is fibrotic."""
    normals = ring_normals(tubules.rings)
    which, place, _ = _walk(tubules.rings, np.full(len(tubules.kind), 42 * um), rng)
    normal = _at(normals, which, place)
    xy = _at(tubules.rings, which, place) - normal * rng.uniform(0.7, 1.6, (len(which), 1)) * um
    heap.add(xy, np.arctan2(normal[:, 1], normal[:, 0]) + np.pi / 2, INTERSTITIAL)
    some = junctions[rng.random(len(junctions)) < 0.4]
    some = some + rng.normal(0, 1.2 * um, some.shape)
    heap.add(some, rng.uniform(0, np.pi, len(some)), INTERSTITIAL)
    crowd = _scatter(terrain, 0.012 / um**2, rng)
    tree = cKDTree(tubules.rings.reshape(-1, 2))
    distance, vertex = tree.query(crowd)
    inward = ((crowd - tree.data[vertex]) * normals.reshape(-1, 2)[vertex]).sum(1)
    crowd = crowd[(inward < 0) & (distance > 1.8 * um)]
    heap.add(crowd, rng.uniform(0, np.pi, len(crowd)), LYMPHOCYTE)


def _scatter(terrain: Terrain, density: float, rng: np.random.Generator) -> np.ndarray:
    """Scatter points in the tissue, ``density`` a square pixel where fibrosis is full."""
    rate = density * terrain.cell**2 * terrain.fibrosis**1.5 * terrain.inside
    counts = rng.poisson(rate)
    cells = np.repeat(np.argwhere(counts > 0), counts[counts > 0], axis=0)[:, ::-1]
    return (cells + rng.random(cells.shape)) * terrain.cell


def _line_capsule(heap: _Heap, terrain: Terrain, um: float, rng: np.random.Generator) -> None:
    """Put flat cells along the kidney's capsule."""
    normal = ring_normals(terrain.outline[None])
    which, place, _ = _walk(terrain.outline[None], np.array([16 * um]), rng)
    on = terrain.capsule[np.floor(place).astype(int) % len(terrain.capsule)]
    which, place = which[on], place[on]
    inward = _at(normal, which, place)
    depth = rng.uniform(2, 12, (len(which), 1)) * um
    heap.add(
        _at(terrain.outline[None], which, place) + inward * depth,
        np.arctan2(inward[:, 1], inward[:, 0]) + np.pi / 2,
        INTERSTITIAL,
    )


def _line_vessel(heap: _Heap, vessel: Vessel, um: float, rng: np.random.Generator) -> None:
    """Put muscle cells round the wall in layers, flat cells on its inner face."""
    if vessel.kind != "vein":
        gap = np.hypot(*(vessel.outline - vessel.lumen).T).mean()
        layers = max(1, int(gap / (6.5 * um)))
        for t in (np.arange(layers) + 0.5) / layers:
            ring = (vessel.outline * t + vessel.lumen * (1 - t))[None]
            _along(heap, ring, 14 * um, 0.0, MUSCLE, rng)
    _along(heap, vessel.lumen[None], 15 * um, -0.8 * um, FLAT, rng)


def _along(
    heap: _Heap,
    rings: np.ndarray,
    spacing: float,
    depth: float,
    kind: int,
    rng: np.random.Generator,
) -> None:
    """Put nuclei along rings, lying with them, ``depth`` pixels inwards."""
    normals = ring_normals(rings)
    which, place, _ = _walk(rings, np.full(len(rings), spacing), rng)
    normal = _at(normals, which, place)
    angle = np.arctan2(normal[:, 1], normal[:, 0]) + np.pi / 2
    heap.add(_at(rings, which, place) + normal * depth, angle, kind)


def _fill_glomerulus(heap: _Heap, g: Glomerulus, um: float, rng: np.random.Generator) -> None:
    """Fill a tuft: mesangial and endothelial nuclei inside, podocytes and parietal cells around."""
    if g.sclerosed:
        few = np.array(g.xy) + rng.uniform(-0.7, 0.7, (int(rng.integers(6, 20)), 2)) * g.radius
        heap.add(few, rng.uniform(0, 3, len(few)), INTERSTITIAL)
        return
    if g.crescent is not None:
        _fill_crescent(heap, g.crescent, um, rng)
    _along(heap, g.outline[None], 30 * um, g.capsule_px + 0.9 * um, FLAT, rng)
    middles = np.array([cell.mean(0) for cell in g.mesangium]).reshape(-1, 2)
    middles = middles[rng.random(len(middles)) < 0.8]
    heap.add(middles, rng.uniform(0, 3, len(middles)), GLOMERULAR)
    solid = np.array([cell.mean(0) for cell in g.nodules]).reshape(-1, 2)
    solid = solid[rng.random(len(solid)) < 0.12]
    heap.add(solid, rng.uniform(0, 3, len(solid)), GLOMERULAR)
    if len(g.loops):
        some = g.loops[rng.random(len(g.loops)) < 0.85]
        vertex = rng.integers(0, some.shape[1], len(some))
        spot = some[np.arange(len(some)), vertex]
        heap.add(spot, rng.uniform(0, 3, len(spot)), GLOMERULAR)
    _along(heap, resample(g.tuft, 96)[None], 19 * um, 0.6 * um, PODOCYTE, rng)
    if len(g.slits):
        rim = g.slits[rng.random(len(g.slits)) < 0.6]
        heap.add(rim[:, 0], rng.uniform(0, 3, len(rim)), PODOCYTE)


def _fill_crescent(heap: _Heap, crescent: Crescent, um: float, rng: np.random.Generator) -> None:
    """Put nuclei into each layer of a crescent, lying with it, where the layer is thick enough."""
    thick = np.hypot(*(crescent.outer - crescent.inner).T) / crescent.layers
    for layer in range(crescent.layers):
        path = crescent.path((layer + 0.5) / crescent.layers)
        steps = np.hypot(*np.diff(path, axis=0).T)
        along = np.concatenate([[0.0], np.cumsum(steps)])
        count = int(along[-1] / (9.0 * um))
        place = (np.arange(count) + rng.uniform(0.1, 0.9, count)) * along[-1] / max(count, 1)
        place = place[np.interp(place, along, thick) > 3.2 * um]
        xy = np.stack([np.interp(place, along, values) for values in path.T], 1)
        at = np.clip(np.searchsorted(along, place), 1, len(path) - 1)
        heading = np.arctan2(*(path[at] - path[at - 1]).T[::-1])
        heap.add(xy, heading + rng.normal(0, 0.25, len(xy)), CRESCENT)


def _in_solids(
    xy: np.ndarray, glomeruli: list[Glomerulus], vessels: list[Vessel], recipe: Recipe
) -> np.ndarray:
    """Say which points lie in or at the edge of a glomerulus or vessel."""
    cell = 2.0 / recipe.mpp
    width, height = (int(s / cell) + 1 for s in recipe.size_px)
    mask = np.zeros((height, width), np.uint8)
    for ring in [g.outline for g in glomeruli] + [v.outline for v in vessels]:
        points = [np.round(ring / cell - 0.5).astype(np.int32)]
        cv2.fillPoly(mask, points, 1)
        cv2.polylines(mask, points, True, 1, 2)
    return sample_field(mask, xy, cell) > 0


def _thin_out(rows: np.ndarray, distance: float) -> np.ndarray:
    """Drop nuclei that lie nearer than ``distance`` to one that stands before them."""
    pairs = cKDTree(rows[:, :2]).query_pairs(distance, output_type="ndarray")
    keep = np.ones(len(rows), bool)
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    for i, j in pairs.tolist():
        if keep[i]:
            keep[j] = False
    return rows[keep]


def _finish(rows: np.ndarray, um: float, rng: np.random.Generator) -> Nuclei:
    """Give each nucleus its size and darkness."""
    kind = rows[:, 3].astype(int)
    axes = _AXES_UM[kind] * um * np.exp(rng.normal(0, 0.1, (len(rows), 2)))
    darkness = _DARKNESS[kind] * np.exp(rng.normal(0, 0.13, len(rows)))
    return Nuclei(rows[:, :2], axes, rows[:, 2], kind, darkness)
