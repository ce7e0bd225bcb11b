"""Losses: how wrong logits are, as one number that training can lower.

Every loss is called ``loss(logits, target)`` with logits ``B C H W`` and class ids ``B H W``.
Pixels whose id is ``IGNORE_ID`` (255) count for nothing; a batch of nothing else costs 0. With one
channel (sigmoid) the ids are 0 and 1; with more (softmax) the id is the channel.

Logits may come in bfloat16; the loss itself is always computed in float32.

- ``cross_entropy``: one pixel at a time; ``overlap``: Dice and its kin; ``lovasz``: Jaccard.
- ``mixtures``: weighted sums; ``outputs``: networks with several outputs while they train.
- ``frequencies``: weights against class imbalance; ``build``: losses by name.
"""

from renal_utils.losses.build import LOSSES, build_loss
from renal_utils.losses.cross_entropy import Bce, CrossEntropy, Focal, binary_cross_entropy
from renal_utils.losses.frequencies import (
    class_weights,
    count_classes,
    count_foreground,
    positive_weight,
)
from renal_utils.losses.lovasz import LovaszHinge, LovaszSoftmax, jaccard_steps, lovasz_extension
from renal_utils.losses.mixtures import BceDice, CrossEntropyDice, WeightedSum
from renal_utils.losses.outputs import (
    DeepSupervision,
    MultiScaleDeepLoss,
    TwoBranch,
    bring_down,
    weigh_automatically,
)
from renal_utils.losses.overlap import (
    Dice,
    GeneralisedDice,
    Tversky,
    dice_per_pixel,
    generalised_dice_loss,
    soft_dice_loss,
    soft_tversky_loss,
)
from renal_utils.losses.pixels import ClassIds, Logits, Scalar

__all__ = [
    "LOSSES",
    "Bce",
    "BceDice",
    "ClassIds",
    "CrossEntropy",
    "CrossEntropyDice",
    "DeepSupervision",
    "Dice",
    "Focal",
    "GeneralisedDice",
    "Logits",
    "LovaszHinge",
    "LovaszSoftmax",
    "MultiScaleDeepLoss",
    "Scalar",
    "Tversky",
    "TwoBranch",
    "WeightedSum",
    "binary_cross_entropy",
    "bring_down",
    "build_loss",
    "class_weights",
    "count_classes",
    "count_foreground",
    "dice_per_pixel",
    "generalised_dice_loss",
    "jaccard_steps",
    "lovasz_extension",
    "positive_weight",
    "soft_dice_loss",
    "soft_tversky_loss",
    "weigh_automatically",
]
