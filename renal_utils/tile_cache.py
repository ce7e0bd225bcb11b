"""Decoded tiles, kept up to a number of bytes.

Overlapping reads touch each tile several times, and decoding costs more than all the rest. One
cache serves all slides of a process, so that a loader with many slides open stays bounded.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

CACHE_BYTES = 256 * 2**20  # two rows of 1024-pixel tiles of a slide 40,000 pixels wide


class TileCache:
    """The tiles decoded last, up to a number of bytes; safe in threads and after a fork."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes, self.bytes_held = max_bytes, 0
        self._tiles: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._lock, self._pid = threading.Lock(), os.getpid()

    def get(self, key: tuple, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the tile called ``key``, decoding it (outside the lock) where it is absent."""
        with self._locked():
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        tile = decode()
        tile.flags.writeable = False
        with self._locked():
            if key not in self._tiles:
                self._tiles[key] = tile
                self.bytes_held += tile.nbytes
            while self.bytes_held > self.max_bytes and len(self._tiles) > 1:
                self.bytes_held -= self._tiles.popitem(last=False)[1].nbytes
        return tile

    def forget(self, owner: int, *, keep: Callable[[tuple], bool] = lambda key: False) -> None:
        """Drop the tiles of one slide, those whose keys begin with its number, but for some."""
        with self._locked():
            for key in [key for key in self._tiles if key[0] == owner and not keep(key)]:
                self.bytes_held -= self._tiles.pop(key).nbytes

    def _locked(self) -> threading.Lock:
        if self._pid != os.getpid():  # a thread of the parent may have held the lock at the fork
            self._lock, self._pid = threading.Lock(), os.getpid()
        return self._lock
