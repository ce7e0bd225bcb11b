"""TIFF slides, tile by tile: levels, axis orders, compressions, scale.

tifffile parses the file and knows each codec; the pixels are fetched one tile (or strip) at a time
by its offset, so a slide is never decoded as a whole. Pyramids come as SubIFDs (OME-TIFF), as
pages (Aperio SVS) or as several series; channels as samples of a pixel, as separate planes, or as
pages (HuBMAP's 1 x 1 x C x H x W).
"""

import math
import os
import re
import threading
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import tifffile
from jaxtyping import Shaped, UInt8

from renal_utils.slide_levels import Level

_LARGEST_STRIP = 128 * 2**20  # decoded bytes that one read may cost
_MAPPED_ROWS = 256  # an uncompressed image without tiles is read so many rows at a time
_APERIO_JPEG2000 = (33003, 33004, 33005)  # 33003 is YCbCr whatever the tags say, 33005 RGB
_SIDE_IMAGES = ("Thumbnail", "Label", "Macro", "Overview")
_COARSEST_RESOLUTION = 20.0  # resolution tags that say more microns per pixel are a screen's
_MICRONS = {"m": 1e6, "mm": 1e3, "cm": 1e4, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "Å": 1e-4}
_CONVERT = (
    "rewrite it in tiles, for instance `vips tiffsave in.tif out.tif --tile --pyramid "
    "--compression jpeg --bigtiff`"
)


class TiffSource:
    """The levels of one TIFF file; see ``slide_levels.SlideSource``.

    The directory is parsed once and the file then read through one handle under a lock, which is
    opened anew in a forked process. Decoding holds no lock.

    Raises:
        ValueError: If the file is no TIFF, is cut off, or its pixels have axes, or are stored in
            a way, that slides cannot have; each message names the file and a remedy.
    """

    def __init__(self, path: Path) -> None:
        self._bytes = _FileBytes(path)
        try:
            with tifffile.TiffFile(path, _multifile=False) as tif:
                _check_chain(tif, path)
                series = _pyramid_series(tif, path)
                pages = [_open_level(one, self._bytes, number) for number, one in enumerate(series)]
                self._pages = [page for page in pages if page is not None]
                self.stated_mpp = _stated_mpp(tif, series[0])
                self.palette = _palette(series[0].keyframe)
        except (tifffile.TiffFileError, OSError, IndexError, KeyError, TypeError) as error:
            self.close()
            raise ValueError(_cut_off(path, f"its directory cannot be read: {error}")) from error
        except BaseException:
            self.close()
            raise
        self.channels, self.dtype = self._pages[0].channels, self._pages[0].dtype
        size = self._pages[0].size_px
        self.levels = tuple(
            Level(p.size_px, level_downsample(size, p.size_px), p.tile_px) for p in self._pages
        )

    def tile(self, level: int, column: int, row: int) -> Shaped[np.ndarray, "H W C"]:
        return self._pages[level].tile(column, row)

    def close(self) -> None:
        self._bytes.close()


class _FileBytes:
    """Bytes of a file by offset; safe in threads and after a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        self._file = self.path.open("rb")
        self._pid, self._lock = os.getpid(), threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        if self._pid != os.getpid():
            self._open()
        with self._lock:
            self._file.seek(offset)
            return self._file.read(count)

    def close(self) -> None:
        self._file.close()


class _TiledLevel:
    """One level stored in tiles or strips, on one page or on one page for each channel."""

    def __init__(self, pages: list[Any], file: _FileBytes, number: int) -> None:
        key = pages[0].keyframe
        self._pages, self._key, self._file, self._number = pages, key, file, number
        self._decode = _decode_jpeg2000 if key.compression in _APERIO_JPEG2000 else key.decode
        self._codec = {"jpegtables": key.jpegtables, "jpegheader": key.jpegheader}
        self.size_px = (key.imagewidth, key.imagelength)
        tile = (key.tilewidth, key.tilelength) if key.is_tiled else (key.imagewidth, _rows(key))
        self.tile_px = tile
        self._grid = tuple(math.ceil(s / t) for s, t in zip(self.size_px, tile, strict=True))
        self._planes = key.samplesperpixel if key.planarconfig == 2 else 1
        self._colours = len(pages) if len(pages) > 1 else _colours(key)
        self.channels, self.dtype = self._colours, np.dtype(key.dtype.newbyteorder("="))
        self._check_segments()

    def tile(self, column: int, row: int) -> Shaped[np.ndarray, "H W C"]:
        index = row * self._grid[0] + column
        planes = range(min(self._planes, self._colours))
        parts = [
            self._segment(page, plane * self._grid[0] * self._grid[1] + index)
            for page in self._pages
            for plane in planes
        ]
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        width, height = (
            min(t, s - t * at)
            for t, s, at in zip(self.tile_px, self.size_px, (column, row), strict=True)
        )
        pixels = pixels[:height, :width, : self._colours]
        return np.ascontiguousarray(_plain_colours(pixels, self._key))

    def _segment(self, page: Any, index: int) -> np.ndarray:
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:  # left out by the writer: glass
            samples = 1 if self._planes > 1 else self._key.samplesperpixel
            blank = 255 if self._key.photometric in (2, 6) else 0
            return np.full((self.tile_px[1], self.tile_px[0], samples), blank, self.dtype)
        data = self._file.read(offset, count)
        if len(data) < count:
            raise ValueError(
                _cut_off(
                    self._file.path,
                    f"tile {index} of level {self._number} ends at byte {offset + count}",
                )
            )
        try:
            decoded = self._decode(data, index, **self._codec)[0]
        except Exception as error:  # each codec has its own exceptions
            raise ValueError(
                f"{self._file.path}: tile {index} of level {self._number} cannot be decoded "
                f"({type(error).__name__}: {error}); the file is damaged there: copy it again, or "
                "take such tiles as white with skip_damaged=True (--skip-damaged)"
            ) from error
        return decoded[0].astype(self.dtype, copy=False)

    def _check_segments(self) -> None:
        """Check that each tile is listed and lies within the file."""
        wanted = self._grid[0] * self._grid[1] * self._planes
        size = self._file.path.stat().st_size
        for page in self._pages:
            found = min(len(page.dataoffsets), len(page.databytecounts))
            if found < wanted:
                raise ValueError(
                    _cut_off(
                        self._file.path, f"level {self._number} lists {found} of its {wanted} tiles"
                    )
                )
            end = np.add(page.dataoffsets, page.databytecounts, dtype=np.int64).max()
            if end > size:
                raise ValueError(_cut_off(self._file.path, f"level {self._number} needs {end}"))


class _MappedLevel:
    """One uncompressed level without tiles: rows are taken from the file as they lie there."""

    def __init__(self, series: Any, file: _FileBytes) -> None:
        self._file, self._dtype = file, np.dtype(series.parent.byteorder + series.dtype.char)
        shape = tuple(n for n in series.shape if n > 1) if series.ndim > 2 else series.shape
        self._offset, self._shape = series.dataoffset, shape
        self._first = len(shape) == 3 and shape[0] <= 4
        self.channels = 1 if len(shape) == 2 else shape[0] if self._first else shape[2]
        height, width = shape[-2:] if self._first or len(shape) == 2 else shape[:2]
        self.size_px, self.tile_px = (width, height), (width, min(_MAPPED_ROWS, height))
        self.dtype = self._dtype.newbyteorder("=")
        end = self._offset + math.prod(shape) * self.dtype.itemsize
        if end > file.path.stat().st_size:
            raise ValueError(_cut_off(file.path, f"its pixels end at byte {end}"))

    def tile(self, column: int, row: int) -> Shaped[np.ndarray, "H W C"]:
        width, height = self.size_px
        rows = min(self.tile_px[1], height - row * self.tile_px[1])
        start, depth = row * self.tile_px[1] * width, 1 if self._first else self.channels
        planes = [
            self._pixels((start + plane * width * height) * depth, rows * width * depth)
            for plane in range(self.channels if self._first else 1)
        ]
        return np.concatenate([plane.reshape(rows, width, depth) for plane in planes], axis=2)

    def _pixels(self, start: int, count: int) -> np.ndarray:
        size = self.dtype.itemsize
        data = self._file.read(self._offset + start * size, count * size)
        if len(data) < count * size:
            raise ValueError(_cut_off(self._file.path, "rows are missing"))
        return np.frombuffer(data, self._dtype).astype(self.dtype, copy=False)


def _decode_jpeg2000(data: bytes, index: int, **_: object) -> tuple[np.ndarray, int]:
    """Decode without tifffile's look at the tag of subsampling, which Aperio leaves wrong."""
    return imagecodecs.jpeg2k_decode(data)[None], index


def level_downsample(size_l0: tuple[int, int], size_px: tuple[int, int]) -> float:
    """Return the roundest downsample that explains a level's size to within a pixel.

    Writers round the size of a level up or down, so the ratio of the sizes is not the downsample;
    taking it would shift the far side of a large slide by a pixel.
    """
    ratios = [full / part for full, part in zip(size_l0, size_px, strict=True)]
    mean = sum(ratios) / 2
    for digits in range(4):
        rounded = round(mean, digits)
        sizes = zip(size_l0, size_px, strict=True)
        if rounded >= 1 and all(abs(full / rounded - part) < 1 for full, part in sizes):
            return rounded
    return mean


def _cut_off(path: Path, found: str) -> str:
    return (
        f"{path} is damaged or cut off: {found}, and the file has {path.stat().st_size} bytes. "
        "Copy or download it again and compare its size with the original's"
    )


def _check_chain(tif: Any, path: Path) -> None:
    """Refuse a file whose directories point behind its end; tifffile would leave those out."""
    size, layout = path.stat().st_size, tif.tiff
    if len(tif.pages) == 0:
        raise ValueError(_cut_off(path, "it lists no image"))
    last = tif.pages[len(tif.pages) - 1]
    handle = tif.filehandle
    handle.seek(last.offset)
    tags = int.from_bytes(handle.read(layout.tagnosize), _order(tif))
    handle.seek(last.offset + layout.tagnosize + tags * layout.tagsize)
    pointers = [int.from_bytes(handle.read(layout.offsetsize), _order(tif))]
    for page in tif.pages:
        pointers += page.subifds or ()
        if page.subifds and not all(sub.dataoffsets for sub in page.pages):
            raise ValueError(_cut_off(path, "a level lists no tiles"))
    if max(pointers) >= size:
        raise ValueError(_cut_off(path, f"a directory lies at byte {max(pointers)}"))


def _order(tif: Any) -> Literal["little", "big"]:
    return "little" if tif.byteorder == "<" else "big"


def _pyramid_series(tif: tifffile.TiffFile, path: Path) -> list[Any]:
    """Return the series or levels that make up the pyramid of the largest image, finest first."""
    images = [level for one in tif.series for level in one.levels if _may_be_slide(level)]
    if not images:
        raise ValueError(f"{path} holds no image; it has {[one.name for one in tif.series]}")
    base = max(images, key=lambda one: math.prod(_size(one)))
    _check_axes(base, path)
    reduced = [one for one in images if _is_reduced(one, base)]
    if tif.is_ome and len(base.levels) > 1:  # then other images are what they say: others
        reduced = list(base.levels[1:])
    by_size = {_size(one): one for one in reduced}
    return [base, *sorted(by_size.values(), key=lambda one: -math.prod(_size(one)))]


def _may_be_slide(series: Any) -> bool:
    """Leave out side images; but what tifffile takes for a thumbnail is a level if it has tiles."""
    return "X" in series.axes and (series.name not in _SIDE_IMAGES or series.keyframe.is_tiled)


def _size(series: Any) -> tuple[int, int]:
    return series.keyframe.imagewidth, series.keyframe.imagelength


def _is_reduced(series: Any, base: Any) -> bool:
    """Say whether a series shows the image of ``base``, smaller."""
    (width, height), (full_width, full_height) = _size(series), _size(base)
    ratio = full_width / width
    return (
        ratio > 1.2
        and abs(full_height / ratio - height) <= 1 + height / width
        and series.dtype == base.dtype
        and series.keyframe.samplesperpixel == base.keyframe.samplesperpixel
        and len(series.pages) == len(base.pages)
    )


def _check_axes(series: Any, path: Path) -> None:
    others = [
        (a, n) for a, n in zip(series.axes, series.shape, strict=True) if a not in "YX" and n > 1
    ]
    if len(others) > 1 or series.dtype is None or series.dtype.kind not in "uib":
        raise ValueError(
            f"{path} holds {series.dtype} pixels with axes {series.axes} {series.shape}; a slide "
            "has whole-number pixels, rows, columns and at most one axis of channels. Export one "
            "focal plane of one time as 8-bit RGB"
        )


def _open_level(series: Any, file: _FileBytes, number: int) -> _TiledLevel | _MappedLevel | None:
    """Return a reader of one level, or None for a reduced level that cannot be read in parts."""
    key = series.keyframe
    plain = key.compression == 1 and key.photometric != 0 and key.bitspersample % 8 == 0
    if not key.is_tiled and plain and series.dataoffset is not None:
        return _MappedLevel(series, file)
    strip = key.imagewidth * _rows(key) * key.samplesperpixel * key.dtype.itemsize
    if not key.is_tiled and strip > _LARGEST_STRIP:
        if number > 0:
            return None
        raise ValueError(
            f"{file.path} has no tiles: it is stored in strips of {_rows(key)} rows that take "
            f"{strip / 2**20:.0f} MiB each, so it cannot be read in parts; {_CONVERT}"
        )
    return _TiledLevel(list(series.pages), file, number)


def _rows(page: Any) -> int:
    return min(page.rowsperstrip or page.imagelength, page.imagelength)


def _colours(page: Any) -> int:
    """Return the samples of a pixel that are not transparency."""
    if page.photometric in (2, 6):
        return min(3, page.samplesperpixel)
    alphas = sum(1 for extra in page.extrasamples if extra in (1, 2))
    return page.samplesperpixel - alphas


def _plain_colours(pixels: np.ndarray, page: Any) -> np.ndarray:
    """Undo what a codec leaves: YCbCr of Aperio's JPEG 2000, white as 0, bits as 0 and 1."""
    if page.compression == 33003 and pixels.shape[2] == 3:
        return _rgb_from_ycbcr(pixels)
    if page.photometric == 0:
        return np.iinfo(pixels.dtype).max - pixels if pixels.dtype != bool else ~pixels
    return pixels


def _rgb_from_ycbcr(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Convert full-range YCbCr (JFIF, ITU-R BT.601) to RGB."""
    y, cb, cr = np.moveaxis(pixels.astype(np.float32), 2, 0)
    cb, cr = cb - 128, cr - 128
    rgb = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    return np.clip(np.rint(np.stack(rgb, axis=2)), 0, 255).astype(np.uint8)


def _palette(page: Any) -> UInt8[np.ndarray, "256 3"] | None:
    if page.photometric != 3 or page.colormap is None or page.colormap.shape[1] != 256:
        return None
    return (page.colormap >> 8).astype(np.uint8).T.copy()


def _stated_mpp(tif: Any, series: Any) -> tuple[float, str] | None:
    """Return the scale that the file states, from the most to the least trustworthy place."""
    description = tif.pages[0].description or ""
    if found := re.search(r"\bMPP\s*=\s*([^|\s]+)", description):
        return _number(found[1]), "MPP in the Aperio description"
    if tif.is_ome and (mpp := _ome_mpp(tif.ome_metadata or "")) is not None:
        return mpp, "PhysicalSizeX in the OME-XML"
    microns = {2: 25400.0, 3: 10000.0}.get(int(series.keyframe.resolutionunit or 1))
    across = series.keyframe.resolution[0]
    if microns and across > 0 and microns / across <= _COARSEST_RESOLUTION:
        return microns / across, "the resolution tags"
    return None


def _ome_mpp(xml: str) -> float | None:
    try:
        pixels = ElementTree.fromstring(xml).find(".//{*}Pixels")
    except ElementTree.ParseError:
        return None
    if pixels is None or "PhysicalSizeX" not in pixels.attrib:
        return None
    unit = _MICRONS.get(pixels.attrib.get("PhysicalSizeXUnit", "µm"))
    return None if unit is None else _number(pixels.attrib["PhysicalSizeX"]) * unit


def _number(text: str) -> float:
    """Return the number written in ``text``, or NaN, which no check of a scale lets pass."""
    try:
        return float(text)
    except ValueError:
        return math.nan
