"""Resampling on a fixed grid: a pixel's value depends on where it lies, never on what was read.

The pixels of a slide at one scale form one global grid. Each function here computes some of them
from the pixels of a finer (or coarser) level, in integers or in exact doubles, so that reading a
region gives the same bytes as cropping a larger one. Positions on the source grid are fixed-point
numbers in units of 1/``UNIT`` pixel; that bounds the error of an area mean by 0.1 grey levels.
"""

import numpy as np
from jaxtyping import Int64, Integer, UInt8

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
    sums = _sums_between(pixels, edges_y).swapaxes(0, 1)
    sums = _sums_between(sums, edges_x).swapaxes(0, 1)
    area = np.diff(edges_y)[:, None, None] * np.diff(edges_x)[None, :, None]
    return np.floor(sums / area + 0.5).astype(np.uint8)  # exact below 2^53


def _sums_between(
    values: Integer[np.ndarray, "n ..."], edges: Int64[np.ndarray, " k"]
) -> Int64[np.ndarray, "m ..."]:
    """Integrate ``values`` along the first axis between neighbouring edges; exact integers."""
    before = np.zeros((len(values) + 1, *values.shape[1:]), np.int64)
    np.cumsum(values, axis=0, out=before[1:])
    whole, part = np.divmod(edges, UNIT)
    cut = values[np.minimum(whole, len(values) - 1)]
    integral = before[whole] * UNIT + cut * part.reshape(-1, *[1] * (values.ndim - 1))
    return np.diff(integral, axis=0)


def block_mean(pixels: UInt8[np.ndarray, "H W C"], factor: int) -> UInt8[np.ndarray, "h w C"]:
    """Average blocks of ``factor`` x ``factor`` pixels; halves round up, as in ``area_mean``.

    Height and width must be multiples of ``factor``.
    """
    rows = sum(pixels[i::factor].astype(np.uint32) for i in range(factor))
    sums = sum(rows[:, i::factor] for i in range(factor))
    area = factor * factor
    return ((sums + area // 2) // area).astype(np.uint8)


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
