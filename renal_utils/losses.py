"""Losses: how wrong logits are, as one number that training can lower.

Every loss is called ``loss(logits, target)`` with logits ``B C H W`` and class ids ``B H W``.
Pixels whose id is ``IGNORE_ID`` (255) count for nothing; a batch of nothing else costs 0. With one
channel (sigmoid) the ids are 0 and 1; with more (softmax) the id is the channel.

Logits may come in bfloat16; the loss itself is always computed in float32.
"""

import inspect
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from renal_utils.labels import IGNORE_ID

Logits = Float[Tensor, "B C H W"]
ClassIds = Integer[Tensor, "b h w"]
Scalar = Float[Tensor, ""]


def soft_dice_loss(
    probabilities: Float[Tensor, "B C H W"],
    truth: Bool[Tensor, "B C H W"],
    valid: Bool[Tensor, "B 1 H W"],
    *,
    smooth: float = 1e-6,
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
    """
    truth = truth & valid
    overlap = (probabilities * truth).sum(dim=(0, 2, 3))
    in_truth = truth.sum(dim=(0, 2, 3))
    total = (probabilities * valid).sum(dim=(0, 2, 3)) + in_truth
    dice = (2 * overlap + smooth) / (total + smooth)
    occurs = in_truth > 0
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


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

    Raises:
        ValueError: If the weight is no share, or another number is not positive.
    """

    def __init__(
        self,
        *,
        weight: float | int = 0.8,
        positive_weight: float | int = 25.0,
        smooth: float | int = 1e-6,
    ) -> None:
        super().__init__()
        _check_share(weight)
        _check_positive(positive_weight=positive_weight, smooth=smooth)
        self.weight, self.smooth = float(weight), float(smooth)
        self.positive_weight = float(positive_weight)

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is more than one channel, or an id other than 0, 1 and 255.
        """
        if logits.shape[1] != 1:
            raise ValueError(
                f"BceDice takes logits of 1 channel, not {logits.shape[1]}; 'ce_dice' takes more"
            )
        valid = _valid_pixels(logits, target, highest=1)
        logits, truth = logits.float(), target[:, None] == 1
        cross_entropy = functional.binary_cross_entropy_with_logits(
            logits,
            truth.float(),
            weight=valid.float(),
            pos_weight=logits.new_tensor(self.positive_weight),
            reduction="sum",
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

    Raises:
        ValueError: If the weight is no share, or ``smooth`` is not positive.
    """

    def __init__(self, *, weight: float | int = 0.5, smooth: float | int = 1e-6) -> None:
        super().__init__()
        _check_share(weight)
        _check_positive(smooth=smooth)
        self.weight, self.smooth = float(weight), float(smooth)

    def forward(self, logits: Logits, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is only one channel, or an id that has none.
        """
        classes = logits.shape[1]
        if classes < 2:
            raise ValueError(
                f"CrossEntropyDice takes 2 or more channels, not {classes}; 'bce_dice' takes 1"
            )
        valid = _valid_pixels(logits, target, highest=classes - 1)
        logits = logits.float()
        cross_entropy = functional.cross_entropy(
            logits, target.long(), ignore_index=IGNORE_ID, reduction="sum"
        ) / valid.sum().clamp(min=1)
        ids = torch.arange(classes, device=target.device)[None, :, None, None]
        dice = soft_dice_loss(
            logits.softmax(dim=1), target[:, None] == ids, valid, smooth=self.smooth
        )
        return self.weight * cross_entropy + (1 - self.weight) * dice


LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "bce_dice": BceDice,
    "ce_dice": CrossEntropyDice,
}


def build_loss(name: str, **options: float | int) -> nn.Module:
    """Return the loss called ``name``.

    Args:
        name: A key of ``LOSSES``.
        **options: What this loss takes, see its class.

    Raises:
        ValueError: If the name or an option is unknown; the message lists the known ones.
    """
    if name not in LOSSES:
        raise ValueError(f"no loss {name!r}; known: {', '.join(LOSSES)}")
    known = inspect.signature(LOSSES[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        takes = ", ".join(f"{p.name}={p.default}" for p in known.values())
        raise ValueError(f"loss {name!r} has no option {', '.join(unknown)}; it takes: {takes}")
    return LOSSES[name](**options)


def _valid_pixels(logits: Logits, target: ClassIds, *, highest: int) -> Bool[Tensor, "B 1 H W"]:
    """Return which pixels count, having checked that the target fits the logits."""
    batch, _, height, width = logits.shape
    if target.shape != (batch, height, width):
        raise ValueError(
            f"target is {tuple(target.shape)}, but the logits want {(batch, height, width)}"
        )
    valid = target != IGNORE_ID
    known = (target >= 0) & (target <= highest)
    if (valid & ~known).any():
        found = sorted({int(i) for i in target[valid & ~known].unique()})
        raise ValueError(
            f"target holds ids {found}, but the network's channels allow 0 to {highest} "
            f"(and {IGNORE_ID} for unlabelled); convert the labels or build it with more classes"
        )
    return valid[:, None]


def _check_share(weight: float | int) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is the share of the cross-entropy, 0 to 1, not {weight}")


def _check_positive(**values: float | int) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")
