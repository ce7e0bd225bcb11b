"""Tiles of a slide and of what lies over it, read one at a time when they are asked for.

Level z of the view shows 2**z level-0 pixels a pixel, whatever levels the file has; its tiles are
squares of ``TILE_PX`` from the slide's corner on, cut at its far sides.
"""

import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from renal_utils.geometry import Box
from renal_utils.slides import Slide
from renal_utils.tile_cache import TileCache
from renal_utils.viewer.overlays import Overlay, blank_damage

TILE_PX = 256
CACHE_BYTES = 64 * 2**20  # of tiles as they are sent: some 2,000 of stained tissue
JPEG_QUALITY = 90
_DAMAGED_GREY = 170


class TileKey(NamedTuple):
    """One tile: the layer's name (``slide`` or an overlay's), level, column and row."""

    layer: str
    z: int
    column: int
    row: int


class TileReader:
    """Reads tiles and keeps the last ones as they are sent, up to a number of bytes.

    Attributes:
        slide: Opened with ``skip_damaged``.
        overlays: By their names.
        num_levels: Of the view; at the last, the slide is one tile.
        cache: Of encoded tiles.
        files: What ``close`` closes; nothing, until files are handed over.
    """

    def __init__(self, slide: Slide, overlays: Sequence[Overlay] = ()) -> None:
        self.slide, self.overlays = slide, {one.name: one for one in overlays}
        self.files = ExitStack()
        tiles = -(-max(slide.size_l0) // TILE_PX)
        self.num_levels = (tiles - 1).bit_length() + 1
        self.cache = TileCache(CACHE_BYTES)
        slide.at_downsample(1).read((0, 0), (1, 1))  # says what is wrong with 16-bit files

    def box(self, key: TileKey) -> Box:
        """Return where a tile lies, in pixels of its level.

        Raises:
            ValueError: If there is no such layer, level, column or row.
        """
        layers = ("slide", *self.overlays)
        if key.layer not in layers or not 0 <= key.z < self.num_levels:
            raise ValueError(f"no tile {tuple(key)}: {layers}, levels 0 to {self.num_levels - 1}")
        width, height = self.slide.at_downsample(2**key.z).size_px
        place = Box(key.column * TILE_PX, key.row * TILE_PX, TILE_PX, TILE_PX)
        inside = Box(0, 0, width, height).intersection(place)
        if inside is None:
            raise ValueError(f"no tile {tuple(key)}: level {key.z} is {width} x {height} pixels")
        return inside

    def read(self, key: TileKey) -> UInt8[np.ndarray, "H W *C"]:
        """Return a tile's pixels: RGB of the slide, bytes of an overlay.

        Parts of the file that cannot be decoded are grey, or empty in an overlay.

        Raises:
            ValueError: If there is no such tile, or its overlay cannot be read.
        """
        box = self.box(key)
        xy, size, downsample = (box.x, box.y), (box.width, box.height), float(2**key.z)
        if key.layer != "slide":
            return self.overlays[key.layer].read(xy, size, downsample)
        pixels = self.slide.at_downsample(downsample).read(xy, size)
        return blank_damage(pixels, self.slide, downsample, box=box, value=_DAMAGED_GREY)

    def encode(self, key: TileKey) -> bytes:
        """Return a tile as it is sent: the slide as JPEG, an overlay's bytes by zlib."""
        return self.cache.get(tuple(key), lambda: self._encode(key)).tobytes()

    def count_damaged(self) -> int:
        """Return how many tiles of the files were found damaged so far."""
        files = [self.slide, *(one.file for one in self.overlays.values() if one.file)]
        return sum(len(file.damaged) for file in files)

    def close(self) -> None:
        """Close the files that were handed over to it."""
        self.files.close()

    def _encode(self, key: TileKey) -> UInt8[np.ndarray, " n"]:
        pixels = self.read(key)
        if key.layer != "slide":
            return np.frombuffer(zlib.compress(pixels.tobytes(), 3), np.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        return cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), quality)[1].ravel()


class TileQueue:
    """Answers wishes for tiles in a thread of its own, the last wishes of each view only.

    A view says all that it still lacks each time it moves, so what it has left is never read. The
    thread ends when nothing is wanted any more.
    """

    def __init__(self, answer: Callable[[TileKey], None]) -> None:
        self._answer = answer
        self._wanted: dict[str, list[TileKey]] = {}
        self._lock, self._working = threading.Lock(), False

    def want(self, view: str, keys: Iterable[TileKey]) -> None:
        """Replace what ``view`` wants; the first of ``keys`` is answered first."""
        with self._lock:
            self._wanted.pop(view, None)
            self._wanted[view] = list(keys)[::-1]
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="slide view", daemon=True).start()

    def _work(self) -> None:
        try:
            while (key := self._next()) is not None:
                self._answer(key)
        except BaseException:
            with self._lock:
                self._working = False  # the next wish starts a new thread
            raise

    def _next(self) -> TileKey | None:
        with self._lock:
            for view in reversed(list(self._wanted)):  # the view that moved last
                if keys := self._wanted[view]:
                    return keys.pop()
                del self._wanted[view]
            self._working = False
            return None
