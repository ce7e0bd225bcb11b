"""Losses of one pixel at a time: cross-entropy of one class or several, and focal loss.

All are means over the pixels that count, of all images together.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from renal_utils.labels import IGNORE_ID
from renal_utils.losses.pixels import (
    ClassIds,
    Logits,
    Scalar,
    check_channels,
    check_positive,
    checked_weights,
    full_precision,
    one_hot,
    valid_pixels,
    weight_tensor,
)


def binary_cross_entropy(
    logits: Float[Tensor, "B 1 H W"],
    truth: Bool[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    *,
    positive_weight: float = 1.0,
) -> Scalar:
    """Return the sum over the pixels that count, torch's own with its ``pos_weight``.

    Args:
        logits: Of the foreground, in full precision.
        truth: Whether a pixel is foreground.
        valid: Whether a pixel counts.
        positive_weight: How many background pixels one foreground pixel is worth.
    """
    return functional.binary_cross_entropy_with_logits(
        logits,
        truth.to(logits.dtype),
        weight=valid.to(logits.dtype),
        pos_weight=logits.new_tensor(positive_weight),
        reduction="sum",
    )


class Bce(nn.Module):
    """Binary cross-entropy, for one class on background.

    Args:
        positive_weight: How many background pixels one foreground pixel is worth.
        total: Sum over the pixels instead of their mean, as eq. 4 of the HARU-Net paper is printed;
            the learning rate then depends on the size of the patch and the batch.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If the weight is not positive.
    """

    def __init__(
        self,
        *,
        positive_weight: float | int = 1.0,
        total: bool = False,
        ignore_index: int = IGNORE_ID,
    ) -> None:
        super().__init__()
        check_positive(positive_weight=positive_weight)
        self.positive_weight, self.total = float(positive_weight), total
        self.ignore_index = ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is more than one channel, or an id other than 0, 1 and ignored.
        """
        check_channels(logits, one=True, name="Bce", instead="cross_entropy")
        valid = valid_pixels(logits, target, highest=1, ignore_index=self.ignore_index)
        truth = target[:, None] == 1
        loss = binary_cross_entropy(
            full_precision(logits), truth, valid, positive_weight=self.positive_weight
        )
        return loss if self.total else loss / valid.sum().clamp(min=1)


class CrossEntropy(nn.Module):
    """Softmax cross-entropy, for two or more classes: torch's own, finite without any pixel.

    Args:
        class_weights: One a channel, for instance of ``class_weights``; the mean is then a weighted
            one. None weighs all alike.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If a weight is negative, or all are 0.
    """

    def __init__(
        self,
        *,
        class_weights: Sequence[float | int] | None = None,
        ignore_index: int = IGNORE_ID,
    ) -> None:
        super().__init__()
        self.class_weights, self.ignore_index = checked_weights(class_weights), ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is only one channel, or an id that has none.
        """
        check_channels(logits, one=False, name="CrossEntropy", instead="bce")
        classes = logits.shape[1]
        valid = valid_pixels(logits, target, highest=classes - 1, ignore_index=self.ignore_index)
        logits = full_precision(logits)
        weights = weight_tensor(self.class_weights, logits)
        loss = functional.cross_entropy(
            logits, target.long(), weight=weights, ignore_index=self.ignore_index, reduction="sum"
        )
        if weights is None:
            return loss / valid.sum().clamp(min=1)
        counts = (one_hot(target, classes) & valid).sum(dim=(0, 2, 3))
        return loss / (weights * counts).sum().clamp(min=1e-12)


class Focal(nn.Module):
    """Focal loss ``-alpha_t (1 - p_t)^gamma log p_t`` (Lin et al. 2017), for one class or several.

    Pixels that are right with certainty count for little. One channel is computed as the softmax of
    two, of which the first is 0; that is its sigmoid. Segmentation Models PyTorch's ``FocalLoss``
    is the same for one channel (tested); for several it takes the mean of sigmoids, ours keeps the
    softmax.

    Args:
        gamma: How much less certain pixels count, from 0, which is cross-entropy.
        alpha: Weight of the foreground, 0 to 1; that of the background is ``1 - alpha``. None
            weighs both by 1. Of one channel only.
        class_weights: Of each channel, where there are several. The mean is not divided by them.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If an option is out of its range.
    """

    def __init__(
        self,
        *,
        gamma: float | int = 2.0,
        alpha: float | int | None = None,
        class_weights: Sequence[float | int] | None = None,
        ignore_index: int = IGNORE_ID,
    ) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, not {gamma}")
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha is the weight of the foreground, 0 to 1, not {alpha}")
        if alpha is not None and class_weights is not None:
            raise ValueError("alpha is for one channel, class_weights for several: give one")
        self.gamma, self.alpha, self.ignore_index = float(gamma), alpha, ignore_index
        self.class_weights = checked_weights(class_weights)

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If target, logits and weights do not fit each other.
        """
        highest = max(logits.shape[1] - 1, 1) if isinstance(logits, Tensor) else 1
        valid = valid_pixels(logits, target, highest=highest, ignore_index=self.ignore_index)
        logits = full_precision(logits)
        weights = self._weights(logits)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        truth = one_hot(target.where(valid[:, 0], 0), logits.shape[1])
        # Logarithms of p_t and of 1 - p_t, so that neither is rounded to 0 or 1.
        everything = logits.logsumexp(dim=1)
        right = logits.where(truth, 0).sum(dim=1) - everything
        wrong = logits.masked_fill(truth, -torch.inf).logsumexp(dim=1) - everything
        loss = -(self.gamma * wrong).exp() * right
        if weights is not None:
            loss = loss * (weights[None, :, None, None] * truth).sum(dim=1)
        return (loss * valid[:, 0]).sum() / valid.sum().clamp(min=1)

    def _weights(self, logits: Logits) -> Float[Tensor, " K"] | None:
        if self.alpha is None:
            return weight_tensor(self.class_weights, logits)
        check_channels(logits, one=True, name="Focal's alpha", instead="class_weights")
        return logits.new_tensor([1 - self.alpha, self.alpha])
