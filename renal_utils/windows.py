"""Windows: where a network looks on a slide, and how much each of its pixels counts.

A network sees a slide through square windows that overlap. Near a window's edge it lacks context,
so neighbours are blended: each window's prediction is multiplied by a bell, summed, and divided by
the sum of the bells. ``RowBlender`` holds the sums of the rows that are still open only: once no
later window reaches a row it is finished, handed out, and forgotten.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float32, Int

from renal_utils.geometry import grid_offsets

Positions = Int[np.ndarray, "N 2"]


def _hann(patch_px: int) -> np.ndarray:
    return np.sin(np.pi * (np.arange(patch_px) + 0.5) / patch_px) ** 2


def _gaussian(patch_px: int) -> np.ndarray:
    distance = (np.arange(patch_px) + 0.5) / patch_px - 0.5
    return np.exp(-0.5 * (distance / 0.125) ** 2)


WINDOWS: Mapping[str, Callable[[int], np.ndarray]] = {
    "hann": _hann,
    "gaussian": _gaussian,
    "uniform": np.ones,
}


def window_weights(name: str, patch_px: int) -> Float32[np.ndarray, "P P"]:
    """Return how much each pixel of a window counts: positive everywhere, 1 at most.

    ``hann`` is a squared sine sampled at pixel centres: it never reaches zero, and copies half a
    window apart sum to one. ``gaussian`` has a standard deviation of an eighth of the window.
    ``uniform`` is the plain mean of all windows that see a pixel.

    Raises:
        ValueError: If the name is unknown (the known ones are listed) or ``patch_px`` < 1.
    """
    if name not in WINDOWS:
        raise ValueError(f"no window {name!r}; known: {', '.join(WINDOWS)}")
    if patch_px < 1:
        raise ValueError(f"a window needs at least one pixel, not {patch_px}")
    line = WINDOWS[name](patch_px)
    return np.outer(line, line).astype(np.float32)


def plan_windows(size_px: tuple[int, int], patch_px: int, stride_px: int) -> Positions:
    """Return the (x, y) of all windows that cover a (width, height), row by row.

    The last of each row and column is moved back to end flush with the slide; a slide smaller than
    a window gets one at (0, 0) that reaches beyond it.
    """
    columns = grid_offsets(size_px[0], patch_px, stride_px)
    rows = grid_offsets(size_px[1], patch_px, stride_px)
    return np.stack([np.tile(columns, len(rows)), np.repeat(rows, len(columns))], axis=1)


def tissue_share(
    positions: Positions, patch_px: int, tissue: Bool[np.ndarray, "H W"], cell_px: float | int
) -> Float32[np.ndarray, " N"]:
    """Return the share of each window that is tissue, 0 to 1.

    Args:
        positions: Left and top of each window, working pixels.
        patch_px: Side of a window.
        tissue: Coarse mask of the whole slide.
        cell_px: Working pixels per pixel of the mask. A window counts every cell it touches.
    """
    height, width = tissue.shape
    totals = np.zeros((height + 1, width + 1), np.int64)
    totals[1:, 1:] = tissue.cumsum(0).cumsum(1)
    first = np.floor(positions / cell_px).astype(np.int64)
    last = np.ceil((positions + patch_px) / cell_px).astype(np.int64)
    (x0, y0), (x1, y1) = (np.clip(corner, 0, (width, height)).T for corner in (first, last))
    found = totals[y1, x1] - totals[y0, x1] - totals[y1, x0] + totals[y0, x0]
    return (found / np.maximum((x1 - x0) * (y1 - y0), 1)).astype(np.float32)


class RowBlender:
    """Weighted sums of windows over the open rows of a slide, one window high.

    Windows come in row order. ``finish(bottom)`` hands out the blended rows above ``bottom`` and
    forgets them; what a window says about rows already finished is dropped, so a run that starts
    in the middle adds the same numbers in the same order as one that never stopped.

    Args:
        width_px: Width of the slide at the working scale.
        channels: Channels of a prediction.
        weights: What ``window_weights`` returned.
        top: First row that is still open.
    """

    def __init__(
        self,
        width_px: int,
        channels: int,
        *,
        weights: Float32[np.ndarray, "P P"],
        top: int = 0,
    ) -> None:
        self.top = top
        self._window = weights
        self._sums = np.zeros((channels, len(weights), width_px), np.float32)
        self._placed: list[tuple[int, int]] = []  # windows that reach into open rows

    def add(self, xy_px: tuple[int, int], prediction: Float32[np.ndarray, "C P P"]) -> None:
        """Add one window whose left and top are ``xy_px``.

        Raises:
            ValueError: If the window reaches below the open rows: rows above were not finished.
        """
        x, y = xy_px
        if y > self.top:
            raise ValueError(f"window at row {y}, but rows from {self.top} on are not finished")
        skip = self.top - y
        if skip >= len(self._window):
            return
        sums = self._sums[:, : len(self._window) - skip, x : x + len(self._window)]
        width = sums.shape[2]
        sums += prediction[:, skip:, :width] * self._window[skip:, :width]
        self._placed.append(xy_px)

    def finish(
        self, bottom: int
    ) -> tuple[Float32[np.ndarray, "C rows W"], Bool[np.ndarray, "rows W"]]:
        """Return rows ``top`` to ``bottom``, blended, and where any window saw them; forget them.

        Unseen pixels (background that was skipped) are 0. At most one window's height at a time.
        """
        rows = bottom - self.top
        if not 0 <= rows <= len(self._window):
            raise ValueError(f"rows {self.top} to {bottom}: at most {len(self._window)} are open")
        weights = self._weigh(rows)
        seen = weights > 0
        blended = np.zeros((len(self._sums), *weights.shape), np.float32)
        np.divide(self._sums[:, :rows], weights, out=blended, where=seen)
        self._forget(bottom)
        return blended, seen

    def _weigh(self, rows: int) -> Float32[np.ndarray, "rows W"]:
        """Return the weights of the first open rows, summed in the order of the windows."""
        weights = np.zeros((rows, self._sums.shape[2]), np.float32)
        for x, y in self._placed:
            bell = self._window[max(0, self.top - y) : max(0, self.top + rows - y)]
            first = max(0, y - self.top)
            place = weights[first : first + len(bell), x : x + len(self._window)]
            place += bell[: len(place), : place.shape[1]]
        return weights

    def _forget(self, bottom: int) -> None:
        rows, patch = bottom - self.top, len(self._window)
        for sums in self._sums:
            sums[: patch - rows] = sums[rows:]
            sums[patch - rows :] = 0
        self.top = bottom
        self._placed = [(x, y) for x, y in self._placed if y + patch > bottom]
