"""Instances: from a mask and a contour to nuclei one by one.

``separate_nuclei(mask, contour, method=...)`` is the door; ``METHODS`` lists the ways:

- ``algorithm_1``: HARU-Net's; seeds inside the contours grow until the mask is full.
- ``six_passes``: what its authors' code runs instead, six rings and no more.
- ``subtract``: mask minus contour, as DCAN (Chen et al. 2017) does.
- ``watershed``: flooding of the distance transform; needs no contour.

All return ids 1..n without gaps, in the order of the seeds' first pixels (row by row). Ties in
growth depend on that order. OpenCV's default labeller numbers differently from a scan by rows, so
labels of HARU-Net's own code may differ from these in single pixels.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from jaxtyping import Bool, Int32
from skimage.feature import peak_local_max
from skimage.segmentation import expand_labels, watershed

from renal_utils.growth import grow_seeds
from renal_utils.instance_maps import remove_small, shrink, spread

Mask = Bool[np.ndarray, "H W"]
Instances = Int32[np.ndarray, "H W"]

LEFTOVERS = ("label", "drop")
AUTHORS_PASSES = 6


def separate_nuclei(
    mask: Mask,
    contour: Bool[np.ndarray, "h w"] | None = None,
    *,
    method: str = "algorithm_1",
    **options: int | float | str,
) -> Instances:
    """Return an instance map of a mask by a named method.

    Args:
        mask: Where nuclei are.
        contour: Where their contours are; None for none.
        method: A key of ``METHODS``.
        **options: As the method takes them.

    Raises:
        ValueError: If the method is unknown (the known ones are listed), the two masks differ in
            size, or an option is out of its range.
        TypeError: If the method has no such option.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; known: {', '.join(METHODS)}")
    if contour is None:
        contour = np.zeros_like(mask)
    if mask.shape != contour.shape:
        raise ValueError(f"the mask has the shape {mask.shape}, the contour {contour.shape}")
    return METHODS[method](mask, contour, **options)


def label_components(mask: Mask) -> Instances:
    """Number the connected components (8 neighbours) in the order of a scan by rows."""
    _, labels = cv2.connectedComponentsWithAlgorithm(
        mask.astype(np.uint8), 8, cv2.CV_32S, cv2.CCL_WU
    )
    return labels


def grow_algorithm_1(
    mask: Mask, contour: Mask, *, leftovers: str = "label", erode_px: int = 0
) -> Instances:
    """Separate by HARU-Net's Algorithm 1: seeds inside the contours grow until the mask is full.

    Seeds are the components of ``mask & ~contour``; growth is ``growth.grow_seeds``. Where the
    contour covers a component of the mask wholly it has no seed, and the paper's loop would never
    end; see ``leftovers``.

    Args:
        mask: Where nuclei are.
        contour: Where their contours are.
        leftovers: Components of the mask without a seed: ``label`` makes each an object of its own
            (numbered after the others), so that the mask is covered, which is what the paper's loop
            waits for; ``drop`` leaves them background.
        erode_px: Shrink seeds by so many 3x3 rings first, so that a thin bridge parts; growth
            gives the pixels back. The paper's variant for CoNSeP has "an erosion" without saying
            of what and how much; this is our reading.
    """
    return _grow(mask, contour, leftovers, erode_px, None)


def grow_six_passes(
    mask: Mask, contour: Mask, *, leftovers: str = "drop", erode_px: int = 0
) -> Instances:
    """Separate as HARU-Net's published code does: six rings of growth, no test of coverage.

    Mask pixels more than six rings from a seed stay background, as do components without a seed
    (``leftovers="drop"``). Arguments as for ``grow_algorithm_1``.
    """
    return _grow(mask, contour, leftovers, erode_px, AUTHORS_PASSES)


def subtract_contours(
    mask: Mask, contour: Mask, *, min_area_px: int = 0, dilate_px: int = 3
) -> Instances:
    """Separate as DCAN does: components of mask minus contour, the small dropped, each widened.

    Args:
        mask: Where nuclei are.
        contour: Where their contours are.
        min_area_px: Components of fewer pixels are dropped, before they are widened.
        dilate_px: Radius of the disc that gives back what the contour took. It knows nothing of
            the mask; a pixel within reach of two objects goes to the nearer. 3 is what we know of
            DCAN's.
    """
    labels = remove_small(label_components(mask & ~contour), min_area_px)
    return expand_labels(labels, dilate_px).astype(np.int32) if dilate_px else labels


def split_by_watershed(
    mask: Mask, contour: Mask, *, min_distance_px: int = 5, leftovers: str = "label"
) -> Instances:
    """Separate by flooding the distance transform from its peaks.

    Distances are Euclidean, to the nearest pixel outside the mask or on a contour, so a contour
    helps where it is given and the pixels under it are flooded last.

    Args:
        mask: Where nuclei are.
        contour: Where their contours are; may be empty.
        min_distance_px: Peaks closer than this (chessboard) count as one nucleus.
        leftovers: As for ``grow_algorithm_1``: parts of the mask that hold no peak.
    """
    core = (mask & ~contour).astype(np.uint8)
    distance = cv2.distanceTransform(core, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    peaks = peak_local_max(
        distance, min_distance=min_distance_px, threshold_abs=0, exclude_border=False
    )
    peaks = peaks[np.lexsort(peaks.T[::-1])]  # row by row
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, markers, mask=mask, connectivity=2).astype(np.int32)
    return _settle(labels, mask, leftovers)


METHODS: Mapping[str, Callable[..., Instances]] = {
    "algorithm_1": grow_algorithm_1,
    "six_passes": grow_six_passes,
    "subtract": subtract_contours,
    "watershed": split_by_watershed,
}


def _grow(
    mask: Mask, contour: Mask, leftovers: str, erode_px: int, max_rings: int | None
) -> Instances:
    if erode_px < 0:
        raise ValueError(f"erode_px is {erode_px}; give 0 or more rings")
    seeds = label_components(shrink(mask & ~contour, erode_px))
    return _settle(grow_seeds(seeds, mask, max_rings=max_rings), mask, leftovers)


def _settle(labels: Instances, mask: Mask, leftovers: str) -> Instances:
    """Label or drop what of the mask holds and touches no label."""
    if leftovers not in LEFTOVERS:
        raise ValueError(f"leftovers {leftovers!r} is not one of {LEFTOVERS}")
    bare = mask & (labels == 0)
    if leftovers == "drop" or not bare.any():
        return labels
    parts = label_components(bare)
    lonely = np.ones(parts.max() + 1, bool)
    lonely[parts[spread(labels > 0, 1)]] = False
    lonely[0] = False
    numbers = np.where(lonely, np.cumsum(lonely) + labels.max(), 0).astype(np.int32)
    return labels + numbers[parts]
