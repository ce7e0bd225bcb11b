"""Write tiled pyramids from row bands, with memory that does not depend on the height.

The bands pass once: they are cut into tiles for level 0 and halved for level 1, which waits in a
``BandStore`` beside the target until its turn comes; so on, level by level.
"""

import errno
import itertools
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tifffile

from renal_utils.bandstore import BandStore
from renal_utils.geometry import check_mpp
from renal_utils.resampling import block_mean
from renal_utils.runtime import atomic_path

COMPRESSIONS = ("jpeg", "jpeg2000", "deflate", "none")
KINDS = ("image", "labels", "probability")
_DEFAULTS = {"image": "jpeg", "labels": "deflate", "probability": "deflate"}
_BUFFER_BYTES = 16 * 2**20  # tiles that wait for their encoders
_BIG = 2**32 - 2**28  # bytes of pixels from which on the file is a BigTIFF


def write_pyramid(
    path: str | Path,
    rows: np.ndarray | Iterable[np.ndarray],
    *,
    size_px: tuple[int, int],
    mpp: float | int | None = None,
    tile_px: int = 512,
    compression: str | None = None,
    kind: str = "image",
    quality: int = 90,
) -> None:
    """Write a tiled pyramidal OME-TIFF; each level has half the width and height of the one before.

    Images and probabilities are reduced by area mean, labels by taking one pixel of four. The same
    input gives the same bytes. On any error, a full disk too, ``path`` stays as it was.

    Args:
        path: File to write; an existing one is replaced at the end.
        rows: ``uint8`` bands ``H_i W``, or ``H_i W C``, of any heights that sum to the height; or
            one array. Labels have one channel, and may be ``uint16`` or ``uint32`` where ids need
            it; images have 1 or 3, probabilities any number.
        size_px: Width and height.
        mpp: Microns per pixel of level 0, written as PhysicalSize and as resolution.
        tile_px: Width and height of a tile, a multiple of 16.
        compression: ``jpeg``, ``jpeg2000`` (lossy to ``quality`` dB), ``deflate`` or ``none``;
            None means JPEG for images and deflate for the rest.
        kind: ``image``, ``labels`` or ``probability``.
        quality: Of JPEG (1 to 100; chroma is not subsampled from 90 on), or the signal-to-noise
            ratio of JPEG 2000.

    Raises:
        ValueError: If the bands do not fit ``size_px`` or each other, or an option is unknown;
            JPEG is refused for labels, which it would blur.
        OSError: If the disk is full.
    """
    path = Path(path)
    bands = iter([rows] if isinstance(rows, np.ndarray) else rows)
    first = next(bands, None)
    if first is None:
        raise ValueError(f"{path}: no rows were given, expected {size_px[1]}")
    plan = _Plan(path, size_px, tile_px, kind, compression or _DEFAULTS.get(kind, ""), first)
    plan.check(quality, mpp)
    with _named_errors(path), atomic_path(path) as temporary, ExitStack() as stack:
        bigtiff = plan.bytes_l0 * 4 / 3 > _BIG
        with tifffile.TiffWriter(temporary, bigtiff=bigtiff, ome=True) as tif:
            _write_levels(tif, plan, itertools.chain([first], bands), stack, (quality, mpp))


@dataclass(frozen=True)
class _Plan:
    """What is to be written; ``first`` is the first band, which tells type and channels."""

    path: Path
    size_px: tuple[int, int]
    tile_px: int
    kind: str
    compression: str
    first: np.ndarray

    @property
    def channels(self) -> int:
        return 1 if self.first.ndim == 2 else self.first.shape[2]

    @property
    def bytes_l0(self) -> int:
        return math.prod(self.size_px) * self.channels * self.first.dtype.itemsize

    @property
    def sizes_px(self) -> list[tuple[int, int]]:
        """Sizes of all levels: halved, rounded up, until one tile holds all."""
        sizes = [self.size_px]
        while max(sizes[-1]) > self.tile_px:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        return sizes

    def check(self, quality: int, mpp: float | int | None) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.path}: kind {self.kind!r} is not one of {KINDS}")
        if self.compression not in COMPRESSIONS:
            raise ValueError(
                f"{self.path}: compression {self.compression!r} is not one of {COMPRESSIONS}"
            )
        if min(self.size_px) <= 0 or self.tile_px <= 0 or self.tile_px % 16:
            raise ValueError(
                f"{self.path}: size {self.size_px} must be positive and tile_px {self.tile_px} a "
                "positive multiple of 16"
            )
        if not 1 <= quality <= 100:
            raise ValueError(f"{self.path}: quality {quality} must lie within 1 to 100")
        if mpp is not None:
            check_mpp(float(mpp), where=f"mpp for {self.path}")
        self._check_pixels()

    def _check_pixels(self) -> None:
        lossy = self.compression.startswith("jpeg")
        if self.kind == "labels" and lossy:
            raise ValueError(f"{self.path}: {self.compression} would change labels; use 'deflate'")
        types = ("uint8", "uint16", "uint32") if self.kind == "labels" else ("uint8",)
        most = {"labels": (1,), "image": (1, 3)}.get(self.kind, (1, 3) if lossy else range(1, 256))
        if self.first.dtype.name not in types or self.channels not in most:
            raise ValueError(
                f"{self.path}: bands of {self.channels} channels of {self.first.dtype} were given; "
                f"{self.kind} with {self.compression} needs {types} and channels in {most}"
            )


def _write_levels(
    tif: tifffile.TiffWriter,
    plan: _Plan,
    bands: Iterator[np.ndarray],
    stack: ExitStack,
    options: tuple[int, float | int | None],
) -> None:
    """Write level 0 from the bands, and each further level from what the one before left."""
    sizes, (quality, mpp) = plan.sizes_px, options
    prefix = f".{plan.path.name}."
    folder = Path(stack.enter_context(TemporaryDirectory(prefix=prefix, dir=plan.path.parent)))
    for number, size in enumerate(sizes):
        spill = None
        if number + 1 < len(sizes):
            spill = _Spill(folder / f"{number + 1}.bands", sizes[number + 1], plan)
            stack.callback(spill.close)
        tiles = _tiles(_checked(bands, size, plan), plan, spill)
        tif.write(
            tiles,
            shape=(size[1], size[0], plan.channels)[: 2 + (plan.channels > 1)],
            dtype=plan.first.dtype,
            tile=(plan.tile_px, plan.tile_px),
            subifds=len(sizes) - 1 if number == 0 else None,
            subfiletype=1 if number else 0,
            metadata=_ome(plan, mpp) if number == 0 else None,
            **_encoding(plan, quality),
            **_resolution(mpp, 2**number),
        )
        next(tiles, None)  # runs into the check that no rows are left over
        bands = spill.bands() if spill else iter(())


class _Spill:
    """The rows of one level until it is written; any unsigned type, kept as bytes."""

    def __init__(self, path: Path, size_px: tuple[int, int], plan: _Plan) -> None:
        self._path, self._dtype, self._tile_px = path, plan.first.dtype, plan.tile_px
        channels = plan.channels * plan.first.dtype.itemsize
        self._store = BandStore(path, width_px=size_px[0], channels=channels)

    def append(self, band: np.ndarray) -> None:
        self._store.append(np.ascontiguousarray(band).view(np.uint8))

    def bands(self) -> Iterator[np.ndarray]:
        """Yield the rows and delete the file behind the last of them."""
        with self._store as store:
            for band in store.bands(self._tile_px):
                yield band.reshape(*band.shape[:2], -1).view(self._dtype)
        self._path.unlink()

    def close(self) -> None:
        self._store.close()


def _checked(
    bands: Iterator[np.ndarray], size_px: tuple[int, int], plan: _Plan
) -> Iterator[np.ndarray]:
    """Yield bands as ``H W C``, making sure that they add up to the size."""
    width, height = size_px
    done = 0
    for band in bands:
        band = band[:, :, None] if band.ndim == 2 else band
        if band.shape[1:] != (width, plan.channels) or band.dtype != plan.first.dtype:
            raise ValueError(
                f"{plan.path}: a band {band.shape} of {band.dtype} at row {done}, expected "
                f"{width} pixels of {plan.channels} channels of {plan.first.dtype}"
            )
        done += len(band)
        if done > height:
            raise ValueError(f"{plan.path}: rows go on behind row {height}, the height given")
        yield band
    if done < height:
        raise ValueError(f"{plan.path}: rows end at {done}, expected {height}")


def _tiles(bands: Iterator[np.ndarray], plan: _Plan, spill: _Spill | None) -> Iterator[np.ndarray]:
    """Cut bands into tiles, row by row, handing each row of tiles on at half its size."""
    step = plan.tile_px
    for row in _regroup(bands, step):
        if spill is not None:
            spill.append(_halve(row, plan.kind))
        row = np.pad(row, ((0, step - len(row)), (0, -row.shape[1] % step), (0, 0)), mode="edge")
        for x in range(0, row.shape[1], step):
            tile = np.ascontiguousarray(row[:, x : x + step])
            yield tile if plan.channels > 1 else tile[:, :, 0]


def _regroup(bands: Iterator[np.ndarray], height: int) -> Iterator[np.ndarray]:
    """Yield the rows of all bands in bands of ``height``; the last may be lower."""
    held: list[np.ndarray] = []
    rows = 0
    for band in bands:
        start = 0
        while rows + len(band) - start >= height:
            stop = start + height - rows
            yield np.concatenate([*held, band[start:stop]])
            held, rows, start = [], 0, stop
        if start < len(band):
            held.append(band[start:].copy())  # a band that a caller reuses must not change here
            rows += len(band) - start
    if held:
        yield np.concatenate(held)


def _halve(band: np.ndarray, kind: str) -> np.ndarray:
    height, width = band.shape[:2]
    if kind == "labels":  # the pixel right and below the centre, where there is one
        return band[_odd(height)][:, _odd(width)]
    return block_mean(np.pad(band, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"), 2)


def _odd(length: int) -> np.ndarray:
    return np.minimum(np.arange(1, length + 1, 2), length - 1)


def _encoding(plan: _Plan, quality: int) -> dict[str, Any]:
    """Return tifffile's words for how pixels are stored."""
    rgb = plan.kind == "image" and plan.channels == 3
    options: dict[str, Any] = {
        "photometric": "rgb" if rgb else "minisblack",
        "software": "renal-utils",
        "maxworkers": min(8, os.cpu_count() or 1),
        "buffersize": _BUFFER_BYTES,
    }
    if plan.channels > 1:
        options["planarconfig"] = "contig"
    if plan.compression == "none":
        return options
    options["compression"] = plan.compression
    if plan.compression.startswith("jpeg"):
        options["compressionargs"] = {"level": quality}
    elif plan.kind != "labels":
        options["predictor"] = True
    if plan.compression == "jpeg" and plan.channels == 3:
        options |= {"photometric": "rgb", "subsampling": (1, 1) if quality >= 90 else (2, 2)}
    return options


def _resolution(mpp: float | int | None, downsample: int) -> dict[str, Any]:
    if mpp is None:
        return {}
    per_centimetre = 1e4 / (mpp * downsample)
    return {"resolution": (per_centimetre, per_centimetre), "resolutionunit": "CENTIMETER"}


def _ome(plan: _Plan, mpp: float | int | None) -> dict[str, Any]:
    """Return the OME metadata; the UUID is drawn from them, so that bytes repeat."""
    named = f"{plan.path.name} {plan.size_px} {plan.channels} {plan.kind} {mpp}"
    metadata: dict[str, Any] = {
        "axes": "YXS" if plan.channels > 1 else "YX",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, named)),
    }
    if mpp is not None:
        for axis in "XY":
            metadata[f"PhysicalSize{axis}"] = mpp
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    return metadata


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Say which file a full disk has stopped, and that nothing is left of it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"no space left while writing {path}; nothing of it was kept. Free some "
            "space (a pyramid needs up to twice its size while it is written) and run again",
        ) from error
