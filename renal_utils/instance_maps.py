"""Instance maps: what they may hold, how two of them overlap, and the contours to learn from.

An instance map is an image of object ids: 0 is background, any other number is one object. Ids may
have gaps and need no order; objects may touch. Nothing here has an upper limit of 65,535 objects.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped, UInt8

from renal_utils.labels import IGNORE_ID

# What a packed label map is made of: bits, so that one warp moves both planes alike.
MASK_BIT, CONTOUR_BIT = 1, 2
LARGEST_ID = np.iinfo(np.int32).max - 1
SQUARE = np.ones((3, 3), np.uint8)  # a ring of 8 neighbours, as in HARU-Net's Algorithm 1


def check_instances(
    ids: Shaped[np.ndarray, "..."], *, where: str = "instance map"
) -> Int32[np.ndarray, "H W"]:
    """Return an instance map as ``int32``, without a copy where it is one already.

    Args:
        ids: Object ids of any integer type.
        where: What the map is, or its file; begins the message.

    Raises:
        ValueError: If it is not two-dimensional, not of an integer type, or an id is negative or
            larger than ``LARGEST_ID``.
    """
    if ids.ndim != 2:
        raise ValueError(f"{where}: has the shape {ids.shape}; an instance map is H x W")
    if not np.issubdtype(ids.dtype, np.integer):
        remedy = "label its components first" if ids.dtype == bool else "store whole numbers"
        raise ValueError(f"{where}: is of type {ids.dtype}, expected integer object ids; {remedy}")
    if ids.size and ids.min() < 0:
        raise ValueError(f"{where}: holds the negative id {ids.min()}; ids start at 1, 0 is none")
    if ids.size and ids.max() > LARGEST_ID:
        raise ValueError(
            f"{where}: holds the id {ids.max()}, more than {LARGEST_ID}; number its objects anew"
        )
    return ids.astype(np.int32, copy=False)


def number_anew(
    instances: Int32[np.ndarray, "*shape"],
) -> tuple[Int32[np.ndarray, "*shape"], int]:
    """Return the map with ids 1..n without gaps, in the order of the old ones, and n."""
    last = int(instances.max(initial=0))
    if last > 2 * instances.size:
        old, new = np.unique(instances, return_inverse=True)
        first = int(old[0] != 0)  # a map without background
        return (new.reshape(instances.shape) + first).astype(np.int32), len(old) - 1 + first
    present = np.zeros(last + 1, bool)
    present[instances] = True
    present[0] = False
    return np.cumsum(present, dtype=np.int32)[instances], int(present.sum())


def count_pairs(
    first: Int32[np.ndarray, "*shape"], second: Int32[np.ndarray, "*shape"]
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Count each pair of ids that two maps hold at the same pixel, 0 included.

    This is a sparse contingency table. Pixels are first drawn together to runs of equal pairs, so
    that only the runs, a few per object and row, are sorted.

    Returns:
        Ids of the first map, ids of the second, pixels; sorted by the first, then the second.
    """
    a, b = first.ravel(), second.ravel()
    if not a.size:
        return (np.zeros(0, np.int64),) * 3
    starts = np.flatnonzero((a[1:] != a[:-1]) | (b[1:] != b[:-1])) + 1
    starts = np.concatenate([[0], starts])
    lengths = np.diff(starts, append=a.size)
    keys = (a[starts].astype(np.int64) << 32) | b[starts]
    pairs, place = np.unique(keys, return_inverse=True)
    pixels = np.bincount(place, weights=lengths).astype(np.int64)  # exact below 2**53 pixels
    return pairs >> 32, pairs & 0xFFFFFFFF, pixels


def remove_small(instances: Int32[np.ndarray, "H W"], min_area_px: int) -> Int32[np.ndarray, "H W"]:
    """Return the map without objects of fewer pixels, ids 1..n without gaps."""
    numbered, count = number_anew(instances)
    kept = np.bincount(numbered.ravel(), minlength=count + 1) >= min_area_px
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[numbered]


def contour_map(
    instances: Int32[np.ndarray, "H W"], *, thickness_px: int = 3
) -> Bool[np.ndarray, "H W"]:
    """Return the contours of all objects: the second branch's target of HARU-Net and DCAN.

    The line runs along the outlines, ceil(thickness / 2) pixels inside and floor(thickness / 2)
    outside, counted in 3x3 rings. That is: a pixel of an object is contour if another id or
    background lies within ceil(thickness / 2) rings of it; a background pixel is, if an object lies
    within floor(thickness / 2). Between touching objects both bring their inner part. The image's
    edge is no outline.

    HARU-Net's authors take Canny's edges of the instance map and dilate them; Canny can miss the
    line between two objects of similar ids, so here ids are compared instead.

    Raises:
        ValueError: If the thickness is below 1.
    """
    if thickness_px < 1:
        raise ValueError(f"thickness_px is {thickness_px}; a contour needs at least 1 pixel")
    inside = instances > 0
    line = _differs_from_a_neighbour(instances) & inside
    inner = spread(line, (thickness_px + 1) // 2 - 1)
    outer = spread(line, thickness_px // 2)
    return np.where(inside, inner, outer)


def pack_planes(
    instances: Int32[np.ndarray, "H W"], *, thickness_px: int = 3
) -> UInt8[np.ndarray, "H W"]:
    """Return mask and contour of an instance map in one label map, which augmentation can move.

    Args:
        instances: Object ids.
        thickness_px: Of the contour, see ``contour_map``.

    Returns:
        0 background, 1 inside a nucleus, 2 contour outside, 3 contour inside.

    Raises:
        ValueError: If the thickness is below 1.
    """
    contour = contour_map(instances, thickness_px=thickness_px)
    return (instances > 0) * np.uint8(MASK_BIT) | contour * np.uint8(CONTOUR_BIT)


def unpack_planes(packed: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "2 H W"]:
    """Return the planes that ``pack_planes`` packed: the mask's class ids, then the contour's.

    What is not known, ``IGNORE_ID`` there, is so in both.
    """
    planes = np.stack([packed & MASK_BIT, packed // CONTOUR_BIT & 1])
    planes[:, packed == IGNORE_ID] = IGNORE_ID
    return planes


def spread(mask: Bool[np.ndarray, "H W"], rings: int) -> Bool[np.ndarray, "H W"]:
    """Return the mask grown by so many 3x3 rings."""
    if rings == 0:
        return mask
    return cv2.dilate(mask.astype(np.uint8), SQUARE, iterations=rings).astype(bool)


def shrink(mask: Bool[np.ndarray, "H W"], rings: int) -> Bool[np.ndarray, "H W"]:
    """Return the mask eroded by so many 3x3 rings; outside the image counts as mask."""
    if rings == 0:
        return mask
    return cv2.erode(mask.astype(np.uint8), SQUARE, iterations=rings).astype(bool)


def _differs_from_a_neighbour(ids: Int32[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Mark pixels one of whose 8 neighbours holds another id."""
    marked = np.zeros(ids.shape, bool)
    for one, other in (
        (np.s_[1:, :], np.s_[:-1, :]),
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[1:, 1:], np.s_[:-1, :-1]),
        (np.s_[1:, :-1], np.s_[:-1, 1:]),
    ):
        differs = ids[one] != ids[other]
        marked[one] |= differs
        marked[other] |= differs
    return marked
