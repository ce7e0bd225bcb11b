"""Weighted sums of losses: cross-entropy with Dice, and any others."""

from collections.abc import Sequence

from torch import nn
from torch.nn import functional

from renal_utils.labels import IGNORE_ID
from renal_utils.losses.cross_entropy import binary_cross_entropy
from renal_utils.losses.overlap import soft_dice_loss
from renal_utils.losses.pixels import (
    ClassIds,
    Logits,
    Scalar,
    check_channels,
    check_positive,
    check_share,
    checked_weights,
    full_precision,
    one_hot,
    valid_pixels,
)


class BceDice(nn.Module):
    """Binary cross-entropy and soft Dice, weighted: for one class on background.

    ``weight * BCE + (1 - weight) * Dice``. The defaults are those of the KPIs challenge slides
    (weight 0.8, positive weight 25, smooth 1e-6); their file name ``bceW0p8`` says which of the two
    terms the 0.8 belongs to.

    Args:
        weight: Share of the cross-entropy, 0 to 1. 1 is cross-entropy alone, 0 is Dice alone.
        positive_weight: How many background pixels one foreground pixel is worth in the
            cross-entropy, as torch's ``pos_weight``. High values find more and invent more.
        smooth: See ``soft_dice_loss``.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If the weight is no share, or another number is not positive.
    """

    def __init__(
        self,
        *,
        weight: float | int = 0.8,
        positive_weight: float | int = 25.0,
        smooth: float | int = 1e-6,
        ignore_index: int = IGNORE_ID,
    ) -> None:
        super().__init__()
        check_share(weight)
        check_positive(positive_weight=positive_weight, smooth=smooth)
        self.weight, self.smooth = float(weight), float(smooth)
        self.positive_weight, self.ignore_index = float(positive_weight), ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is more than one channel, or an id other than 0, 1 and ignored.
        """
        check_channels(logits, one=True, name="BceDice", instead="ce_dice")
        valid = valid_pixels(logits, target, highest=1, ignore_index=self.ignore_index)
        logits, truth = full_precision(logits), target[:, None] == 1
        cross_entropy = binary_cross_entropy(
            logits, truth, valid, positive_weight=self.positive_weight
        ) / valid.sum().clamp(min=1)
        dice = soft_dice_loss(logits.sigmoid(), truth, valid, smooth=self.smooth)
        return self.weight * cross_entropy + (1 - self.weight) * dice


class CrossEntropyDice(nn.Module):
    """Softmax cross-entropy and soft Dice, weighted: for two or more classes.

    ``weight * CE + (1 - weight) * Dice``, where Dice is the mean over the classes that occur in the
    batch, background included where the label set has one.

    Args:
        weight: Share of the cross-entropy, 0 to 1.
        smooth: See ``soft_dice_loss``.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If the weight is no share, or ``smooth`` is not positive.
    """

    def __init__(
        self,
        *,
        weight: float | int = 0.5,
        smooth: float | int = 1e-6,
        ignore_index: int = IGNORE_ID,
    ) -> None:
        super().__init__()
        check_share(weight)
        check_positive(smooth=smooth)
        self.weight, self.smooth, self.ignore_index = float(weight), float(smooth), ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is only one channel, or an id that has none.
        """
        check_channels(logits, one=False, name="CrossEntropyDice", instead="bce_dice")
        classes = logits.shape[1]
        valid = valid_pixels(logits, target, highest=classes - 1, ignore_index=self.ignore_index)
        logits = full_precision(logits)
        cross_entropy = functional.cross_entropy(
            logits, target.long(), ignore_index=self.ignore_index, reduction="sum"
        ) / valid.sum().clamp(min=1)
        truth = one_hot(target, classes)
        dice = soft_dice_loss(logits.softmax(dim=1), truth, valid, smooth=self.smooth)
        return self.weight * cross_entropy + (1 - self.weight) * dice


class WeightedSum(nn.Module):
    """Several losses of the same logits, each times its weight, added up.

    Args:
        parts: The losses.
        weights: One each; None weighs all by 1.

    Raises:
        ValueError: If there is no part, or not one weight each.
    """

    def __init__(
        self, parts: Sequence[nn.Module], *, weights: Sequence[float | int] | None = None
    ) -> None:
        super().__init__()
        weights = checked_weights(weights, "weights") or (1.0,) * len(parts)
        if not parts or len(weights) != len(parts):
            raise ValueError(f"{len(parts)} parts and {len(weights)} weights; give one weight each")
        self.parts, self.weights = nn.ModuleList(parts), weights

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: As the parts do.
        """
        terms = zip(self.weights, self.parts, strict=True)
        return sum(
            (weight * part(logits, target) for weight, part in terms),
            start=full_precision(logits).new_zeros(()),
        )
