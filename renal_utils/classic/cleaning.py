"""Cleaning masks: fill, open, drop what is too small, part what touches.

A threshold gives a ragged mask. What is known of glomeruli beforehand (they are compact, and not
small) mends some of that, for every method alike.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Int32
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from renal_utils.geometry import check_mpp

Mask = Bool[np.ndarray, "H W"]


def clean_mask(mask: Mask, *, mpp: float | int, smallest_um: float | int) -> Mask:
    """Fill holes, open, and drop objects smaller than a circle of ``smallest_um``.

    Opening uses a disc of a quarter of that diameter: thinner bridges and spurs go. (An opening
    with the whole disc would turn every object into a union of such discs.)

    Args:
        mask: What a threshold gave.
        mpp: Microns per pixel.
        smallest_um: Diameter of the smallest object to keep.

    Raises:
        ValueError: If the diameter is not positive.
    """
    check_mpp(float(mpp))
    if smallest_um <= 0:
        raise ValueError(f"smallest_um is a diameter in microns, not {smallest_um}")
    filled = ndimage.binary_fill_holes(mask).astype(np.uint8)
    side = 2 * max(1, round(smallest_um / mpp / 8)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, disc)
    _, ids, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= np.pi / 4 * (smallest_um / mpp) ** 2
    keep[0] = False
    return keep[ids]


def split_touching(
    mask: Mask, *, mpp: float | int, smallest_um: float | int
) -> Int32[np.ndarray, "H W"]:
    """Give each object an id, parting those that touch: distance transform, then watershed.

    The distance of a pixel to the background has a peak in the middle of each compact object, also
    where two are joined by a neck. Water that rises from the peaks meets at the neck (the last
    steps of Kannan et al. 2019; how they chose their peaks is not known to us).

    Args:
        mask: Objects on background.
        mpp: Microns per pixel.
        smallest_um: Diameter of the smallest object: peaks closer than half of it count once.

    Returns:
        0 for background, 1, 2, ... for objects. A line of background, one pixel wide, runs between
        objects that touched, so the components of ``ids > 0`` are the objects.
    """
    check_mpp(float(mpp))
    # a rim of background, so that an object cut by the border has its peak inside
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    smooth = ndimage.gaussian_filter(distance, smallest_um / mpp / 16)
    parts = ndimage.label(mask, np.ones((3, 3)))[0]
    reach = max(1, round(smallest_um / mpp / 2))
    peaks = peak_local_max(smooth, min_distance=reach, labels=parts, exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    ids = watershed(-smooth, seeds, mask=mask, connectivity=2).astype(np.int32)
    # watershed_line=True of scikit-image 0.26 takes all memory on large masks, so by hand
    ids[ndimage.maximum_filter(ids, size=3) > np.where(ids > 0, ids, np.iinfo(np.int32).max)] = 0
    return ids
