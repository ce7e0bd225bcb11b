"""Frames, boxes and grids: where a pixel of one scale lies in another.

Two frames are used throughout. ``_l0`` is the full-resolution pixel of the file (level 0);
``_px`` is the pixel at the scale being worked at. A *downsample* d means that one pixel at the
working scale covers d x d level-0 pixels. Physical scale is always microns per pixel (``mpp``).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

MPP_RANGE = (0.02, 200.0)


@dataclass(frozen=True)
class Box:
    """An upright rectangle in pixels of one frame: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"a box needs a positive size, not {self.width} x {self.height}")

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of this box in an array whose first axes are rows and columns."""
        return slice(self.y, self.bottom), slice(self.x, self.right)

    def shifted(self, dx: int, dy: int) -> "Box":
        return Box(self.x + dx, self.y + dy, self.width, self.height)

    def intersection(self, other: "Box") -> "Box | None":
        """Return what two boxes of one frame share, or None."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width, height = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Box(x, y, width, height) if width > 0 and height > 0 else None


def check_mpp(mpp: float, *, where: str = "mpp") -> float:
    """Return ``mpp`` if it can be a slide's scale, in microns per pixel.

    Raises:
        ValueError: If it is not a finite number within ``MPP_RANGE``.
    """
    low, high = MPP_RANGE
    if not (np.isfinite(mpp) and low <= mpp <= high):
        raise ValueError(
            f"{where}: {mpp} microns per pixel cannot be right; expected {low} to {high} "
            "(0.25 is a typical 40x scan, 0.5 a 20x scan). State the true value as mpp=..."
        )
    return float(mpp)


def scaled_size(size_l0: tuple[int, int], downsample: float) -> tuple[int, int]:
    """Return the (width, height) at a downsample of a level-0 size, rounded, at least 1."""
    if not (np.isfinite(downsample) and downsample > 0):
        raise ValueError(f"downsample must be a positive number, not {downsample}")
    return max(1, round(size_l0[0] / downsample)), max(1, round(size_l0[1] / downsample))


def grid_offsets(length_px: int, patch_px: int, stride_px: int) -> Int[np.ndarray, " n"]:
    """Return offsets of patches along one axis, so that every pixel is covered.

    Patches stand every ``stride_px``; the last one is moved back to end flush with the axis. An
    axis shorter than the patch gets the one offset 0, and the reader pads.

    Raises:
        ValueError: If a length is not positive, or the stride leaves gaps (stride > patch).
    """
    if min(length_px, patch_px, stride_px) <= 0:
        raise ValueError(
            f"length, patch and stride must be positive, not {length_px}, {patch_px}, {stride_px}"
        )
    if stride_px > patch_px:
        raise ValueError(f"stride {stride_px} is larger than the patch {patch_px}: it leaves gaps")
    if length_px <= patch_px:
        return np.zeros(1, np.int64)
    offsets = np.arange(0, length_px - patch_px, stride_px)
    return np.append(offsets, length_px - patch_px)


def grid_boxes(size_px: tuple[int, int], patch_px: int, stride_px: int) -> list[Box]:
    """Return the square patches that cover a (width, height), row by row."""
    columns = grid_offsets(size_px[0], patch_px, stride_px)
    rows = grid_offsets(size_px[1], patch_px, stride_px)
    return [Box(int(x), int(y), patch_px, patch_px) for y in rows for x in columns]
