"""Growth: labels spread ring by ring inside a mask, each ring touching only what the last reached.

The rule is that of Algorithm 1 of "Enhancing Nucleus Segmentation with HARU-Net" (Chen et al.): in
a pass over all objects in the order of their ids, each takes the free mask pixels of its 3x3
dilation. An object that comes later finds those of lower ids taken, and grows only from what it had
before, so a pass is the same as: *every free mask pixel takes the smallest label among its 8
neighbours, all at once*. Passes are repeated until nothing changes.

The paper's loop runs until the mask is covered, which never happens where a component of the mask
has no seed; here growth stops as soon as a pass reaches nothing.
"""

import numpy as np
from jaxtyping import Bool, Int32, Integer

FREE = np.iinfo(np.int32).max  # larger than any label, so that a minimum ignores it
PART = 1 << 14  # pixels of the front taken at once: neighbours in the image stay in the cache


def grow_seeds(
    seeds: Int32[np.ndarray, "H W"],
    mask: Bool[np.ndarray, "h w"],
    *,
    max_rings: int | None = None,
) -> Int32[np.ndarray, "H W"]:
    """Grow labels inside a mask by 3x3 rings; of several labels the smallest takes a pixel.

    Time is near-linear in pixels. Only the front, the pixels that got their label in the last
    ring, is looked at: each hands its label to its 8 neighbours, and each pixel is in the front
    once. The whole image is passed over a fixed number of times, however many rings there are.

    Args:
        seeds: Labels to start from, 0 for none. Those outside the mask stay and grow into it.
        mask: Where labels may grow.
        max_rings: Stop after so many rings; None grows until nothing changes.

    Returns:
        The labels; mask pixels that no ring reached are 0.

    Raises:
        ValueError: If the two differ in size or a label is negative.
    """
    if seeds.shape != mask.shape:
        raise ValueError(f"seeds have the shape {seeds.shape}, the mask {mask.shape}")
    if seeds.size and seeds.min() < 0:
        raise ValueError(f"seeds hold {seeds.min()}; labels start at 1, 0 is none")
    labels = np.pad(seeds, 1)  # the frame is never free, so neighbours need no check of bounds
    free = np.pad(mask, 1) & (labels == 0)
    labels[free] = FREE
    front = _first_front(labels, free)
    ring = 0
    while len(front) and ring != max_rings:
        parts = np.array_split(front, len(front) // PART + 1)
        steps = _steps(labels.shape[1])
        reached = [_reach(labels.ravel(), free.ravel(), part, steps) for part in parts]
        front = np.concatenate(reached)
        free.ravel()[front] = False
        ring += 1
    labels[free] = 0
    return labels[1:-1, 1:-1].copy()


def _steps(width: int) -> tuple[int, ...]:
    """Distances in the flat image to the 8 neighbours."""
    return (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)


def _first_front(
    labels: Int32[np.ndarray, "H W"], free: Bool[np.ndarray, "H W"]
) -> Integer[np.ndarray, " N"]:
    """Return the labelled pixels beside a free one, as indices of the flat image."""
    rows = free.copy()
    rows[1:] |= free[:-1]
    rows[:-1] |= free[1:]
    near = rows.copy()
    near[:, 1:] |= rows[:, :-1]
    near[:, :-1] |= rows[:, 1:]
    near &= labels > 0
    near &= ~free
    return np.flatnonzero(near)


def _reach(
    labels: Int32[np.ndarray, " N"],
    free: Bool[np.ndarray, " N"],
    front: Integer[np.ndarray, " F"],
    steps: tuple[int, ...],
) -> Integer[np.ndarray, " R"]:
    """Hand labels of a part of the front to free neighbours, in place; return the pixels new.

    Within one direction no pixel is met twice, so a plain indexed minimum is exact. Pixels reached
    stay free until the ring is done: a lower label may still come from elsewhere.
    """
    values, reached = labels[front], []
    for step in steps:
        near = front + step
        is_free = free[near]
        near = near[is_free]
        before = labels[near]
        labels[near] = np.minimum(before, values[is_free])
        reached.append(near[before == FREE])
    return np.concatenate(reached)
