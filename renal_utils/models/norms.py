"""Normalisation that looks at one image only, in place of batch normalisation.

A batch norm remembers the statistics of the images that it was trained on. On a slide whose stain
or tissue differs they are wrong, and with few images a batch they are noisy. A group norm (Wu and
He, ECCV 2018, arXiv 1803.08494) takes those of the image at hand, in training and in use.
"""

import math

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation of 8 groups, or fewer where 8 does not divide the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def use_group_norm(model: nn.Module) -> nn.Module:
    """Put a group norm in place of each batch norm of images, and return the model.

    All other weights stay. An encoder that was pretrained with batch norms loses what they learned.
    """
    for name, part in list(model.named_children()):
        if isinstance(part, nn.BatchNorm2d):
            setattr(model, name, group_norm(part.num_features))
        else:
            use_group_norm(part)
    return model
