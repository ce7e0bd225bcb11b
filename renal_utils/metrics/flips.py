"""Flips: how many pixels change their label from one epoch to the next.

A network can score alike in two epochs and yet call quite other pixels glomerulus. Where a training
is unstable, flips stay many while the score jumps; where it settles, both calm down.
"""

import torch
from jaxtyping import Integer
from torch import Tensor

from renal_utils.labels import IGNORE_ID


def count_flips(
    before: Integer[Tensor, "*shape"],
    after: Integer[Tensor, "*shape"],
    target: Integer[Tensor, "*shape"],
) -> tuple[int, int]:
    """Count the pixels whose label changed.

    Args:
        before: Class ids that were predicted an epoch ago.
        after: Class ids that are predicted now.
        target: True class ids; only where they are 255 do they matter: such pixels do not count.

    Returns:
        Pixels that flipped, and all pixels that count.
    """
    counted = target != IGNORE_ID
    return int(((before != after) & counted).sum()), int(counted.sum())


class FlipCounter:
    """The share of labels that flip from one pass over a data set to the next.

    Give it the batches of a pass by ``update``, in the same order each time, and end the pass by
    ``finish``. It keeps one byte a pixel.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] = []
        self._now: list[Tensor] = []
        self._flipped = self._counted = 0

    def update(
        self, predicted: Integer[Tensor, "*shape"], target: Integer[Tensor, "*shape"]
    ) -> None:
        """Take in the next batch of the pass.

        Args:
            predicted: Class ids, 0 to 255.
            target: True class ids, for those that are ignored (255).

        Raises:
            ValueError: If the last pass had another batch in this place.
        """
        number, kept = len(self._now), predicted.to("cpu", torch.uint8)
        self._now.append(kept)
        if not self._before:
            return
        if number >= len(self._before) or self._before[number].shape != kept.shape:
            raise ValueError(
                f"batch {number} of this pass is not of the shape that it had in the last one; "
                "give the same batches in the same order (shuffle=False)"
            )
        flipped, counted = count_flips(self._before[number], kept, target.cpu())
        self._flipped, self._counted = self._flipped + flipped, self._counted + counted

    def finish(self) -> float | None:
        """End the pass; return the share of pixels that flipped, None after the first pass.

        Raises:
            ValueError: If the last pass had more batches.
        """
        if self._before and len(self._before) != len(self._now):
            raise ValueError(
                f"this pass had {len(self._now)} batches, the last one {len(self._before)}; give "
                "the same batches in the same order"
            )
        share = self._flipped / self._counted if self._counted else None
        self._before, self._now = self._now, []
        self._flipped = self._counted = 0
        return share
