"""Finished row bands on disk: append-only, compressed, whole again after a kill.

A slide's result is made from top to bottom, a band of rows at a time, and is larger than memory.
``BandStore`` keeps the bands in one file. Each band is one record: a header, the lengths of its
blocks, the blocks (columns of ``BLOCK_PX`` pixels, compressed), and checksums over all of it. A
process that dies while writing leaves a torn last record; opening the file again finds it by its
checksum and cuts it off. What was finished before stays, byte for byte.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from renal_utils.geometry import Box

BLOCK_PX = 1024  # columns a block: what reading a small box has to decompress
_FILE = struct.Struct("<8sIIII")  # magic, width, channels, length of key, checksum of key
_BAND = struct.Struct("<4sIIII")  # magic, rows, number of blocks, checksum of table, of payload
_MAGIC, _BAND_MAGIC = b"RNLBAND1", b"BAND"


class _Band(NamedTuple):
    start: int  # first row
    rows: int
    end: int  # offset in the file behind the record
    blocks: tuple[tuple[int, int], ...]  # (offset, length) in the file of each block


class BandStore:
    """An append-only store of the rows of one image; ``uint8``, one or more channels.

    Reopening a file goes on where it was: ``rows_done`` tells how far. One process writes; reading
    while appending is fine in the same thread.

    Attributes:
        path: The file.
        width_px: Width of every band.
        channels: Channels of a pixel. With 1, bands are ``H W``, else ``H W C``.
    """

    def __init__(
        self, path: str | Path, *, width_px: int, channels: int = 1, key: str = ""
    ) -> None:
        """Open the store at ``path``, or make an empty one.

        Args:
            path: The file.
            width_px: Width of the image.
            channels: Channels of a pixel.
            key: Says what the rows were made from (a hash of checkpoint, slide and plan, say). An
                existing file with another key is refused, so that a run never goes on from
                another run's rows.

        Raises:
            ValueError: If the file is no band store, or one of another width, channels or key.
        """
        if width_px <= 0 or channels <= 0:
            raise ValueError(
                f"{path}: width and channels must be positive, not {width_px} and {channels}"
            )
        self.path, self.width_px, self.channels, self.key = Path(path), width_px, channels, key
        self._codec = pa.Codec("zstd", compression_level=1)
        self._bands: list[_Band] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open_for_update(self.path)
        try:
            self._start = self._check_header()
            self._find_bands()
        except BaseException:
            self._file.close()
            raise

    @property
    def rows_done(self) -> int:
        """Rows finished so far."""
        return self._bands[-1].start + self._bands[-1].rows if self._bands else 0

    def append(self, band: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W C"]) -> None:
        """Add the next rows, ``H W`` with one channel or ``H W C``; on return they will last.

        Raises:
            ValueError: If the band has another width or other channels.
            OSError: If the disk is full; the store then is as it was before.
        """
        shape = (*band.shape, 1) if band.ndim == 2 else band.shape
        if shape[1:] != (self.width_px, self.channels) or shape[0] == 0:
            raise ValueError(
                f"{self.path}: a band of shape {band.shape} was given, expected rows "
                f"of {self.width_px} pixels with {self.channels} channels"
            )
        payload = [
            self._compress(band[:, x : x + BLOCK_PX]) for x in range(0, self.width_px, BLOCK_PX)
        ]
        record = _pack(shape[0], payload)
        end = self._end
        try:
            self._file.seek(end)
            _write_all(self._file, record)
        except OSError:
            self._cut(end)
            raise
        self._bands.append(_index(self.rows_done, shape[0], end, [len(p) for p in payload]))

    def read(self, box: Box) -> UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W C"]:
        """Return the pixels of ``box``, which must lie within the finished rows.

        Raises:
            ValueError: If the box reaches outside, or the file was changed meanwhile.
        """
        if min(box.x, box.y) < 0 or box.right > self.width_px or box.bottom > self.rows_done:
            raise ValueError(
                f"{self.path}: {box} reaches outside the finished "
                f"{self.width_px} x {self.rows_done} pixels"
            )
        pixels = np.empty((box.height, box.width, self.channels), np.uint8)
        for band in self._bands:
            if band.start < box.bottom and band.start + band.rows > box.y:
                self._read_band(band, box, pixels)
        return pixels[:, :, 0] if self.channels == 1 else pixels

    def bands(self, height: int = 512) -> Iterator[np.ndarray]:
        """Yield all finished rows in order, ``height`` rows at a time (the last may be fewer)."""
        for y in range(0, self.rows_done, height):
            yield self.read(Box(0, y, self.width_px, min(height, self.rows_done - y)))

    def rewind(self, rows: int) -> None:
        """Drop the bands behind the first ``rows`` rows, say to match a store that has fewer.

        Raises:
            ValueError: If no band ends at that row.
        """
        ends = [0, *(band.start + band.rows for band in self._bands)]
        if rows not in ends:
            raise ValueError(f"{self.path}: no band ends at row {rows}; bands end at {ends}")
        del self._bands[ends.index(rows) :]
        self._cut(self._end)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "BandStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _end(self) -> int:
        return self._bands[-1].end if self._bands else self._start

    def _cut(self, end: int) -> None:
        os.ftruncate(self._file.fileno(), end)

    def _compress(self, block: np.ndarray) -> bytes:
        return self._codec.compress(np.ascontiguousarray(block), asbytes=True)

    def _read_band(self, band: _Band, box: Box, pixels: np.ndarray) -> None:
        """Copy into ``pixels``, the frame of ``box``, what it shares with one band."""
        for number in range(box.x // BLOCK_PX, (box.right - 1) // BLOCK_PX + 1):
            x = number * BLOCK_PX
            block = Box(x, band.start, min(BLOCK_PX, self.width_px - x), band.rows)
            if shared := block.intersection(box):
                content = self._decompress(band.blocks[number], block)
                pixels[shared.shifted(-box.x, -box.y).slices] = content[
                    shared.shifted(-block.x, -block.y).slices
                ]

    def _decompress(self, place: tuple[int, int], block: Box) -> np.ndarray:
        self._file.seek(place[0])
        size = block.width * block.height * self.channels
        try:
            content = self._codec.decompress(self._file.read(place[1]), size)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{self.path} was damaged since it was opened ({error}); delete it and run again"
            ) from error
        return np.frombuffer(content, np.uint8).reshape(block.height, block.width, self.channels)

    def _check_header(self) -> int:
        """Write a new file's header or compare an old one's; return where bands start."""
        key = self.key.encode()
        wanted = _FILE.pack(_MAGIC, self.width_px, self.channels, len(key), zlib.crc32(key)) + key
        found = self._file.read(len(wanted))
        if found != wanted and wanted.startswith(found):  # new, or killed within the header
            self._cut(0)
            self._file.seek(0)
            _write_all(self._file, wanted)
        elif found != wanted:
            raise ValueError(
                f"{self.path}: {_describe(found, key)}, expected {self.width_px} "
                f"pixels wide, {self.channels} channels and this run's key; delete "
                "it, or give another folder"
            )
        return len(wanted)

    def _find_bands(self) -> None:
        """List the whole records and cut off the file behind them."""
        size = os.fstat(self._file.fileno()).st_size
        blocks = -(-self.width_px // BLOCK_PX)
        while (lengths := self._next_record(blocks, size)) is not None:
            rows, sizes = lengths
            self._bands.append(_index(self.rows_done, rows, self._end, sizes))
        if size > self._end:
            self._cut(self._end)

    def _next_record(self, blocks: int, size: int) -> tuple[int, list[int]] | None:
        """Return (rows, lengths of blocks) of the record at the end of the list, if it is whole."""
        self._file.seek(self._end)
        head = self._file.read(_BAND.size + 8 * blocks)
        if len(head) < _BAND.size + 8 * blocks:
            return None
        magic, rows, count, table_sum, payload_sum = _BAND.unpack_from(head)
        table = head[_BAND.size :]
        if magic != _BAND_MAGIC or count != blocks or zlib.crc32(table, rows) != table_sum:
            return None
        lengths = list(struct.unpack(f"<{blocks}Q", table))
        if self._file.tell() + sum(lengths) > size:
            return None
        found = 0
        for length in lengths:
            found = zlib.crc32(self._file.read(length), found)
        return (rows, lengths) if found == payload_sum else None


def open_for_update(path: Path) -> BinaryIO:
    """Open a file for reading and writing, making it if it is absent.

    Unbuffered, so that what a full disk refuses is not tried again by a later read or close.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "rb+", buffering=0)


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data``; an unbuffered file may take a part of it at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _pack(rows: int, payload: list[bytes]) -> bytes:
    table = struct.pack(f"<{len(payload)}Q", *(len(block) for block in payload))
    found = 0
    for block in payload:
        found = zlib.crc32(block, found)
    head = _BAND.pack(_BAND_MAGIC, rows, len(payload), zlib.crc32(table, rows), found)
    return b"".join([head, table, *payload])


def _index(start: int, rows: int, offset: int, lengths: list[int]) -> _Band:
    blocks, offset = [], offset + _BAND.size + 8 * len(lengths)
    for length in lengths:
        blocks.append((offset, length))
        offset += length
    return _Band(start, rows, offset, tuple(blocks))


def _describe(found: bytes, key: bytes) -> str:
    if not found.startswith(_MAGIC) or len(found) < _FILE.size:
        return "this is not a band store"
    _, width, channels, length, checksum = _FILE.unpack_from(found)
    same = (length, checksum) == (len(key), zlib.crc32(key))
    return f"holds rows {width} wide, {channels} channels, {'the same' if same else 'another'} key"
