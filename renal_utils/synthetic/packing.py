"""Packing: how bodies fill the plane edge to edge, as vectors.

Tubules are cut by the section at all angles, so a profile is a *spine* (a point, a line or an arc)
with a radius. Spines are thrown like darts, none nearer to another than their radii allow. Then the
power diagram (Aurenhammer 1987) of discs along the spines shares the plane out: each profile takes
the cells of its own discs, which gives straight borders between neighbours and no gaps.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import ConvexHull


@dataclass
class DartBoard:
    """Where there is still room, for each size of body, on a grid of ``cell`` pixels.

    Attributes:
        size_px: Width and height of the plane.
        radii: The radii that bodies may have, pixels.
        cell: Width of a grid cell, pixels.
    """

    size_px: tuple[int, int]
    radii: tuple[float, ...]
    cell: int = 4
    taken: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        width, height = (-(-s // self.cell) for s in self.size_px)
        self.taken = [np.zeros((height, width), np.uint8) for _ in self.radii]

    def block(self, polygon: Float[np.ndarray, "n 2"], *, outside: bool = False) -> None:
        """Keep bodies out of a polygon, or out of everything but it."""
        points = [np.round(polygon / self.cell).astype(np.int32)]
        for radius, taken in zip(self.radii, self.taken, strict=True):
            if outside:
                mask = np.full_like(taken, 255)
                cv2.fillPoly(mask, points, 0)
                np.maximum(taken, mask, out=taken)
            else:
                cv2.fillPoly(taken, points, 255)
            cv2.polylines(taken, points, True, 255, max(1, round(1.8 * radius / self.cell)))

    def free_cells(self, size_class: int, where: np.ndarray | None = None) -> Int[np.ndarray, " n"]:
        """Return flat indices of the cells where a body of this size may have its middle."""
        free = self.taken[size_class] == 0
        return np.flatnonzero(free if where is None else free & where)

    def have_room(
        self, spines: list[Float[np.ndarray, "_ 2"]], size_class: int
    ) -> Bool[np.ndarray, " N"]:
        """Say which spines `try_spine` would place now, each alone."""
        cells = (np.concatenate(spines) / self.cell).astype(np.int32)
        taken = self.taken[size_class]
        blocked = ((cells < 0) | (cells >= taken.shape[::-1])).any(1)
        inner = np.flatnonzero(~blocked)
        blocked[inner] = taken[cells[inner, 1], cells[inner, 0]] > 0
        counts = [len(spine) for spine in spines]
        return ~np.logical_or.reduceat(blocked, np.cumsum([0, *counts[:-1]]))

    def try_spine(self, spine: Float[np.ndarray, "n 2"], size_class: int) -> bool:
        """Place a spine if there is room along all of it; say whether there was."""
        cells = (spine / self.cell).astype(np.int32)
        taken = self.taken[size_class]
        if cells.min() < 0 or (cells[:, 0].max() >= taken.shape[1]):
            return False
        if cells[:, 1].max() >= taken.shape[0] or taken[cells[:, 1], cells[:, 0]].any():
            return False
        for radius, other in zip(self.radii, self.taken, strict=True):
            thickness = max(1, round(1.86 * (radius + self.radii[size_class]) / self.cell))
            cv2.circle(other, cells[0].tolist(), thickness // 2, 255, -1)
            cv2.polylines(other, [cells], False, 255, thickness)
        return True


def make_spines(
    middle: Float[np.ndarray, "N 2"],
    angle: Float[np.ndarray, " N"],
    length: Float[np.ndarray, " N"],
    bend: Float[np.ndarray, " N"],
    *,
    step: float,
) -> list[Float[np.ndarray, "_ 2"]]:
    """Return arcs as points about every ``step`` pixels.

    Args:
        middle: Middles of the arcs, pixels.
        angle: Their directions there, radians.
        length: Their lengths, pixels.
        bend: How far each turns from end to end, radians.
        step: Distance of the points, pixels.
    """
    counts = np.maximum((length / step).astype(int) + 1, 1)
    which = np.repeat(np.arange(len(counts)), counts)
    order = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    s = order / np.maximum(counts - 1, 1)[which] - 0.5
    heading = angle[which] + bend[which] * s
    apart = (length / np.maximum(counts - 1, 1))[which, None]
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * apart, axis=0)
    at_middle = path[np.cumsum(counts) - counts + counts // 2]
    points = path + (middle - at_middle)[which]
    ends = np.cumsum(counts).tolist()
    return [points[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class PowerCells:
    """A plane shared out: each owner's outline, and the points where three owners meet."""

    outlines: dict[int, Float[np.ndarray, "_ 2"]]
    junctions: Float[np.ndarray, "J 2"]


def power_cells(
    points: Float[np.ndarray, "N 2"], radii: Float[np.ndarray, " N"], owners: Int[np.ndarray, " N"]
) -> PowerCells:
    """Share the plane among owners of discs by the power diagram; return each owner's outline.

    A place belongs to the disc with the least (distance^2 - radius^2); an owner gets the cells of
    all its discs. The diagram is read off the lower convex hull of the points lifted to
    z = x^2 + y^2 - radius^2. An owner in several pieces keeps the one with the longest outline.

    Args:
        points: Centres of the discs, pixels.
        radii: Their radii, pixels.
        owners: Whose disc each is; negative for nobody's (its outline is not returned).
    """
    shift = points.mean(0)
    flat = points - shift
    hull = ConvexHull(np.column_stack([flat, (flat**2).sum(1) - radii**2]))
    lower = hull.equations[:, 2] < -1e-12
    normals = np.where(lower[:, None], hull.equations[:, :3], [0.0, 0.0, -1.0])
    corners = -normals[:, :2] / (2 * normals[:, 2:]) + shift
    start, end, owner = _owner_borders(hull, flat, owners, lower)
    a, b, c = owners[hull.simplices].T
    meet = lower & (a != b) & (b != c) & (a != c)
    return PowerCells(_chain(start, end, owner, corners), corners[meet])


def _owner_borders(
    hull: ConvexHull, flat: np.ndarray, owners: np.ndarray, lower: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the borders as directed steps between triangles, with the owner on the left."""
    triangles, neighbours = hull.simplices.copy(), hull.neighbors.copy()
    a, b, c = (flat[triangles[:, i]] for i in range(3))
    ab, ac = b - a, c - a
    clockwise = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0] < 0
    triangles[clockwise, 1:] = triangles[clockwise, :0:-1]
    neighbours[clockwise, 1:] = neighbours[clockwise, :0:-1]
    start, end, left = [], [], []
    for i in range(3):
        mine, other = owners[triangles[:, i - 1]], owners[triangles[:, i - 2]]
        ok = lower & lower[neighbours[:, i]] & (mine != other) & (mine >= 0)
        start.append(np.flatnonzero(ok))
        end.append(neighbours[ok, i])
        left.append(mine[ok])
    return np.concatenate(start), np.concatenate(end), np.concatenate(left)


def _chain(
    start: np.ndarray, end: np.ndarray, owner: np.ndarray, corners: np.ndarray
) -> dict[int, Float[np.ndarray, "_ 2"]]:
    """Follow directed steps round each owner; keep its longest closed outline."""
    base = len(corners)
    order = np.argsort(owner * base + start)
    start, end, owner = start[order], end[order], owner[order]
    keys = owner * base + start
    place = np.minimum(np.searchsorted(keys, owner * base + end), len(keys) - 1)
    follows = np.where(keys[place] == owner * base + end, place, -1).tolist()
    seen = bytearray(len(follows))
    outlines: dict[int, np.ndarray] = {}
    for first in range(len(follows)):
        if seen[first]:
            continue
        ring, at = [], first
        while at >= 0 and not seen[at]:
            seen[at] = 1
            ring.append(at)
            at = follows[at]
        whose = int(owner[first])
        if at == first and len(ring) > max(2, len(outlines.get(whose, ()))):
            outlines[whose] = corners[start[ring]]
    return outlines


def resample(ring: Float[np.ndarray, "n 2"], count: int) -> Float[np.ndarray, "k 2"]:
    """Return ``count`` points at equal distances along a closed ring."""
    closed = np.vstack([ring, ring[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    places = np.linspace(0, along[-1], count, endpoint=False)
    return np.stack([np.interp(places, along, closed[:, i]) for i in range(2)], 1)


def resample_all(rings: list[Float[np.ndarray, "_ 2"]], count: int) -> Float[np.ndarray, "N k 2"]:
    """Return `resample` of many rings, to the last bit, some hundred at a time."""
    parts = [_resample_some(rings[i : i + 256], count) for i in range(0, len(rings), 256)]
    return np.concatenate(parts)


def _resample_some(rings: list[np.ndarray], count: int) -> np.ndarray:
    """Resample rings side by side: shorter ones are filled up with their first point."""
    length = max(len(ring) for ring in rings) + 1
    closed = np.stack([np.vstack([r, np.repeat(r[:1], length - len(r), 0)]) for r in rings])
    steps = np.diff(closed, axis=1)
    along = np.zeros((len(rings), length))
    np.cumsum(np.hypot(steps[..., 0], steps[..., 1]), axis=1, out=along[:, 1:])
    places = np.arange(count) * (along[:, -1:] / count)
    before = (along[:, None] <= places[..., None]).sum(-1) - 1
    which = np.arange(len(rings))[:, None]
    run = along[which, before + 1] - along[which, before]
    slope = steps[which, before] / run[..., None]
    return slope * (places - along[which, before])[..., None] + closed[which, before]


def round_rings(
    rings: Float[np.ndarray, "N K 2"], rounding: Float[np.ndarray, " N"] | float
) -> Float[np.ndarray, "N K 2"]:
    """Round the corners of closed rings by smoothing along their length.

    Args:
        rings: Points at equal distances along each ring.
        rounding: Standard deviation of the smoothing, pixels along the ring.
    """
    z = rings[..., 0] + 1j * rings[..., 1]
    spacing = np.abs(np.diff(z, axis=1, append=z[:, :1])).mean(1)
    sigma = np.broadcast_to(rounding, spacing.shape) / np.maximum(spacing, 1e-6)
    frequency = np.fft.fftfreq(z.shape[1])
    transfer = np.exp(-2 * (np.pi * sigma[:, None] * frequency[None]) ** 2)
    smooth = np.fft.ifft(np.fft.fft(z, axis=1) * transfer, axis=1)
    return np.stack([smooth.real, smooth.imag], -1)


def ring_normals(rings: Float[np.ndarray, "N K 2"]) -> Float[np.ndarray, "N K 2"]:
    """Return unit normals that point into rings whose inside is on the left (as `power_cells`)."""
    tangent = np.roll(rings, -1, axis=1) - np.roll(rings, 1, axis=1)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=-1, keepdims=True), 1e-6)
    return np.stack([-tangent[..., 1], tangent[..., 0]], -1)


def wobbly_ring(
    radius: float, rng: np.random.Generator, *, count: int = 96, wobble: float = 0.05
) -> Float[np.ndarray, "k 2"]:
    """Return a closed ring round (0, 0), nearly a circle, with gentle dents and an oval tendency.

    Its inside lies on the left of its direction, as with `power_cells`.
    """
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    size = np.ones(count)
    for order in range(2, 7):
        strength = rng.normal() * wobble / (order - 1) ** 0.7
        size += strength * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return radius * size[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def ring_area(ring: Float[np.ndarray, "n 2"]) -> float:
    """Return the area inside a closed ring, by the shoelace formula."""
    x, y = (ring - ring[0]).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
