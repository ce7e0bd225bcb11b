"""Whole slides, read in parts at a stated scale.

``open_slide`` opens a TIFF of many kinds, a JPEG, a PNG, or what OpenSlide knows. ``Slide`` is the
file; ``SlideView`` is the slide at one scale, with a pixel grid of its own that starts at the
slide's corner. All reading is through views, in the pixels of the view, so that frames cannot be
mixed up: pixel (x, y) of a view covers the level-0 pixels from (x, y) * downsample on.

Decoded tiles are kept in one ``TileCache`` a process. A slide may be read by several threads and
be sent to a worker process, where it opens its file anew.
"""

import itertools
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped, UInt8

from renal_utils import resampling
from renal_utils.geometry import Box, check_mpp, scaled_size
from renal_utils.slide_files import open_source
from renal_utils.slide_levels import Level, SlideSource
from renal_utils.slide_writing import write_pyramid
from renal_utils.tile_cache import TileCache

__all__ = ["Level", "Slide", "SlideView", "open_slide", "write_pyramid"]

WHITE = 255
_STEP_BYTES = 8 * 2**20  # source pixels that a view resamples at a time


_CACHE = TileCache()
_NUMBERS = itertools.count()


def open_slide(
    path: str | Path,
    *,
    mpp: float | int | None = None,
    engine: str = "auto",
    skip_damaged: bool = False,
) -> "Slide":
    """Open a slide for reading in parts.

    Args:
        path: A TIFF (tiled, or striped with strips of modest size; OME, Aperio SVS, generic), a
            JPEG or PNG image, or a file that OpenSlide reads.
        mpp: Microns per pixel at level 0, where the file does not say it or is wrong.
        engine: ``tifffile``, ``image`` or ``openslide``; ``auto`` goes by the file's content.
        skip_damaged: Show tiles that cannot be decoded as white, and list them in
            ``Slide.damaged``, instead of refusing to read them.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If the path is a folder.
        ValueError: If the file is of no known kind, cut off or damaged, or its scale absurd.
        ImportError: If only OpenSlide reads it and OpenSlide is not installed.
    """
    return Slide(Path(path), mpp, engine, skip_damaged)


class Slide:
    """An open slide; a context manager, and picklable by its path.

    Attributes:
        path: The file.
        levels: What the file holds, from the finest to the coarsest.
        mpp: Microns per pixel at level 0, or None where nobody said.
        dtype: Type of the pixels as stored.
        channels: Channels of a pixel, without transparency.
        damaged: Tiles found damaged so far, as (level, column, row); only with ``skip_damaged``.
    """

    def __init__(
        self,
        path: Path,
        mpp: float | int | None = None,
        engine: str = "auto",
        skip_damaged: bool = False,
    ) -> None:
        self.skip_damaged, self.damaged = skip_damaged, set[tuple[int, int, int]]()
        self.path, self.engine = path, engine
        self._given_mpp, self._number, self._closed = mpp, next(_NUMBERS), False
        self._source: SlideSource = open_source(path, engine)
        self.levels, self.dtype = self._source.levels, self._source.dtype
        self.channels = self._source.channels
        try:
            self.mpp = self._find_mpp()
        except ValueError:
            self.close()
            raise

    @property
    def size_l0(self) -> tuple[int, int]:
        """Width and height at full resolution."""
        return self.levels[0].size_px

    def at_downsample(self, downsample: float | int) -> "SlideView":
        """Return the slide at ``downsample`` level-0 pixels a pixel; below 1 enlarges."""
        return SlideView(self, float(downsample))

    def at_mpp(self, mpp: float | int) -> "SlideView":
        """Return the slide at a scale in microns per pixel.

        Raises:
            ValueError: If the slide's own scale is not known, or the one wanted is absurd.
        """
        if self.mpp is None:
            raise ValueError(
                f"{self.path} does not say how many microns a pixel is; state it, "
                "open_slide(path, mpp=...), or work at_downsample(...)"
            )
        return self.at_downsample(check_mpp(float(mpp), where="at_mpp") / self.mpp)

    def thumbnail(self, max_px: int = 1024) -> UInt8[np.ndarray, "H W 3"]:
        """Return the whole slide, its longer side at most ``max_px`` (and never enlarged)."""
        view = self.at_downsample(max(1.0, max(self.size_l0) / max_px))
        return view.read((0, 0), view.size_px)

    def close(self) -> None:
        """Close the file and forget its tiles; sizes and scale stay known, pixels do not."""
        self._closed = True
        self._source.close()
        _CACHE.forget(self._number)

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple:
        return Slide, (self.path, self._given_mpp, self.engine, self.skip_damaged)

    def __repr__(self) -> str:
        width, height = self.size_l0
        return f"Slide({self.path.name!r}, {width} x {height}, mpp={self.mpp})"

    def _find_mpp(self) -> float | None:
        if self._given_mpp is not None:
            return check_mpp(float(self._given_mpp), where=f"mpp given for {self.path}")
        if self._source.stated_mpp is None:
            return None
        stated, origin = self._source.stated_mpp
        return check_mpp(stated, where=f"{self.path}, {origin}")

    def _read_level(self, level: int, box: Box) -> Shaped[np.ndarray, "H W C"]:
        """Return pixels of one level; those outside it repeat its edge."""
        width, height = self.levels[level].size_px
        inside = Box(0, 0, width, height).intersection(box)
        if inside is None:  # beyond a level that was rounded down: one row or column
            x, y = min(max(box.x, 0), width - 1), min(max(box.y, 0), height - 1)
            inside = Box(x, y, min(box.width, width - x), min(box.height, height - y))
        pixels = self._read_inside(level, inside)
        if inside == box:
            return pixels
        columns = np.clip(np.arange(box.x, box.right), inside.x, inside.right - 1) - inside.x
        rows = np.clip(np.arange(box.y, box.bottom), inside.y, inside.bottom - 1) - inside.y
        return pixels[rows][:, columns]

    def _read_inside(self, level: int, box: Box) -> Shaped[np.ndarray, "H W C"]:
        if self._closed:
            raise ValueError(
                f"{self.path} was closed before this read; read inside its `with open_slide(...)` "
                "block, or open it again"
            )
        tile_width, tile_height = self.levels[level].tile_px
        pixels = np.empty((box.height, box.width, self.channels), self.dtype)
        for row in range(box.y // tile_height, (box.bottom - 1) // tile_height + 1):
            for column in range(box.x // tile_width, (box.right - 1) // tile_width + 1):
                tile = self._tile(level, column, row)
                place = Box(column * tile_width, row * tile_height, tile.shape[1], tile.shape[0])
                if shared := place.intersection(box):
                    pixels[shared.shifted(-box.x, -box.y).slices] = tile[
                        shared.shifted(-place.x, -place.y).slices
                    ]
        return pixels

    def _tile(self, level: int, column: int, row: int) -> Shaped[np.ndarray, "H W C"]:
        key = self._number, level, column, row
        return _CACHE.get(key, lambda: self._decode(level, column, row))

    def _decode(self, level: int, column: int, row: int) -> Shaped[np.ndarray, "H W C"]:
        try:
            return self._source.tile(level, column, row)
        except ValueError:
            if not self.skip_damaged:
                raise
        self.damaged.add((level, column, row))
        (width, height), tile = self.levels[level].size_px, self.levels[level].tile_px
        size = min(tile[1], height - row * tile[1]), min(tile[0], width - column * tile[0])
        palette = self._source.palette
        white = WHITE if palette is None else int(palette.sum(axis=1).argmax())
        return np.full((*size, self.channels), white, self.dtype)


class SlideView:
    """A slide at one scale.

    Attributes:
        slide: The slide.
        downsample: Level-0 pixels per pixel of the view.
        size_px: Width and height of the slide in pixels of the view, rounded.
    """

    def __init__(self, slide: Slide, downsample: float) -> None:
        self.slide, self.downsample = slide, downsample
        self.size_px = scaled_size(slide.size_l0, downsample)
        fine = [n for n, one in enumerate(slide.levels) if one.downsample <= downsample + 1e-9]
        self._level = fine[-1] if fine else 0
        self._ratio = downsample / slide.levels[self._level].downsample
        if abs(self._ratio - round(self._ratio)) < 1e-9:
            self._ratio = float(round(self._ratio))

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of the view, or None where the slide's scale is not known."""
        return None if self.slide.mpp is None else self.slide.mpp * self.downsample

    def read(self, xy_px: tuple[int, int], size_px: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """Return a region as RGB; what lies outside the slide is white.

        Pixels are area means of the finest level that is needed, or bilinear where the view
        enlarges. A read equals the crop of any larger read, bit for bit. Grey is repeated.

        Args:
            xy_px: Left and top of the region, in pixels of the view; may be negative.
            size_px: Width and height of the region.

        Raises:
            ValueError: If the size is not positive, the pixels are no 8-bit grey or RGB, a tile is
                damaged, or the slide was closed; the message names the file.
        """
        if self.slide.dtype not in (np.uint8, np.bool_) or self.slide.channels not in (1, 3):
            raise ValueError(
                f"{self.slide.path} holds {self.slide.channels} channels of {self.slide.dtype}, "
                "and an image to look at has 1 or 3 of uint8. Scale it to 8 bits first (16-bit "
                "cameras rarely use the whole range, so only you know by how much), or use "
                "read_channels or read_labels"
            )
        pixels = self._read(_region(xy_px, size_px), WHITE)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def read_channels(
        self, xy_px: tuple[int, int], size_px: tuple[int, int], *, fill: int = 0
    ) -> UInt8[np.ndarray, "H W C"]:
        """Return a region with all channels of an 8-bit file, such as a probability map.

        Resampled as in ``read``; outside the slide is ``fill``.

        Raises:
            ValueError: If the size is not positive or the pixels are not 8-bit.
        """
        if self.slide.dtype not in (np.uint8, np.bool_):
            raise ValueError(f"{self.slide.path} holds {self.slide.dtype}, expected uint8")
        return self._read(_region(xy_px, size_px), fill)

    def read_labels(
        self, xy_px: tuple[int, int], size_px: tuple[int, int], *, fill: int = 0
    ) -> Integer[np.ndarray, "H W"]:
        """Return a region of a label image: the level-0 pixel under the centre of each pixel.

        Coarser levels are not used, since nobody knows how a program reduced its labels.

        Args:
            xy_px: Left and top of the region, in pixels of the view; may be negative.
            size_px: Width and height of the region.
            fill: Value outside the slide.

        Returns:
            Values as stored: ``uint8`` for class maps and bits, wider integers for object ids.

        Raises:
            ValueError: If the size is not positive or the file has several channels.
        """
        if self.slide.channels != 1:
            raise ValueError(
                f"{self.slide.path} has {self.slide.channels} channels; a label image has one"
            )
        box = _region(xy_px, size_px)
        dtype = np.uint8 if self.slide.dtype == np.bool_ else self.slide.dtype
        labels = np.full((box.height, box.width), fill, dtype)
        for part in self._steps(box, self.downsample):
            labels[part.shifted(-box.x, -box.y).slices] = self._nearest(part)
        return labels

    def forget_above(self, y_px: int) -> None:
        """Drop decoded tiles that lie above row ``y_px``, for readers that go down a slide once.

        Keeps memory the same for slides of any height, and does not change what is read.
        """
        tile_height = self.slide.levels[self._level].tile_px[1]
        first = int(y_px * self._ratio) // tile_height
        _CACHE.forget(self.slide._number, keep=lambda key: key[1] != self._level or key[3] >= first)

    def _read(self, box: Box, fill: int) -> UInt8[np.ndarray, "H W C"]:
        palette = self.slide._source.palette
        channels = self.slide.channels if palette is None else 3
        pixels = np.full((box.height, box.width, channels), fill, np.uint8)
        for part in self._steps(box, self._ratio):
            pixels[part.shifted(-box.x, -box.y).slices] = self._render(part)
        return pixels

    def _steps(self, box: Box, ratio: float) -> list[Box]:
        """Cut what lies on the slide into bands that need few source pixels each."""
        inside = Box(0, 0, *self.size_px).intersection(box)
        if inside is None:
            return []
        row_bytes = inside.width * ratio * self.slide.channels * self.slide.dtype.itemsize
        step = max(1, int(_STEP_BYTES / row_bytes / ratio))
        return [
            Box(inside.x, y, inside.width, min(step, inside.bottom - y))
            for y in range(inside.y, inside.bottom, step)
        ]

    def _render(self, box: Box) -> UInt8[np.ndarray, "H W C"]:
        """Compute pixels of the view that lie on the slide."""
        ratio = self._ratio
        if ratio < 1:
            x = resampling.bilinear_span(box.x, box.width, ratio)
            y = resampling.bilinear_span(box.y, box.height, ratio)
            return resampling.bilinear(
                self._source_pixels(x, y), (box.x, box.y), (box.width, box.height), ratio
            )
        edges_x = resampling.pixel_edges(box.x, box.width, ratio)
        edges_y = resampling.pixel_edges(box.y, box.height, ratio)
        x, y = resampling.covered_span(edges_x), resampling.covered_span(edges_y)
        pixels = self._source_pixels(x, y)
        if ratio == 1:
            return pixels
        if ratio.is_integer():
            return resampling.block_mean(pixels, int(ratio))
        unit = resampling.UNIT
        return resampling.area_mean(pixels, edges_x - x[0] * unit, edges_y - y[0] * unit)

    def _source_pixels(self, x: tuple[int, int], y: tuple[int, int]) -> UInt8[np.ndarray, "H W C"]:
        box = Box(x[0], y[0], x[1] - x[0], y[1] - y[0])
        pixels = self.slide._read_level(self._level, box)
        if pixels.dtype == np.bool_:
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        palette = self.slide._source.palette
        return pixels if palette is None else palette[pixels[:, :, 0]]

    def _nearest(self, box: Box) -> Integer[np.ndarray, "H W"]:
        width, height = self.slide.size_l0
        columns = resampling.nearest_indices(box.x, box.width, self.downsample)
        rows = resampling.nearest_indices(box.y, box.height, self.downsample)
        columns, rows = np.minimum(columns, width - 1), np.minimum(rows, height - 1)
        x, y = int(columns[0]), int(rows[0])
        region = Box(x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)
        labels = self.slide._read_level(0, region)[rows - y][:, columns - x, 0]
        return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels


def _region(xy_px: tuple[int, int], size_px: tuple[int, int]) -> Box:
    if min(size_px) <= 0:
        raise ValueError(f"a region needs a positive width and height, not {size_px}")
    return Box(int(xy_px[0]), int(xy_px[1]), int(size_px[0]), int(size_px[1]))
