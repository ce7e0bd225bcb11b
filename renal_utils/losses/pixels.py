"""What all losses share: which pixels count, what is true of them, in which precision to compute.

The target of every loss is class ids ``B H W``. With one channel of logits (sigmoid) the ids are 0
and 1; with more (softmax) the id is the channel. The id ``ignore_index``, unless told otherwise
``IGNORE_ID`` (255), marks pixels that nobody labelled: they change neither loss nor gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

Logits = Float[Tensor, "B C H W"]
ClassIds = Integer[Tensor, "b h w"]
Scalar = Float[Tensor, ""]


def full_precision(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return logits in float32, in which every loss is computed; float64 stays what it is."""
    return logits if logits.dtype == torch.float64 else logits.float()


def valid_pixels(
    logits: Any, target: ClassIds, *, highest: int, ignore_index: int
) -> Bool[Tensor, "B 1 H W"]:
    """Return which pixels count, having checked that the target fits the logits.

    Args:
        logits: Of shape B C H W.
        target: Class ids.
        highest: The highest id that the logits have an answer for.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If the network gave several outputs, the sizes differ, or an id is too high.
    """
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the network gives {len(logits)} outputs and this loss takes one; use "
            "build_loss('deep_supervision', part=...), or a network without deep_supervision"
        )
    batch, _, height, width = logits.shape
    if target.shape != (batch, height, width):
        raise ValueError(
            f"target is {tuple(target.shape)}, but the logits want {(batch, height, width)}"
        )
    valid = target != ignore_index
    known = (target >= 0) & (target <= highest)
    if (valid & ~known).any():
        found = sorted({int(i) for i in target[valid & ~known].unique()})
        raise ValueError(
            f"target holds ids {found}, but the network's channels allow 0 to {highest} "
            f"(and {ignore_index} for unlabelled); convert the labels or build it with more classes"
        )
    return valid[:, None]


def probabilities_and_truth(
    logits: Logits, target: ClassIds, *, ignore_index: int
) -> tuple[Logits, Bool[Tensor, "B C H W"], Bool[Tensor, "B 1 H W"]]:
    """Return the probability of each class, whether it is the true one, and which pixels count.

    One channel is one class, the foreground; the background has no probability of its own then.

    Raises:
        ValueError: See ``valid_pixels``.
    """
    channels = 1 if not isinstance(logits, Tensor) else logits.shape[1]
    valid = valid_pixels(logits, target, highest=max(channels - 1, 1), ignore_index=ignore_index)
    logits = full_precision(logits)
    if channels == 1:
        return logits.sigmoid(), (target[:, None] == 1) & valid, valid
    return logits.softmax(dim=1), one_hot(target, channels) & valid, valid


def one_hot(target: ClassIds, channels: int) -> Bool[Tensor, "b C h w"]:
    """Return for each class whether the pixel is of it; ids without a channel are of none."""
    ids = torch.arange(channels, device=target.device)[None, :, None, None]
    return target[:, None] == ids


def weight_tensor(weights: Sequence[float] | None, logits: Logits) -> Float[Tensor, " C"] | None:
    """Return class weights beside the logits, or None.

    Raises:
        ValueError: If their number is not that of the channels.
    """
    if weights is None:
        return None
    if len(weights) != logits.shape[1]:
        raise ValueError(
            f"{len(weights)} class_weights for logits of {logits.shape[1]} channels; give one a "
            "channel"
        )
    return logits.new_tensor(weights)


def checked_weights(
    weights: Sequence[float | int] | None, name: str = "class_weights"
) -> tuple[float, ...] | None:
    """Return weights as floats.

    Raises:
        ValueError: If one is negative, or all are 0.
    """
    if weights is None:
        return None
    if not all(w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError(f"{name} must not be negative nor all 0, given {list(weights)}")
    return tuple(float(w) for w in weights)


def check_share(weight: float | int) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: If ``weight`` is not within 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is the share of the first term, 0 to 1, not {weight}")


def check_positive(**values: float | int) -> None:
    """Refuse what is not positive.

    Raises:
        ValueError: Naming the option.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")


def check_channels(logits: Any, *, one: bool, name: str, instead: str) -> None:
    """Refuse logits of one class for a loss of several, and the reverse.

    Raises:
        ValueError: Naming the loss that takes them.
    """
    if not isinstance(logits, Tensor) or (logits.shape[1] == 1) == one:
        return
    takes, other = ("1 channel", "more") if one else ("2 or more channels", "1")
    raise ValueError(
        f"{name} takes logits of {takes}, not {logits.shape[1]}; {instead!r} takes {other}"
    )
