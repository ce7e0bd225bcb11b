"""Resampling on a fixed grid: a pixel's value depends on where it lies, never on what was read.

The pixels of a slide at one scale form one global grid. Each function here computes some of them
from the pixels of a finer (or coarser) level, in integers or in exact doubles, so that reading a
region gives the same bytes as cropping a larger one. Positions on the source grid are fixed-point
numbers in units of 1/``UNIT`` pixel; that bounds the error of an area mean by 0.1 grey levels.
"""

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from scipy import sparse

UNIT = 4096


def pixel_edges(start: int, count: int, ratio: float) -> Int64[np.ndarray, " n"]:
    """Return the ``count + 1`` edges of pixels on the source grid, in 1/``UNIT`` source pixels.

    Args:
        start: Index of the first pixel on its own global grid.
        count: Number of pixels.
        ratio: Source pixels per pixel.
    """
    return np.rint(np.arange(start, start + count + 1) * (ratio * UNIT)).astype(np.int64)


def covered_span(edges: Int64[np.ndarray, " n"]) -> tuple[int, int]:
    """Return the first and one past the last source pixel that the edges enclose."""
    return int(edges[0] // UNIT), int(-(-edges[-1] // UNIT))


def area_mean(
    pixels: UInt8[np.ndarray, "H W C"],
    edges_x: Int64[np.ndarray, " nx"],
    edges_y: Int64[np.ndarray, " ny"],
) -> UInt8[np.ndarray, "h w C"]:
    """Average source pixels over the rectangles between edges, weighted by the area covered.

    Args:
        pixels: Source pixels.
        edges_x: ``w + 1`` edges from the left of ``pixels``, in 1/``UNIT`` pixels.
        edges_y: ``h + 1`` edges from the top, likewise.
    """
    height, width, channels = pixels.shape
    narrow = np.diff(edges_y).max() * 255 <= 2**24  # then the first sums are exact in float32
    first = np.float32 if narrow else np.float64
    sums = _overlaps(edges_y, height).astype(first) @ pixels.reshape(height, -1).astype(first)
    sums = sums.reshape(-1, width, channels).swapaxes(0, 1).astype(np.float64)
    sums = _overlaps(edges_x, width) @ sums.reshape(width, -1)
    sums = sums.reshape(-1, len(edges_y) - 1, channels)
    sums /= np.diff(edges_x)[:, None, None] * np.diff(edges_y)[None, :, None]
    sums += 0.5
    return sums.astype(np.uint8).swapaxes(0, 1)


def _overlaps(edges: Int64[np.ndarray, " n"], length: int) -> sparse.csr_array:
    """Return how much of each source pixel lies between neighbouring edges, in 1/``UNIT``."""
    first = edges[:-1] // UNIT
    taps = int((-(-edges[1:] // UNIT) - first).max())
    index = first[:, None] + np.arange(taps)
    left = np.maximum(edges[:-1, None], index * UNIT)
    right = np.minimum(edges[1:, None], (index + 1) * UNIT)
    weights = np.clip(right - left, 0, None).astype(np.float64)
    columns = np.minimum(index, length - 1)  # what lies behind the last one weighs nothing
    rows = np.repeat(np.arange(len(first)), taps)
    return sparse.csr_array((weights.ravel(), (rows, columns.ravel())), shape=(len(first), length))


def block_mean(pixels: UInt8[np.ndarray, "H W C"], factor: int) -> UInt8[np.ndarray, "h w C"]:
    """Average blocks of ``factor`` x ``factor`` pixels; halves round up, as in ``area_mean``.

    Height and width must be multiples of ``factor``.
    """
    exact = np.uint16 if factor < 256 else np.uint32
    rows: np.ndarray = pixels[::factor].astype(exact)
    for offset in range(1, factor):
        rows += pixels[offset::factor]
    sums: np.ndarray = rows[:, ::factor].astype(np.uint32)
    for offset in range(1, factor):
        sums += rows[:, offset::factor]
    sums += factor * factor // 2
    sums //= factor * factor
    return sums.astype(np.uint8)


def bilinear_span(start: int, count: int, ratio: float) -> tuple[int, int]:
    """Return the source pixels that ``bilinear`` needs, which may reach 1 past the image."""
    positions = _centres(start, count, ratio)
    return int(positions[0] // UNIT), int(positions[-1] // UNIT) + 2


def bilinear(
    pixels: UInt8[np.ndarray, "H W C"],
    start_xy: tuple[int, int],
    size_px: tuple[int, int],
    ratio: float,
) -> UInt8[np.ndarray, "h w C"]:
    """Enlarge by interpolating between pixel centres.

    Args:
        pixels: The source pixels of ``bilinear_span`` along both axes.
        start_xy: Index of the first pixel wanted on the global grid.
        size_px: Width and height wanted.
        ratio: Source pixels per pixel, below 1.
    """
    blended = _blend(pixels, _centres(start_xy[1], size_px[1], ratio)).swapaxes(0, 1)
    blended = _blend(blended, _centres(start_xy[0], size_px[0], ratio)).swapaxes(0, 1)
    return ((blended + UNIT * UNIT // 2) // (UNIT * UNIT)).astype(np.uint8)


def _centres(start: int, count: int, ratio: float) -> Int64[np.ndarray, " n"]:
    """Return where pixel centres lie between source pixel centres, in 1/``UNIT`` pixels."""
    centres = (np.arange(start, start + count) + 0.5) * ratio - 0.5
    return np.rint(centres * UNIT).astype(np.int64)


def _blend(
    values: Integer[np.ndarray, "n ..."], positions: Int64[np.ndarray, " k"]
) -> Int64[np.ndarray, "k ..."]:
    whole, part = np.divmod(positions, UNIT)
    whole -= positions[0] // UNIT
    part = part.reshape(-1, *[1] * (values.ndim - 1))
    return values[whole] * (UNIT - part) + values[whole + 1] * part


def nearest_indices(start: int, count: int, ratio: float) -> Int64[np.ndarray, " n"]:
    """Return the source pixel under the centre of each of ``count`` pixels."""
    return np.floor((np.arange(start, start + count) + 0.5) * ratio).astype(np.int64)
