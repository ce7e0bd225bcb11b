"""Reading a slide for a network: tissue first, then windows in batches, ahead of their use.

The slide is read in chunks of rows, each pixel once, only where a window needs it. A chunk is
forgotten when the windows have passed it, so memory depends on the slide's width only.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt8

from renal_utils.slides import Slide, SlideView
from renal_utils.stain import tissue_mask
from renal_utils.windows import Positions

CHUNK_PX = 256
PIECE_PX = 2048  # columns read at a time, so that a wide chunk is not in memory twice
TISSUE_MPP = 8.0
TISSUE_DOWNSAMPLE = 16.0
Item = TypeVar("Item")
Tissue = tuple[Bool[np.ndarray, "H W"], float]


@dataclass(frozen=True)
class WindowBatch:
    """Windows of a slide: their left and top in working pixels, and their RGB pixels."""

    positions: Int[np.ndarray, "B 2"]
    images: UInt8[np.ndarray, "B P P 3"]


def find_tissue(slide: Slide) -> Tissue:
    """Return where tissue lies on a slide, and the level-0 pixels per pixel of that mask.

    The scale is ``TISSUE_MPP``, or ``TISSUE_DOWNSAMPLE`` where the slide's scale is not known. The
    slide is read in strips.
    """
    downsample = TISSUE_DOWNSAMPLE if slide.mpp is None else max(1.0, TISSUE_MPP / slide.mpp)
    view = slide.at_downsample(downsample)
    width, height = view.size_px
    rows = max(1, round(CHUNK_PX / downsample))
    strips = []
    for y in range(0, height, rows):
        strips.append(view.read((0, y), (width, min(rows, height - y))))
        view.forget_above(y + rows)
    return tissue_mask(np.concatenate(strips)), view.downsample


def read_windows(
    view: SlideView, positions: Positions, patch_px: int, *, batch_size: int, first_batch: int = 0
) -> Iterator[WindowBatch]:
    """Yield the windows at ``positions`` in batches of ``batch_size``; the last may be smaller.

    Which windows share a batch follows from the list alone, wherever reading starts.

    Args:
        view: The slide at the working scale; white beyond its borders.
        positions: Left and top of each window, by rows from the top.
        patch_px: Side of a window.
        batch_size: Windows a batch.
        first_batch: Batches to leave out.
    """
    rows = _RowChunks(view, positions[first_batch * batch_size :], patch_px)
    for start in range(first_batch * batch_size, len(positions), batch_size):
        batch = positions[start : start + batch_size]
        images = np.empty((len(batch), patch_px, patch_px, 3), np.uint8)
        for image, (x, y) in zip(images, batch.tolist(), strict=True):
            rows.cut_into(image, x, y)
        yield WindowBatch(batch, images)


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items while a thread makes the next one; its errors are raised here."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item


class _RowChunks:
    """The rows of a slide that the windows at hand lie on, in chunks of ``CHUNK_PX``."""

    def __init__(self, view: SlideView, positions: Positions, patch_px: int) -> None:
        self._view = view
        self._positions = positions
        self._patch = patch_px
        self._chunks: dict[int, np.ndarray] = {}

    def cut_into(self, window: UInt8[np.ndarray, "P P 3"], x: int, y: int) -> None:
        """Fill in the window at (x, y); rows above it are forgotten."""
        first, last = y // CHUNK_PX, (y + self._patch - 1) // CHUNK_PX
        for number in [n for n in self._chunks if n < first]:
            del self._chunks[number]
        for number in range(first, last + 1):
            if number not in self._chunks:
                self._chunks[number] = self._read(number)
            top = max(y, number * CHUNK_PX)
            bottom = min(y + self._patch, (number + 1) * CHUNK_PX)
            rows = slice(top - number * CHUNK_PX, bottom - number * CHUNK_PX)
            window[top - y : bottom - y] = self._chunks[number][rows, x : x + self._patch]

    def _read(self, number: int) -> UInt8[np.ndarray, "rows W 3"]:
        """Read one chunk of rows in the columns that any window needs of it."""
        top, width = number * CHUNK_PX, max(self._view.size_px[0], self._patch)
        chunk = np.empty((CHUNK_PX, width, 3), np.uint8)
        for left, right in self._columns(top):
            for x in range(left, right, PIECE_PX):
                size = min(PIECE_PX, right - x), CHUNK_PX
                chunk[:, x : x + size[0]] = self._view.read((x, top), size)
        self._view.forget_above(top + CHUNK_PX)
        return chunk

    def _columns(self, top: int) -> list[tuple[int, int]]:
        """Return the spans of columns that windows on the rows from ``top`` on cover."""
        x, y = self._positions.T
        lefts = np.unique(x[(y < top + CHUNK_PX) & (y + self._patch > top)])
        starts = np.flatnonzero(np.diff(lefts, prepend=-self._patch - 1) > self._patch)
        ends = np.append(starts[1:], len(lefts)) - 1
        return [
            (int(lefts[s]), int(lefts[e]) + self._patch) for s, e in zip(starts, ends, strict=True)
        ]


def grow_by_one(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Return the mask with one pixel more on all sides, for what a blur rounds off."""
    padded = np.pad(mask, 1)
    tall = padded[:-2] | padded[1:-1] | padded[2:]
    return tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]
