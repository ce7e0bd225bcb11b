"""Run-length encoded masks as HuBMAP's tables hold them.

The rules: pixels are counted from 1, down the first column, then down the second, and so on; a mask
is a list of ``start length`` pairs, sorted, none overlapping; an empty mask is an empty text. Some
public notebooks count from 0 or drop the first and last pixel, so corners are worth a test.

Inside, runs are kept as 0-based half-open ranges of the column-major pixel number. A window is
decoded from the few runs that touch its columns, so a slide's whole mask is never in memory.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from renal_utils.tables import read_table

_NOT_A_NUMBER = re.compile(r"[^0-9\s+-]")


@dataclass(frozen=True)
class RunLengths:
    """A mask as runs: ``starts`` (included) and ``stops`` (excluded), sorted, counted from 0.

    Pixel n lies in column ``n // height`` and row ``n % height`` of an image of ``size_px``
    (width, height). Neighbouring runs may touch.
    """

    starts: Int64[np.ndarray, " n"]
    stops: Int64[np.ndarray, " n"]
    size_px: tuple[int, int]

    @property
    def area_px(self) -> int:
        """Number of pixels in the mask."""
        return int((self.stops - self.starts).sum())

    def sample(
        self, columns: Int64[np.ndarray, " w"], rows: Int64[np.ndarray, " h"]
    ) -> Bool[np.ndarray, "h w"]:
        """Return the mask at every pair of a row and a column of the image.

        Args:
            columns: Column numbers inside the image, in any order.
            rows: Row numbers inside the image, ascending.
        """
        height = self.size_px[1]
        first = np.searchsorted(self.stops, columns * height, side="right")
        last = np.searchsorted(self.starts, (columns + 1) * height, side="left")
        counts = np.maximum(last - first, 0)
        target = np.repeat(np.arange(len(columns)), counts)
        run = np.arange(len(target)) - np.repeat(np.cumsum(counts) - counts - first, counts)
        top, bottom = (ends[run] - columns[target] * height for ends in (self.starts, self.stops))
        change = np.zeros((len(columns), len(rows) + 1), np.int8)
        np.add.at(change, (target, np.searchsorted(rows, top)), np.int8(1))
        np.add.at(change, (target, np.searchsorted(rows, bottom)), np.int8(-1))
        return np.cumsum(change, axis=1, dtype=np.int8, out=change)[:, :-1].view(bool).T


def parse_rle(text: str, size_px: tuple[int, int], *, where: str = "RLE") -> RunLengths:
    """Check a run-length text and return its runs.

    Args:
        text: ``start length start length ...``; the empty text is the empty mask.
        size_px: (width, height) of the image the mask belongs to.
        where: What to call the text in errors: its file and image.

    Raises:
        ValueError: If a token is no whole number, the count is odd, a start is below 1, a length is
            not positive, a run leaves the image, or runs overlap or are out of order.
    """
    numbers = _parse_numbers(text, where)
    if len(numbers) % 2:
        raise ValueError(
            f"{where}: {len(numbers)} numbers, an odd count; expected pairs of start and length. "
            "The text was probably cut off: get the file again"
        )
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    runs = RunLengths(starts, starts + lengths, size_px)
    _refuse_bad_numbers(starts, lengths, where)
    _refuse_bad_order(runs, where)
    return runs


def check_rle(text: str, size_px: tuple[int, int], *, where: str = "RLE") -> None:
    """Raise ``ValueError`` if ``parse_rle`` would; say nothing otherwise."""
    parse_rle(text, size_px, where=where)


def decode_rle(
    text: str, size_px: tuple[int, int], *, where: str = "RLE"
) -> Bool[np.ndarray, "h w"]:
    """Return the whole mask of a run-length text, height x width.

    For a slide keep ``parse_rle(...)`` and ``sample`` windows of it instead.

    Raises:
        ValueError: As ``parse_rle`` does.
    """
    width, height = size_px
    return parse_rle(text, size_px, where=where).sample(np.arange(width), np.arange(height))


def encode_rle(mask: Shaped[np.ndarray, "h w"]) -> str:
    """Return the run-length text of a mask; every pixel that is not zero belongs to it.

    Runs are as long as can be: one that ends at the foot of a column goes on at the head of the
    next, as the official encoder has it.
    """
    return encode_rle_strips([mask])


def encode_rle_strips(strips: Iterable[Shaped[np.ndarray, "h _"]]) -> str:
    """Return the run-length text of a mask that comes in strips of columns, from left to right.

    Only one strip and the runs are held, so a whole slide can pass.
    """
    starts, stops, offset = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for strip in strips:
        flat = np.zeros(strip.size + 2, bool)
        flat[1:-1] = strip.ravel(order="F") != 0
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + offset
        starts.append(edges[0::2])
        stops.append(edges[1::2])
        offset += strip.size
    first, last = np.concatenate(starts), np.concatenate(stops)
    apart = np.append(last[:-1] != first[1:], True)  # runs that go on in the next strip are one
    first, last = first[np.roll(apart, 1)[: len(first)]], last[apart[: len(last)]]
    pairs = np.stack([first + 1, last - first], axis=1)
    return " ".join(map(str, pairs.ravel().tolist()))


def read_rle_table(path: str | Path, *, column: str = "encoding") -> dict[str, str]:
    """Read a csv of ``id`` and run-length texts; an empty cell is an empty mask.

    Args:
        path: HuBMAP's ``train.csv`` (column ``encoding``) or a submission (column ``predicted``).
        column: Name of the column that holds the texts.

    Raises:
        ValueError: If a column is missing or an id stands twice.
    """
    table = read_table(path, ("id", column))
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise ValueError(f"{path}: id {twice.iloc[0]!r} stands twice; keep one row for each image")
    return dict(zip(table["id"], table[column], strict=True))


def _parse_numbers(text: str, where: str) -> Int64[np.ndarray, " n"]:
    tokens = text.split()
    try:
        if not _NOT_A_NUMBER.search(text):
            return np.array([int(token) for token in tokens], np.int64)
    except (ValueError, OverflowError):
        pass
    bad = next((t for t in tokens if not re.fullmatch(r"[+-]?[0-9]{1,18}", t)), text[:20])
    raise ValueError(
        f"{where}: {bad!r} is not a whole number of a usable size; expected pairs of start and "
        "length parted by blanks"
    )


def _refuse_bad_numbers(
    starts: Int64[np.ndarray, " n"], lengths: Int64[np.ndarray, " n"], where: str
) -> None:
    bad = np.flatnonzero((starts < 0) | (lengths <= 0))
    if not len(bad):
        return
    start, length = int(starts[bad[0]]) + 1, int(lengths[bad[0]])
    if start < 1:
        remedy = "; if the text counts from 0, add 1 to every start" if start == 0 else ""
        raise ValueError(
            f"{where}: run {bad[0] + 1} starts at pixel {start}; pixels count from 1{remedy}"
        )
    raise ValueError(
        f"{where}: run {bad[0] + 1} has length {length}; lengths are positive. "
        "Leave empty runs out and write the mask again"
    )


def _refuse_bad_order(runs: RunLengths, where: str) -> None:
    width, height = runs.size_px
    beyond = np.flatnonzero(np.maximum(runs.starts, runs.stops) > width * height)
    if len(beyond):
        raise ValueError(
            f"{where}: run {beyond[0] + 1} ends at pixel {runs.stops[beyond[0]]}, but an image of "
            f"{width} x {height} has {width * height}. Is this the mask of another image, or are "
            "width and height swapped?"
        )
    unsorted = np.flatnonzero(runs.starts[1:] < runs.starts[:-1])
    if len(unsorted):
        n = unsorted[0]
        raise ValueError(
            f"{where}: run {n + 2} starts at pixel {runs.starts[n + 1] + 1}, before run {n + 1} at "
            f"{runs.starts[n] + 1}; runs must be sorted. Sort the pairs by start"
        )
    overlap = np.flatnonzero(runs.starts[1:] < runs.stops[:-1])
    if len(overlap):
        n = overlap[0]
        raise ValueError(
            f"{where}: run {n + 2} starts at pixel {runs.starts[n + 1] + 1}, inside run {n + 1} "
            f"which ends at {runs.stops[n]}; runs must not overlap. Decode and encode it again"
        )
