"""Outlines and pixels: polygons drawn into masks, masks traced to polygons.

Coordinates have their origin at the left top corner of the image; pixel (column, row) covers the
square from (column, row) to (column + 1, row + 1), as in QuPath and GeoJSON exports of it.

A pixel belongs to a polygon when its centre lies inside, by the even-odd rule; a centre exactly on
an outline belongs to the shape on its right or below it. So two shapes that share a border never
share a pixel and leave none out, whatever the scale. OpenCV's and Pillow's fills also take the
pixels that the outline crosses, and grow each object by about half a pixel: published masks drawn
with Pillow agree with ours to a Dice of 0.996 for glomeruli 200 pixels wide and only 0.944 for
nuclei 25 pixels wide, though both came from the same outlines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int32, Integer, Shaped, UInt8
from scipy import ndimage
from shapely import MultiPolygon, Polygon

from renal_utils.labels import IGNORE_ID, LabelSet

_SYNONYMS = {"glomeruli": "glomerulus", "nuclei": "nucleus"}


@dataclass(frozen=True)
class PolygonObject:
    """One outlined object: what it is, its shape in level-0 pixels, what else its file says."""

    label: str
    polygon: Polygon | MultiPolygon
    properties: dict[str, Any] = field(default_factory=dict)


def fill_polygon(
    polygon: Polygon | MultiPolygon,
    columns: Float[np.ndarray, " w"],
    rows: Float[np.ndarray, " h"],
) -> Bool[np.ndarray, "h w"]:
    """Say which points of a grid lie inside a polygon, by the even-odd rule.

    Each edge flips everything right of where it crosses a row; holes need no care.

    Args:
        polygon: Shape, with holes if it has any.
        columns: x of the grid, ascending; pixel centres stand at whole numbers plus a half.
        rows: y of the grid, ascending.
    """
    x0, y0, x1, y1 = _rising_edges(polygon)
    first, last = np.searchsorted(rows, y0), np.searchsorted(rows, y1)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    x = x0[edge] + (rows[row] - y0[edge]) * ((x1 - x0) / (y1 - y0))[edge]
    column = np.searchsorted(columns, x)
    flips = np.zeros((len(rows), len(columns) + 1), np.uint8)
    np.add.at(flips, (row, column), np.uint8(1))
    np.add.accumulate(flips, axis=1, out=flips)
    return (flips[:, :-1] & 1).view(bool)


def draw_polygons(
    polygons: Sequence[Polygon | MultiPolygon],
    values: Sequence[int],
    canvas: Shaped[np.ndarray, "h w"],
    columns: Float[np.ndarray, " w"],
    rows: Float[np.ndarray, " h"],
) -> None:
    """Write ``values`` where polygons cover a grid; where they overlap the first keeps the pixel.

    Args:
        polygons: Shapes, in the order of their right to a pixel.
        values: The number to write for each.
        canvas: Written in place; what it holds before is overwritten only inside polygons.
        columns: x of the grid, ascending.
        rows: y of the grid, ascending.
    """
    free = np.ones(canvas.shape, bool)
    for polygon, value in zip(polygons, values, strict=True):
        left, top, right, bottom = polygon.bounds
        x0, x1 = np.searchsorted(columns, (left, right)).tolist()
        y0, y1 = np.searchsorted(rows, (top, bottom)).tolist()
        if x0 == x1 or y0 == y1:
            continue
        window = slice(y0, y1), slice(x0, x1)
        inside = fill_polygon(polygon, columns[x0:x1], rows[y0:y1])
        canvas[window][inside & free[window]] = value
        free[window] &= ~inside


def rasterise(
    objects: Sequence[PolygonObject], size_px: tuple[int, int]
) -> Int32[np.ndarray, "h w"]:
    """Draw objects as an instance map: the k-th object's pixels hold k, background holds 0.

    Where objects overlap the first keeps the pixel. Parts outside the image are cut off.

    Args:
        objects: Outlines in pixels of the image.
        size_px: (width, height) of the image.
    """
    columns, rows = pixel_centres(size_px)
    canvas = np.zeros((size_px[1], size_px[0]), np.int32)
    draw_polygons([o.polygon for o in objects], range(1, len(objects) + 1), canvas, columns, rows)
    return canvas


def rasterise_labels(
    objects: Sequence[PolygonObject], size_px: tuple[int, int], label_set: LabelSet
) -> UInt8[np.ndarray, "h w"]:
    """Draw objects as a map of class ids; pixels in none are background.

    A label set without a background leaves them ``IGNORE_ID``.

    Raises:
        ValueError: If an object's label is no class of the set (see ``class_id_of``).
    """
    columns, rows = pixel_centres(size_px)
    fill = 0 if label_set.has_background else IGNORE_ID
    canvas = np.full((size_px[1], size_px[0]), fill, np.uint8)
    ids = [class_id_of(o.label, label_set) for o in objects]
    draw_polygons([o.polygon for o in objects], ids, canvas, columns, rows)
    return canvas


def class_id_of(label: str, label_set: LabelSet) -> int:
    """Return the id of the class that a file's label means.

    Case, blanks, hyphens and the plural do not count; "sclerosed" is dropped where the set does not
    tell it apart. An empty label means the one foreground class, where there is only one.

    Raises:
        ValueError: If the set has no such class; the message lists those it has.
    """
    name = label.strip().lower().replace(" ", "_").replace("-", "_")
    if not name and len(label_set.foreground) == 1:
        return label_set.foreground[0].id
    prefix, found, rest = name.rpartition("sclerosed_")
    rest = _SYNONYMS.get(rest, rest)
    for candidate in (prefix + found + rest, rest, rest.removesuffix("s")):
        if candidate in label_set.names:
            return label_set.id_of(candidate)
    raise ValueError(
        f"label {label!r} is no class of label set {label_set.name!r}, which has "
        f"{list(label_set.names)}; rename the label or choose another label set"
    )


def pixel_centres(
    size_px: tuple[int, int],
) -> tuple[Float[np.ndarray, " w"], Float[np.ndarray, " h"]]:
    """Return x and y of the pixel centres of an image of (width, height)."""
    return np.arange(size_px[0]) + 0.5, np.arange(size_px[1]) + 0.5


def mask_to_polygons(
    mask: Bool[np.ndarray, "h w"], *, connectivity: int = 1, tolerance_px: float | int = 0
) -> list[Polygon | MultiPolygon]:
    """Trace a mask along its pixels' edges: one polygon, with its holes, for each region.

    Drawing the polygons gives back the mask bit for bit as long as ``tolerance_px`` is 0.

    Args:
        mask: True inside.
        connectivity: 1 parts regions that touch by a corner only; 2 keeps them together, as a
            ``MultiPolygon``, since no valid polygon can.
        tolerance_px: Drop corners that move the outline by at most this far, in pixels.

    Returns:
        Valid polygons in pixels of the mask, by their topmost row, then leftmost column.
    """
    if connectivity not in (1, 2):
        raise ValueError(f"connectivity must be 1 (by edges) or 2 (by corners), not {connectivity}")
    faces = shapely.get_parts(shapely.polygonize(_boundary_segments(mask)))
    seeds = [_top_pixel(face) for face in faces]
    order = sorted((y, x, n) for n, (y, x) in enumerate(seeds) if mask[y, x])
    polygons = [shapely.normalize(faces[n]) for _, _, n in order]
    if connectivity == 2:
        polygons = _join_corners(polygons, [(y, x) for y, x, _ in order], mask)
    return [simplify_polygon(p, tolerance_px) for p in polygons] if tolerance_px else polygons


def instances_to_polygons(
    instances: Integer[np.ndarray, "h w"], *, tolerance_px: float | int = 0
) -> list[tuple[int, Polygon | MultiPolygon]]:
    """Trace each object of an instance map; an object in several pieces is a ``MultiPolygon``.

    Returns:
        (object id, shape in pixels of the map), by id; ids that no pixel holds are left out.
    """
    found = []
    for number, window in enumerate(ndimage.find_objects(instances), start=1):
        if window is not None:
            pieces = mask_to_polygons(instances[window] == number, tolerance_px=tolerance_px)
            whole = _as_one([part for piece in pieces for part in shapely.get_parts(piece)])
            offset = np.array([window[1].start, window[0].start], float)
            found.append((number, shapely.transform(whole, lambda xy, o=offset: xy + o)))
    return found


def simplify_polygon(
    polygon: Polygon | MultiPolygon, tolerance_px: float | int
) -> Polygon | MultiPolygon:
    """Drop corners while the outline stays within ``tolerance_px`` of the old one and valid.

    Douglas and Peucker's rule with the topology kept (shapely); never returns an empty shape.
    """
    return shapely.simplify(polygon, tolerance_px, preserve_topology=True)


def _rising_edges(polygon: Polygon | MultiPolygon) -> Float[np.ndarray, "4 n"]:
    """Edges of all rings as x0, y0, x1, y1, turned so that y0 < y1; level ones left out."""
    rings = shapely.get_rings(shapely.get_parts(polygon))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    start, end = xy[:-1], xy[1:]
    used = (ring[:-1] == ring[1:]) & (start[:, 1] != end[:, 1])
    start, end = start[used], end[used]
    falling = (start[:, 1] > end[:, 1])[:, None]
    low, high = np.where(falling, end, start), np.where(falling, start, end)
    return np.stack([low[:, 0], low[:, 1], high[:, 0], high[:, 1]])


def _boundary_segments(mask: Bool[np.ndarray, "h w"]) -> list[Any]:
    """Straight pieces of the border between True and False, from corner to corner."""
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    left, right, up, down = nw != sw, ne != se, nw != ne, sw != se
    corner = (left | right) & (up | down)
    level = [np.argwhere(corner & side)[:, ::-1] for side in (right, left)]
    upright = [np.argwhere((corner & side).T) for side in (down, up)]
    ends = np.concatenate([np.stack(level, axis=1), np.stack(upright, axis=1)])
    return list(shapely.linestrings(ends.astype(float)))


def _top_pixel(face: Polygon) -> tuple[int, int]:
    """Row and column of the leftmost pixel in the top row of a traced face."""
    xy = shapely.get_coordinates(face.exterior)
    y = xy[:, 1].min()
    return int(y), int(xy[xy[:, 1] == y, 0].min())


def _join_corners(
    polygons: list[Polygon], seeds: list[tuple[int, int]], mask: Bool[np.ndarray, "h w"]
) -> list[Polygon | MultiPolygon]:
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    groups: dict[int, list[Polygon]] = {}
    for polygon, (y, x) in zip(polygons, seeds, strict=True):
        groups.setdefault(int(regions[y, x]), []).append(polygon)
    return [_as_one(parts) for parts in groups.values()]


def _as_one(parts: Sequence[Polygon]) -> Polygon | MultiPolygon:
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)
