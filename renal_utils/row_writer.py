"""From blended windows to finished rows: what each pixel is, decided once and sent to disk."""

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from renal_utils.bandstore import BandStore
from renal_utils.labels import IGNORE_ID, LabelSet
from renal_utils.windows import RowBlender

STRIP_PX = 128


class RowWriter:
    """Blends windows into the open rows of a slide, and stores rows once they are finished.

    Args:
        store: Where rows go, as (probability, class id) pairs; it tells where to go on.
        height_px: Of the slide at the working scale.
        weights: What ``window_weights`` returned.
        label_set: What the channels of a prediction mean.
        threshold: For one channel, see ``decide``.
        has_spread: Whether windows have one more channel, which is stored as a third value.
    """

    def __init__(
        self,
        store: BandStore,
        *,
        height_px: int,
        weights: Float32[np.ndarray, "P P"],
        label_set: LabelSet,
        threshold: float,
        has_spread: bool = False,
    ) -> None:
        self._store, self._height = store, height_px
        self._label_set, self._threshold = label_set, threshold
        self._patch, self._has_spread = len(weights), has_spread
        channels = label_set.num_outputs + has_spread
        self._blender = RowBlender(store.width_px, channels, weights=weights, top=store.rows_done)

    def add(self, xy_px: tuple[int, int], prediction: Float32[np.ndarray, "C P P"]) -> None:
        """Add one window; windows come by rows from the top. Rows above it are finished."""
        self._finish(xy_px[1])
        self._blender.add(xy_px, prediction)

    def close(self) -> None:
        """Finish the rows down to the slide's lower border."""
        self._finish(self._height)

    def _finish(self, bottom: int) -> None:
        """Store the rows above ``bottom``, in strips, for they may be wide."""
        while self._blender.top < bottom:
            until = min(bottom, self._blender.top + min(STRIP_PX, self._patch))
            blended, seen = self._blender.finish(until)
            classes = blended[: self._label_set.num_outputs]
            rows = decide(classes, seen, self._label_set, self._threshold)
            if self._has_spread:
                spread = np.rint(blended[-1:] * 255).astype(np.uint8)
                rows = np.concatenate([rows, spread.transpose(1, 2, 0)], axis=2)
            self._store.append(rows)


def decide(
    blended: Float32[np.ndarray, "C H W"],
    seen: Bool[np.ndarray, "H W"],
    label_set: LabelSet,
    threshold: float,
) -> UInt8[np.ndarray, "H W 2"]:
    """Return 8-bit probability and class id of each pixel; the rule is ``stitch_slide``'s.

    Args:
        blended: Probability of each output channel.
        seen: Where any window lay.
        label_set: What the channels mean.
        threshold: For one channel.
    """
    rows = np.zeros((*seen.shape, 2), np.uint8)
    highest = blended.max(axis=0)
    highest *= 255  # in place: rows may be wide
    rows[..., 0] = np.rint(highest, out=highest)
    if len(blended) == 1:
        rows[..., 1] = rows[..., 0] > threshold * 255
    else:
        rows[..., 1] = blended.argmax(axis=0)
        rows[..., 1][~seen] = 0 if label_set.has_background else IGNORE_ID
    return rows
