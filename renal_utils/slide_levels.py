"""Levels of a slide, and what every kind of file offers to ``slides``.

A source knows its levels, each cut into tiles, and decodes one tile at a time. Sources keep no
decoded pixels; ``slides`` does.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        size_px: Width and height, in pixels of this level.
        downsample: Level-0 pixels per pixel of this level.
        tile_px: Width and height of the pieces in which it is stored.
    """

    size_px: tuple[int, int]
    downsample: float
    tile_px: tuple[int, int]


@runtime_checkable
class SlideSource(Protocol):
    """What ``Slide`` needs from a file.

    Attributes:
        levels: From the finest to the coarsest.
        channels: Channels of a decoded tile.
        dtype: Type of a decoded tile.
        palette: RGB of each value where pixels are indices into a palette, else None.
        stated_mpp: What the file says of its scale, unchecked, and where it says so; None if it
            says nothing that can be believed.
    """

    levels: tuple[Level, ...]
    channels: int
    dtype: np.dtype
    palette: UInt8[np.ndarray, "256 3"] | None
    stated_mpp: tuple[float, str] | None

    def tile(self, level: int, column: int, row: int) -> Shaped[np.ndarray, "H W C"]:
        """Decode one tile, cut to the size of its level. Safe in several threads."""

    def close(self) -> None:
        """Close the file."""
