"""Objects: from the rows of a label map to things that can be counted, each exactly once.

A slide's label map is read in bands of rows, from top to bottom. Each band is split into connected
pieces (8 neighbours, one class); pieces that touch across the seam of two bands are joined, so an
object cut by a seam comes out once and nothing depends on how high the bands are. Only the objects
that reach the lowest row so far are kept in memory, and of very large ones (a class that runs
through the whole slide as one net) only the sums, not the outline.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import shapely
from jaxtyping import Bool, Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from renal_utils.geometry import Box
from renal_utils.polygons import mask_to_polygons

MAX_OUTLINED_PX = 1 << 22  # pixels of an object from which on its outline is only a box
Rows = UInt8[np.ndarray, "rows W"]
Values = UInt8[np.ndarray, "rows W"] | UInt8[np.ndarray, "rows W 2"]


@dataclass(frozen=True)
class TissueObject:
    """One connected object of one class, in working pixels.

    Attributes:
        class_id: Its class in the label set.
        area_px: Number of its pixels.
        box: Smallest upright rectangle around it.
        centroid_px: Mean of its pixels' centres, (x, y); a pixel's centre lies at +0.5.
        mean_probability: Mean over its pixels, 0 to 1.
        mean_spread: Mean over its pixels of what stands beside the probability, 0 to 1; None
            where nothing does.
        outline: Polygon or MultiPolygon along the pixels' edges, holes included.
        is_outlined: False for an object of more than ``MAX_OUTLINED_PX`` pixels, whose outline
            could fill the memory: ``outline`` is its box then.
    """

    class_id: int
    area_px: int
    box: Box
    centroid_px: tuple[float, float]
    mean_probability: float
    outline: BaseGeometry
    is_outlined: bool = True
    mean_spread: float | None = None


@dataclass
class _Piece:
    """What is known of an object so far: sums of whole numbers, so their order does not matter."""

    class_id: int
    box: Box
    first_x: int
    area_px: int
    sums: Int[np.ndarray, " n"]  # over its pixels: x, y, each value (0 to 255)
    mask: Bool[np.ndarray, "h w"] | None = None
    outlines: list[Polygon] = field(default_factory=list)
    is_cut: bool = False  # put together from pieces that share edges

    @property
    def order(self) -> tuple[int, int, int]:
        """Position in the result; unique, since one object owns its first pixel."""
        return self.box.bottom, self.box.y, self.first_x

    @property
    def is_outlined(self) -> bool:
        return self.area_px <= MAX_OUTLINED_PX

    def trace(self) -> None:
        """Replace the mask by its outline: polygons that share no edge, corners at most."""
        if not self.is_outlined:
            self.mask, self.outlines = None, []
        elif self.mask is not None:
            polygons = mask_to_polygons(self.mask)
            offset = np.array([self.box.x, self.box.y], float)
            self.outlines = shapely.transform(polygons, lambda xy: xy + offset).tolist()
            self.mask = None

    def outline(self) -> BaseGeometry:
        """Return the outline, the same whether or not seams cut it."""
        self.trace()
        if not self.is_outlined:
            whole = shapely.box(self.box.x, self.box.y, self.box.right, self.box.bottom)
        elif self.is_cut:  # normalize: rings start at a corner; simplify: drops points on seams
            whole = shapely.normalize(shapely.union_all(self.outlines)).simplify(0)
        else:
            whole = self.outlines[0] if len(self.outlines) == 1 else MultiPolygon(self.outlines)
        return shapely.normalize(whole)


def trace_objects(
    bands: Iterable[tuple[Rows, Values]], *, class_ids: Sequence[int], min_area_px: float | int = 0
) -> Iterator[TissueObject]:
    """Yield the connected objects of a label map given in bands of rows.

    They come in the order in which a scan down the slide finishes them (lower edge, then upper
    edge, then first pixel). Number, order and outlines do not depend on the bands' heights.

    Args:
        bands: Pairs of class ids and probabilities (0 to 255), from top to bottom, equally wide;
            or of class ids and (probability, spread).
        class_ids: Classes to look for.
        min_area_px: Smaller objects are dropped.
    """
    scan = _Scan(tuple(class_ids), min_area_px)
    for labels, values in bands:
        yield from map(_finished, scan.add(labels, values))
    yield from map(_finished, scan.close())


class _Scan:
    """The objects that reach the lowest row so far."""

    def __init__(self, class_ids: tuple[int, ...], min_area_px: float | int) -> None:
        self._class_ids = class_ids
        self._min_area = min_area_px
        self._bottom = 0
        self._open: list[_Piece] = []
        self._last: np.ndarray | None = None  # per column, 1 + index of the open object there

    def add(self, labels: Rows, values: Values) -> list[_Piece]:
        """Take the next band; return the objects that ended before its last row."""
        pieces, first, last = self._pieces(labels, values)
        joined, group = _join(self._open + pieces, self._seam(first, len(self._open)))
        is_open = np.zeros(len(joined), bool)
        reached = np.flatnonzero(last)
        is_open[group[len(self._open) + last[reached] - 1]] = True
        number = np.cumsum(is_open)
        self._last = np.zeros(labels.shape[1], np.int64)
        self._last[reached] = number[group[len(self._open) + last[reached] - 1]]
        self._open = [piece for piece, stays in zip(joined, is_open, strict=True) if stays]
        for piece in self._open:
            piece.trace()
        self._bottom += len(labels)
        return self._kept(p for p, stays in zip(joined, is_open, strict=True) if not stays)

    def close(self) -> list[_Piece]:
        """Return the objects that reach the slide's last row."""
        return self._kept(self._open)

    def _kept(self, pieces: Iterable[_Piece]) -> list[_Piece]:
        return sorted((p for p in pieces if p.area_px >= self._min_area), key=lambda p: p.order)

    def _pieces(
        self, labels: Rows, values: Values
    ) -> tuple[list[_Piece], Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
        """Return a band's pieces, and 1 + the index of the piece in each column of its edges."""
        pieces: list[_Piece] = []
        first, last = np.zeros((2, labels.shape[1]), np.int64)
        present = np.bincount(labels.ravel(), minlength=256)
        for class_id in (c for c in self._class_ids if present[c]):
            mask = (labels == class_id).astype(np.uint8)
            count, ids, stats, centroids = cv2.connectedComponentsWithStats(mask, connectivity=8)
            number = np.zeros(count, np.int64)
            for i in self._worth_keeping(stats, len(labels)):
                pieces.append(self._piece(class_id, ids, i, stats[i], centroids[i], values))
                number[i] = len(pieces)
            first += number[ids[0]]
            last += number[ids[-1]]
        return pieces, first, last

    def _worth_keeping(self, stats: np.ndarray, rows: int) -> list[int]:
        """Return the pieces that are large enough or may go on in another band."""
        top, height = stats[:, cv2.CC_STAT_TOP], stats[:, cv2.CC_STAT_HEIGHT]
        keep = (stats[:, cv2.CC_STAT_AREA] >= self._min_area) | (top == 0) | (top + height == rows)
        keep[0] = False
        return np.flatnonzero(keep).tolist()

    def _piece(
        self,
        class_id: int,
        ids: np.ndarray,
        i: int,
        stats: np.ndarray,
        centroid: np.ndarray,
        values: Values,
    ) -> _Piece:
        left, top, width, height, area = (int(v) for v in stats)
        box = Box(left, top, width, height)
        mask = ids[box.slices] == i
        totals = values[box.slices][mask].sum(axis=0, dtype=np.int64)
        x_sum, y_sum = (round(c * area) for c in centroid)
        return _Piece(
            class_id=class_id,
            box=box.shifted(0, self._bottom),
            first_x=left + int(mask[0].argmax()),
            area_px=area,
            sums=np.append([x_sum, y_sum + area * self._bottom], totals).astype(np.int64),
            mask=mask,
        )

    def _seam(self, first: np.ndarray, offset: int) -> Int[np.ndarray, "n 2"]:
        """Return index pairs of an open object and a piece that touch, corners included."""
        if self._last is None:
            return np.zeros((0, 2), np.int64)
        above, pairs = self._last, []
        width = len(first)
        for shift in (-1, 0, 1):
            upper = above[max(0, -shift) : width - max(0, shift)]
            lower = first[max(0, shift) : width - max(0, -shift)]
            both = (upper > 0) & (lower > 0)
            pairs.append(np.stack([upper[both] - 1, lower[both] - 1 + offset], 1))
        return np.unique(np.concatenate(pairs), axis=0)


def _join(
    pieces: list[_Piece], touching: Int[np.ndarray, "n 2"]
) -> tuple[list[_Piece], Int[np.ndarray, " m"]]:
    """Merge pieces of one class that touch; return the merged ones and each piece's place there."""
    same = np.array([pieces[a].class_id == pieces[b].class_id for a, b in touching], bool)
    rows, columns = touching[same].T
    size = len(pieces)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(size, size))
    _, group = connected_components(graph, directed=False)
    members: dict[int, list[_Piece]] = {}
    for piece, g in zip(pieces, group.tolist(), strict=True):
        members.setdefault(g, []).append(piece)
    return [_merged(members[g]) for g in range(len(members))], group.astype(np.int64)


def _merged(pieces: list[_Piece]) -> _Piece:
    if len(pieces) == 1:
        return pieces[0]
    for piece in pieces:
        piece.trace()
    left, top = min(p.box.x for p in pieces), min(p.box.y for p in pieces)
    right, bottom = max(p.box.right for p in pieces), max(p.box.bottom for p in pieces)
    return _Piece(
        class_id=pieces[0].class_id,
        box=Box(left, top, right - left, bottom - top),
        first_x=min(p.first_x for p in pieces if p.box.y == top),
        area_px=sum(p.area_px for p in pieces),
        sums=np.sum([p.sums for p in pieces], axis=0),
        outlines=[outline for p in pieces for outline in p.outlines],
        is_cut=True,
    )


def _finished(piece: _Piece) -> TissueObject:
    x, y, *values = (int(total) / piece.area_px for total in piece.sums)
    return TissueObject(
        class_id=piece.class_id,
        area_px=piece.area_px,
        box=piece.box,
        centroid_px=(x + 0.5, y + 0.5),
        mean_probability=values[0] / 255,
        outline=piece.outline(),
        is_outlined=piece.is_outlined,
        mean_spread=values[1] / 255 if len(values) > 1 else None,
    )
