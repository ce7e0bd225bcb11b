"""Losses that look at overlap: soft Dice, Tversky, generalised Dice.

Sums run over the whole batch before anything is divided. Segmentation Models PyTorch's ``DiceLoss``
and ``TverskyLoss`` do the same and agree with ours wherever every class occurs (tested); ours leave
a class that does not occur out of the mean, theirs count it as 0.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from renal_utils.labels import IGNORE_ID
from renal_utils.losses.pixels import (
    ClassIds,
    Logits,
    Scalar,
    check_channels,
    check_positive,
    checked_weights,
    probabilities_and_truth,
    weight_tensor,
)

Probabilities = Float[Tensor, "B C H W"]
Truth = Bool[Tensor, "B C H W"]
Valid = Bool[Tensor, "B 1 H W"]
_OVER_PIXELS = (0, 2, 3)


def soft_dice_loss(
    probabilities: Probabilities,
    truth: Truth,
    valid: Valid,
    *,
    smooth: float = 1e-6,
    squared: bool = False,
) -> Scalar:
    """Return one minus the mean soft Dice of the classes that occur.

    Soft Dice is ``(2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)``, summed over the whole batch
    (Milletari et al. 2016, without their squares): a patch that holds little of a class does not
    weigh as much as one that is full of it. A class that no valid pixel holds has no overlap to
    improve; it leaves the mean, and where none occurs the loss is 0.

    Args:
        probabilities: Of each class, 0 to 1.
        truth: Whether a pixel is of the class.
        valid: Whether a pixel counts.
        smooth: Keeps the quotient finite.
        squared: Divide by ``sum(p^2) + sum(t^2)``, as Milletari et al. do.
    """
    truth = truth & valid
    overlap, in_truth = (probabilities * truth).sum(_OVER_PIXELS), truth.sum(_OVER_PIXELS)
    predicted = probabilities.square() if squared else probabilities
    total = (predicted * valid).sum(_OVER_PIXELS) + in_truth
    return _mean_where(1 - (2 * overlap + smooth) / (total + smooth), in_truth > 0)


def soft_tversky_loss(
    probabilities: Probabilities,
    truth: Truth,
    valid: Valid,
    *,
    alpha: float,
    beta: float,
    exponent: float = 1.0,
    smooth: float = 1e-6,
) -> Scalar:
    """Return the mean of ``(1 - Tversky index) ^ exponent`` of the classes that occur.

    The index is ``TP / (TP + alpha FP + beta FN)`` of soft counts over the batch (Salehi et al.
    2017). Half and half is Dice (with ``smooth`` of half the size), one and one is Jaccard.

    Args:
        probabilities: Of each class, 0 to 1.
        truth: Whether a pixel is of the class.
        valid: Whether a pixel counts.
        alpha: What a false positive costs.
        beta: What a false negative costs.
        exponent: Below 1 keeps the slope up where the loss is already small.
        smooth: Keeps the quotient finite; added above and below.
    """
    truth = truth & valid
    hit, in_truth = (probabilities * truth).sum(_OVER_PIXELS), truth.sum(_OVER_PIXELS)
    invented = (probabilities * (valid & ~truth)).sum(_OVER_PIXELS)
    missed = ((1 - probabilities) * truth).sum(_OVER_PIXELS)
    # As a quotient of errors: 1 - index would round a small loss away.
    errors = alpha * invented + beta * missed
    loss = errors / (hit + errors + smooth)
    if exponent != 1:  # a root has no finite slope at 0
        loss = loss.clamp(min=1e-7) ** exponent
    return _mean_where(loss, in_truth > 0)


def generalised_dice_loss(
    probabilities: Probabilities,
    truth: Truth,
    valid: Valid,
    *,
    weights: Float[Tensor, " C"] | None = None,
    smooth: float = 1e-6,
) -> Scalar:
    """Return ``1 - 2 sum_c w_c sum(p t) / sum_c w_c (sum(p) + sum(t))`` (Sudre et al. 2017).

    Args:
        probabilities: Of each class, 0 to 1.
        truth: Whether a pixel is of the class.
        valid: Whether a pixel counts.
        weights: Of the classes. None takes one over the square of the class's pixels in the batch,
            as the paper does, and 0 for a class that does not occur: there we deviate, its weight
            would be infinite.
        smooth: Keeps the quotient finite.
    """
    truth = truth & valid
    overlap, in_truth = (probabilities * truth).sum(_OVER_PIXELS), truth.sum(_OVER_PIXELS)
    total = (probabilities * valid).sum(_OVER_PIXELS) + in_truth
    if weights is None:
        rarest = in_truth.masked_fill(in_truth == 0, torch.iinfo(in_truth.dtype).max).min()
        weights = (rarest / in_truth.clamp(min=1)).square() * (in_truth > 0)
    dice = (2 * (weights * overlap).sum() + smooth) / ((weights * total).sum() + smooth)
    return 1 - dice


class Dice(nn.Module):
    """Soft Dice of the sigmoid (1 channel) or the softmax (more); see ``soft_dice_loss``.

    The HARU-Net paper's eq. 5 is the squared form; as printed it sums a quotient of each pixel, see
    ``dice_per_pixel``.

    Args:
        squared: Square the probabilities in the denominator.
        smooth: Keeps the quotient finite.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If ``smooth`` is not positive.
    """

    def __init__(
        self, *, squared: bool = False, smooth: float | int = 1e-6, ignore_index: int = IGNORE_ID
    ) -> None:
        super().__init__()
        check_positive(smooth=smooth)
        self.squared, self.smooth, self.ignore_index = squared, float(smooth), ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If target and logits do not fit each other.
        """
        pixels = probabilities_and_truth(logits, target, ignore_index=self.ignore_index)
        return soft_dice_loss(*pixels, smooth=self.smooth, squared=self.squared)


class Tversky(nn.Module):
    """Tversky loss of the sigmoid (1 channel) or the softmax (more); see ``soft_tversky_loss``.

    With an exponent of 0.75 it is the focal Tversky loss (Abraham and Khan 2019, whose gamma of 4/3
    is one over it).

    Args:
        alpha: What a false positive costs. Salehi et al. find 0.3 and 0.7 best: misses cost more.
        beta: What a false negative costs.
        exponent: Of the loss of each class.
        smooth: Keeps the quotient finite.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        *,
        alpha: float | int = 0.3,
        beta: float | int = 0.7,
        exponent: float | int = 1.0,
        smooth: float | int = 1e-6,
        ignore_index: int = IGNORE_ID,
    ) -> None:
        super().__init__()
        check_positive(alpha=alpha, beta=beta, exponent=exponent, smooth=smooth)
        self.alpha, self.beta, self.exponent = float(alpha), float(beta), float(exponent)
        self.smooth, self.ignore_index = float(smooth), ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If target and logits do not fit each other.
        """
        return soft_tversky_loss(
            *probabilities_and_truth(logits, target, ignore_index=self.ignore_index),
            alpha=self.alpha,
            beta=self.beta,
            exponent=self.exponent,
            smooth=self.smooth,
        )


class GeneralisedDice(nn.Module):
    """Dice of all classes in one quotient, rare ones weighted up; see ``generalised_dice_loss``.

    On answers that are certain it is one minus torchmetrics' ``generalized_dice_score`` (tested).

    Args:
        class_weights: One a channel, for instance of ``class_weights``; None takes them from each
            batch.
        smooth: Keeps the quotient finite.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If a weight is negative, or ``smooth`` not positive.
    """

    def __init__(
        self,
        *,
        class_weights: Sequence[float | int] | None = None,
        smooth: float | int = 1e-6,
        ignore_index: int = IGNORE_ID,
    ) -> None:
        super().__init__()
        check_positive(smooth=smooth)
        self.class_weights = checked_weights(class_weights)
        self.smooth, self.ignore_index = float(smooth), ignore_index

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is one channel only, or target and logits do not fit each other.
        """
        check_channels(logits, one=False, name="GeneralisedDice", instead="dice")
        pixels = probabilities_and_truth(logits, target, ignore_index=self.ignore_index)
        weights = weight_tensor(self.class_weights, pixels[0])
        return generalised_dice_loss(*pixels, weights=weights, smooth=self.smooth)


def dice_per_pixel(
    probabilities: Probabilities, truth: Truth, valid: Valid, *, mean: bool = False
) -> Scalar:
    """Return eq. 5 of the HARU-Net paper as it is printed, to show why nobody can mean it.

    It is ``1 - sum(2 p t / (p^2 + t^2))``, a quotient of each pixel. It falls without bound with
    the number of true pixels, and is 0/0 for background that is told apart with certainty (0 here).

    Args:
        probabilities: Of each class, 0 to 1.
        truth: Whether a pixel is of the class.
        valid: Whether a pixel counts.
        mean: Average the quotients instead, which bounds it.
    """
    truth = truth & valid
    below = probabilities.square() + truth
    quotients = 2 * probabilities * truth / below.clamp(min=torch.finfo(below.dtype).tiny)
    count = valid.expand_as(truth).sum().clamp(min=1) if mean else 1
    return 1 - quotients.sum() / count


def _mean_where(loss: Float[Tensor, " C"], occurs: Bool[Tensor, " C"]) -> Scalar:
    return (loss * occurs).sum() / occurs.sum().clamp(min=1)
