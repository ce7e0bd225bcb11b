"""Files that hold slides: which kind a file is, and the kinds that are no TIFF.

Besides TIFF (``tiff_files``) there are single JPEG and PNG images, which are one level of one tile,
and whatever OpenSlide reads, if that is installed.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from renal_utils.slide_levels import Level, SlideSource
from renal_utils.tiff_files import TiffSource

ENGINES = ("auto", "tifffile", "openslide", "image")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")
_OPENSLIDE_SUFFIXES = (".ndpi", ".mrxs", ".vms", ".vmu", ".scn", ".bif", ".dcm", ".czi", ".svslide")
_OPENSLIDE_TILE_PX = 512


def open_source(path: Path, engine: str) -> SlideSource:
    """Open a file by the engine named, or by what its first bytes say (``auto``).

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If the path is a folder.
        ValueError: If the engine is unknown or no engine reads this file.
        ImportError: If only OpenSlide reads it and OpenSlide is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not one of {ENGINES}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the slides in it, as {path / '*.tiff'}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    engine = _guess_engine(path) if engine == "auto" else engine
    if engine == "openslide":
        return OpenSlideSource(path)
    if engine == "image":
        return ImageSource(path)
    return TiffSource(path)


def _guess_engine(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if path.suffix.lower() in _OPENSLIDE_SUFFIXES:
        return "openslide"
    if start.startswith(_TIFF_MAGIC):
        return "tifffile"
    if start.startswith(_IMAGE_MAGIC):
        return "image"
    raise ValueError(
        f"{path} is no TIFF, JPEG or PNG: its {path.stat().st_size} bytes begin with "
        f"{start.hex(' ') or 'nothing'}. Was it downloaded whole, and is it the image itself?"
    )


class ImageSource:
    """A JPEG or PNG as a slide of one level and one tile, decoded when first read."""

    stated_mpp: tuple[float, str] | None = None  # the resolution of such files is that of a screen

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as image:
            self.palette = _read_palette(image)
            self.channels = 1 if image.mode in ("1", "L", "P", "I", "I;16") else 3
            self.dtype = np.dtype(np.uint16 if image.mode.startswith("I") else np.uint8)
            self.levels: tuple[Level, ...] = (Level(image.size, 1.0, image.size),)

    def tile(self, level: int, column: int, row: int) -> Integer[np.ndarray, "H W C"]:
        with self._open() as image:
            try:
                keep = image.mode in ("L", "P") or image.mode.startswith("I")
                mode = "RGB" if self.channels == 3 else "L"
                pixels = np.array(image if keep else image.convert(mode), self.dtype)
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(
                    f"{self._path} cannot be decoded ({error}); it is cut off or damaged at "
                    f"{self._path.stat().st_size} bytes: copy it again"
                ) from error
        return pixels.reshape(*pixels.shape[:2], self.channels)

    def close(self) -> None:
        """Do nothing: the file is only open while it is decoded."""

    def _open(self) -> Any:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                return Image.open(self._path)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{self._path} is too large to be read as one image ({error}); rewrite it as a "
                "tiled TIFF, for instance `vips tiffsave in.png out.tif --tile --pyramid`"
            ) from error
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{self._path} is no image that can be read ({error})") from error


def _read_palette(image: Any) -> UInt8[np.ndarray, "256 3"] | None:
    if image.mode != "P":
        return None
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return np.concatenate([colours, np.zeros((256 - len(colours), 3), np.uint8)])


class OpenSlideSource:
    """A slide read by OpenSlide; transparent pixels become white."""

    channels, dtype = 3, np.dtype(np.uint8)
    palette: UInt8[np.ndarray, "256 3"] | None = None

    def __init__(self, path: Path) -> None:
        self._path, self._pid = path, os.getpid()
        self._slide = slide = _open_by_openslide(path)
        tile = (_OPENSLIDE_TILE_PX, _OPENSLIDE_TILE_PX)
        self.levels = tuple(
            Level(size, float(downsample), tile)
            for size, downsample in zip(
                slide.level_dimensions, slide.level_downsamples, strict=True
            )
        )
        mpp = slide.properties.get("openslide.mpp-x")
        self.stated_mpp = None if mpp is None else (float(mpp), "openslide.mpp-x")

    def tile(self, level: int, column: int, row: int) -> UInt8[np.ndarray, "H W C"]:
        if self._pid != os.getpid():  # a forked worker must not share the parent's handle
            self._slide, self._pid = _open_by_openslide(self._path), os.getpid()
        this = self.levels[level]
        xy = column * this.tile_px[0], row * this.tile_px[1]
        size = tuple(
            min(t, s - at) for t, s, at in zip(this.tile_px, this.size_px, xy, strict=True)
        )
        xy_l0 = tuple(round(at * this.downsample) for at in xy)
        try:
            pixels = np.asarray(self._slide.read_region(xy_l0, level, size))
        except Exception as error:  # OpenSlideError; its class is only there with the extra
            raise ValueError(
                f"{self._path}: {error}; the file is damaged: copy it again"
            ) from error
        return _on_white(pixels)

    def close(self) -> None:
        self._slide.close()


def _open_by_openslide(path: Path) -> Any:
    try:
        import openslide
    except ImportError as error:
        raise ImportError(
            f"{path} needs OpenSlide, which is not installed: pip install renal-utils[openslide]"
        ) from error
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise ValueError(f"{path} cannot be read by OpenSlide ({error})") from error


def _on_white(rgba: UInt8[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 3"]:
    alpha = rgba[:, :, 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[:, :, :3])
    blended = rgba[:, :, :3] * (alpha / 255) + (255 - alpha.astype(float))
    return np.rint(blended).astype(np.uint8)
