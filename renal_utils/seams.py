"""Seams: label maps of tiles put together, an object that a seam cut counted once.

Tiles may abut or overlap and come in any order. Memory holds one tile and a number for each object;
the whole map is an array that the caller gives, ``np.memmap`` for a slide that does not fit.
Where tiles overlap, the tile that came first keeps the pixels.

Two rules say when an object of a new tile is one of an earlier tile:

- ``overlap``: on the pixels that the earlier tile kept and the new one sees as well, their IoU is
  greater than ``min_share``. From 0.5 on an object can have one partner only in each earlier tile,
  so touching nuclei do not merge in a chain. Best with tiles that overlap by a nucleus or more.
- ``touch``: across the seam, the edges that the two share are more than ``min_share`` of the seam's
  edges of the one that has fewer. 0 joins whatever shares an edge. For tiles that abut; two nuclei
  that lie against each other along a seam are joined too, since nothing tells them from one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer, Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from renal_utils.geometry import Box
from renal_utils.instance_maps import check_instances, count_pairs, number_anew

BAND_PX = 1024
Whole = Int32[np.ndarray, "H W"]
Labels = Int32[np.ndarray, "h w"]
Pairs = tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]


def join_tiles(
    tiles: Iterable[tuple[tuple[int, int], Shaped[np.ndarray, "_ _"]]],
    out: Whole,
    *,
    rule: str = "overlap",
    min_share: float | int = 0.5,
) -> int:
    """Write the label maps of tiles into one map, joining objects that a seam cut.

    Args:
        tiles: ((left, top) on the map, instance map) of each tile.
        out: The whole map, overwritten; pixels in no tile become 0.
        rule: ``overlap`` or ``touch``; see above.
        min_share: What the rule's share must exceed, 0 to 1.

    Returns:
        The number of objects n; ``out`` holds 1..n, in the order in which the tiles brought them.

    Raises:
        ValueError: If the rule is unknown, the share out of range, a tile reaches beyond the map,
            or its labels are no instance map.
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}; known: {', '.join(RULES)}")
    if not 0 <= min_share < 1:
        raise ValueError(f"min_share is {min_share}; give at least 0 and less than 1")
    _each_band(out, np.zeros_like)
    count = 0
    same: list[np.ndarray] = []
    boxes: list[Box] = []
    for xy, labels in tiles:
        box = _box_of(xy, labels, out)
        numbered, new = number_anew(check_instances(labels, where=f"tile at {xy}"))
        numbered[numbered > 0] += count
        same.append(np.stack(RULES[rule](out, box, numbered, boxes, min_share), axis=1))
        np.copyto(out[box.slices], numbered, where=_owners(box, boxes) == 0)
        boxes.append(box)
        count += new
    return _renumber(out, _groups(same, count))


def _by_overlap(
    out: Whole, box: Box, numbered: Labels, boxes: Sequence[Box], min_share: float | int
) -> Pairs:
    """Return pairs of ids whose IoU on the pixels of one earlier tile exceeds the share."""
    owners, pairs = _owners(box, boxes), [(np.zeros(0, np.int64),) * 2]
    for owner in np.unique(owners[owners > 0]):
        here = owners == owner
        old, new, shared = count_pairs(out[box.slices][here], numbered[here])
        smaller, larger = _totals(old, new, shared)
        pairs.append(_chosen(old, new, shared > min_share * (smaller + larger - shared)))
    olds, news = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return olds, news


def _by_touch(
    out: Whole, box: Box, numbered: Labels, boxes: Sequence[Box], min_share: float | int
) -> Pairs:
    """Return pairs of ids that share more than the share of the smaller one's edges on the seam."""
    frame = Box(box.x - 1, box.y - 1, box.width + 2, box.height + 2)
    frame = frame.intersection(Box(0, 0, out.shape[1], out.shape[0])) or box
    seen, written = _owners(frame, boxes) > 0, np.zeros((frame.height, frame.width), bool)
    inner = box.shifted(-frame.x, -frame.y).slices
    written[inner] = ~seen[inner]
    ids = out[frame.slices].copy()
    np.copyto(ids[inner], numbered, where=written[inner])
    facing = [_facing(ids, seen, written, axis, side) for axis in (0, 1) for side in (0, 1)]
    olds, news = (np.concatenate(part) for part in zip(*facing, strict=True))
    old, new, shared = count_pairs(olds, news)
    smaller, _ = _totals(old, new, shared)
    return _chosen(old, new, shared > min_share * smaller)


def _facing(
    ids: Labels,
    seen: Bool[np.ndarray, "h w"],
    written: Bool[np.ndarray, "h w"],
    axis: int,
    side: int,
) -> tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " N"]]:
    """Return the ids on both sides of the seam's edges in one direction: seen, newly written."""
    ends = np.s_[:-1], np.s_[1:]
    here = (ends[side], np.s_[:]) if axis == 0 else (np.s_[:], ends[side])
    there = (ends[1 - side], np.s_[:]) if axis == 0 else (np.s_[:], ends[1 - side])
    edge = seen[here] & written[there]
    return ids[here][edge], ids[there][edge]


RULES: Mapping[str, Callable[..., Pairs]] = {"overlap": _by_overlap, "touch": _by_touch}


def _totals(
    old: Int64[np.ndarray, " N"], new: Int64[np.ndarray, " N"], shared: Int64[np.ndarray, " N"]
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Return for each pair the smaller and the larger total of its two ids."""
    totals = []
    for ids in (old, new):
        _, place = np.unique(ids, return_inverse=True)
        totals.append(np.bincount(place, weights=shared).astype(np.int64)[place])
    return np.minimum(*totals), np.maximum(*totals)


def _chosen(
    old: Int64[np.ndarray, " N"], new: Int64[np.ndarray, " N"], taken: Bool[np.ndarray, " N"]
) -> Pairs:
    taken = taken & (old > 0) & (new > 0)
    return old[taken], new[taken]


def _box_of(xy: tuple[int, int], labels: np.ndarray, out: np.ndarray) -> Box:
    height, width = labels.shape
    box = Box(*xy, width, height)
    if xy[0] < 0 or xy[1] < 0 or box.right > out.shape[1] or box.bottom > out.shape[0]:
        raise ValueError(
            f"tile at {xy} of {width} x {height} reaches beyond the map of {out.shape[1]} x "
            f"{out.shape[0]}; cut it at the map's edge"
        )
    return box


def _owners(box: Box, boxes: Sequence[Box]) -> Int32[np.ndarray, "h w"]:
    """Number each pixel of a box by the first of the earlier boxes that covers it, from 1."""
    owners = np.zeros((box.height, box.width), np.int32)
    for number in range(len(boxes), 0, -1):
        shared = box.intersection(boxes[number - 1])
        if shared is not None:
            owners[shared.shifted(-box.x, -box.y).slices] = number
    return owners


def _groups(same: list[np.ndarray], count: int) -> Integer[np.ndarray, " N"]:
    """Return the lowest id of each id's group of joined ids; 0 stays 0."""
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *same])
    links = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(count + 1, count + 1))
    _, group = connected_components(links, directed=False)
    _, lowest = np.unique(group, return_index=True)
    return lowest[group]


def _renumber(out: Whole, lowest: Integer[np.ndarray, " N"]) -> int:
    """Give the joined objects ids without gaps; ids that no pixel holds are left out."""
    held = np.zeros(len(lowest), bool)
    for top in range(0, len(out), BAND_PX):
        held[lowest[out[top : top + BAND_PX]]] = True
    held[0] = False
    table = np.where(held, np.cumsum(held), 0).astype(np.int32)[lowest]
    _each_band(out, lambda band: table[band])
    return int(held.sum())


def _each_band(out: Whole, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for top in range(0, len(out), BAND_PX):
        out[top : top + BAND_PX] = change(out[top : top + BAND_PX])
