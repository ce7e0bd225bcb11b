"""Canvas: a block of the slide while it is painted, and the few strokes that painting needs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Shaped, UInt8

SUBPIXEL_BITS = 4  # bits of a pixel's fraction that OpenCV's polygons keep here
STRIP_ROWS = 32  # what is computed at once; its planes fit into a processor's second cache

Ring = Float[np.ndarray, "_ 2"]
Ids = UInt8[np.ndarray, "S S"]


@dataclass
class Canvas:
    """A square block of the slide, margins included, while it is painted.

    Attributes:
        x: Slide pixel of its left edge.
        y: Slide pixel of its top edge.
        size: Width and height.
        um: Pixels a micrometre.
        edge: Width of the rim that only vectors are painted on: no colours, no tubule walls.
        material: Ids of ``materials.MATERIALS``.
        tint: Factor on the stains.
        veil: Factor on the haze in lumens.
        glomeruli: Instance ids.
        nuclei: Instance ids.
        nucleus_dye: Haematoxylin of nuclei, in hundredths.
        soft: How near brush borders and lumens are to their wall, 1 at it; None where sharp.
    """

    x: int
    y: int
    size: int
    um: float
    edge: int = 0
    material: Ids = field(init=False)
    tint: Float32[np.ndarray, "S S"] = field(init=False)
    veil: Float32[np.ndarray, "S S"] = field(init=False)
    glomeruli: Int32[np.ndarray, "S S"] = field(init=False)
    nuclei: Int32[np.ndarray, "S S"] = field(init=False)
    nucleus_dye: Ids = field(init=False)
    soft: Float32[np.ndarray, "S S"] | None = None

    def __post_init__(self) -> None:
        shape = (self.size, self.size)
        self.material, self.nucleus_dye = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.glomeruli, self.nuclei = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.tint, self.veil = np.ones(shape, np.float32), np.ones(shape, np.float32)

    @property
    def core(self) -> tuple[slice, slice]:
        """Rows and columns within the rim."""
        inner = slice(self.edge, self.size - self.edge)
        return inner, inner

    def strips(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns of the core, a few rows at a time."""
        rows, columns = self.core
        for top in range(rows.start, rows.stop, STRIP_ROWS):
            yield slice(top, min(top + STRIP_ROWS, rows.stop)), columns

    def points(self, rings: Shaped[np.ndarray, "*n 2"]) -> Int32[np.ndarray, "*n 2"]:
        """Return slide positions in OpenCV's fixed point, where a pixel's centre is whole."""
        corner = np.array([self.x + 0.5, self.y + 0.5])
        return np.round((rings - corner) * (1 << SUBPIXEL_BITS)).astype(np.int32)

    def fill(self, target: np.ndarray, rings: Iterable[Ring], value: float | int) -> None:
        """Fill closed rings that do not overlap; hole-free."""
        rings = list(rings)
        if rings:
            ends = np.cumsum([len(ring) for ring in rings])[:-1].tolist()
            points = self.points(np.concatenate(rings))
            parts = [points[a:b] for a, b in zip([0, *ends], [*ends, None], strict=True)]
            cv2.fillPoly(target, parts, value, shift=SUBPIXEL_BITS)

    def stroke(
        self, target: np.ndarray, path: Ring, width_px: float, value: int, *, closed: bool
    ) -> None:
        """Draw a line of whole pixels' width along a path."""
        width = max(1, round(width_px))
        cv2.polylines(target, [self.points(path)], closed, value, width, shift=SUBPIXEL_BITS)

    def sees(
        self,
        low: Shaped[np.ndarray, "N 2"],
        high: Shaped[np.ndarray, "N 2"],
        reach: float = 0.0,
    ) -> Bool[np.ndarray, " N"]:
        """Say which boxes, given by corners, touch the canvas widened by ``reach`` pixels."""
        corner = np.array([self.x, self.y])
        return np.all((high > corner - reach) & (low < corner + self.size + reach), axis=-1)

    def sees_ring(self, ring: Ring, reach: float = 0.0) -> bool:
        """Say whether a ring may touch the canvas widened by ``reach`` pixels."""
        return bool(self.sees(ring.min(0)[None], ring.max(0)[None], reach)[0])

    def around(self, ring: Ring) -> tuple[slice, slice]:
        """Return the rows and columns of the canvas that a ring may reach."""
        corner = np.array([self.x, self.y])
        low = np.clip(np.floor(ring.min(0) - corner).astype(int) - 1, 0, self.size)
        high = np.clip(np.ceil(ring.max(0) - corner).astype(int) + 2, 0, self.size)
        return slice(low[1], high[1]), slice(low[0], high[0])

    def spread(self, values: Shaped[np.ndarray, "h w"], cell: float) -> Float32[np.ndarray, "S S"]:
        """Return a coarse field, on cells of ``cell`` slide pixels, at every pixel (linear)."""
        offset_x, offset_y = ((at + 0.5) / cell - 0.5 for at in (self.x, self.y))
        return cv2.warpAffine(
            values.astype(np.float32),
            np.array([[1 / cell, 0, offset_x], [0, 1 / cell, offset_y]]),
            (self.size, self.size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
