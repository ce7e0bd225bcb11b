"""Blocks that several networks share, and the check of an input's size.

Counts of trainable parameters are given per block, since a network's total is only right when each
of its parts is: tests compare them with the published figures.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each followed by batch normalisation and ReLU.

    The convolutions keep their bias, as the published parameter counts require, although the batch
    normalisation that follows makes it superfluous. 3 -> 64 channels has 38,976 parameters.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out, of both convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Encoder(nn.Module):
    """The way down of a U-Net: double blocks, with the size halved between them.

    Args:
        in_channels: Channels of the image.
        widths: Channels of each level, finest first. Five levels of 64 to 1024 channels have
            18,851,136 parameters.

    Raises:
        ValueError: If a number of channels is not positive.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        if min(in_channels, *widths) < 1:
            raise ValueError(
                "the image and each level need at least 1 channel, not "
                f"{in_channels} and {', '.join(map(str, widths))}"
            )
        self.blocks = nn.ModuleList(map(DoubleConv, [in_channels, *widths[:-1]], widths))
        self.pool = nn.MaxPool2d(2)

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return the map of every level, finest first; each has half the sides of the last."""
        maps = [self.blocks[0](image)]
        for block in self.blocks[1:]:
            maps.append(block(self.pool(maps[-1])))
        return maps


class UpConv(nn.Sequential):
    """Double the size by repeating pixels, then a 3x3 convolution with normalisation and ReLU.

    A transposed convolution does the same in one step, but overlaps unevenly and draws
    checkerboards (Odena et al. 2016, distill.pub). 1024 -> 512 channels has 4,720,128 parameters.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def check_input(image: Float[Tensor, "B C H W"], *, in_channels: int, multiple: int) -> None:
    """Refuse an image that a network cannot halve and double back to its size.

    Args:
        image: The batch.
        in_channels: Channels the network was built for.
        multiple: Height and width must be multiples of this, 2 to the number of halvings.

    Raises:
        ValueError: If the channels differ, or a side is no multiple; names the next valid size.
    """
    channels, height, width = image.shape[1:]
    if channels != in_channels:
        raise ValueError(f"image has {channels} channels, but the network takes {in_channels}")
    if height % multiple or width % multiple or not height or not width:
        valid = [max(1, math.ceil(side / multiple)) * multiple for side in (height, width)]
        raise ValueError(
            f"image is {height} x {width} (height x width), but both must be multiples of "
            f"{multiple}; the next valid size is {valid[0]} x {valid[1]}: pad or crop to it"
        )


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers training changes."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def concatenate(*maps: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ H W"]:
    """Join feature maps of one size along their channels."""
    return torch.cat(maps, dim=1)
