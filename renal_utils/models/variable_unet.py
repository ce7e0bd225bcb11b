"""VariableUNet (Göbl, Schäfer and Scheib, slides on the KPIs challenge, 2025).

A U-Net whose lowest level looks at three scales at once and whose channels grow with the patch. The
slides publish no code and no numbers of channels; the idea of the dilated bottleneck they cite from
Li et al. (J. Med. Imaging 8(6), 2021). The rule for the channels here is our reading, see
``width_for_patch``; the slides wish in retrospect for smaller patches going in and enlarged
predictions coming out, which is the option ``shrink``.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import DoubleConv, check_input, concatenate

DILATIONS = (1, 2, 4)


def width_for_patch(patch_px: int) -> int:
    """Return the channels of the first level for patches of a side: parameters grow with the side.

    12 at 256 pixels, times the square root of the side's ratio, to the nearest multiple of 3 (three
    dilations share the bottleneck), at least 3: 9 at 128, 18 at 512, 24 at 1024, 33 at 2048. The
    parameters, which grow with the square of the width, are so in proportion to the side: 762,133
    at 256, 3,042,025 at 1024, 12,155,089 at 4096. Our reading of "channel quantities scale with
    variable patch size".

    Args:
        patch_px: Side of the patches, in pixels.

    Raises:
        ValueError: If ``patch_px`` is not positive.
    """
    if patch_px < 1:
        raise ValueError(f"patch_px must be at least 1, not {patch_px}")
    return 3 * max(1, round(4 * math.sqrt(patch_px / 256)))


class DilatedBottleneck(nn.Module):
    """Three 3x3 convolutions side by side with taps 1, 2 and 4 pixels apart, a third each.

    A pixel sees 3, 5 and 9 pixels of the lowest level across without losing resolution. The maps
    are concatenated, then normalised and cut at zero.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out; a multiple of 3.
        dilations: How many pixels apart the taps of each convolution are; three of them. The count
            of parameters is the same for all.

    Raises:
        ValueError: If there are not three dilations, or one is not positive.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dilations: Sequence[int] = DILATIONS
    ) -> None:
        super().__init__()
        if len(dilations) != len(DILATIONS) or min(dilations) < 1:
            raise ValueError(
                f"dilations must be three positive numbers, not {list(dilations)}; (1, 1, 1) is a "
                "bottleneck without dilation"
            )
        third = out_channels // len(dilations)
        self.scales = nn.ModuleList(
            nn.Conv2d(in_channels, third, kernel_size=3, padding=d, dilation=d) for d in dilations
        )
        self.norm = nn.BatchNorm2d(third * len(dilations))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """Return maps of the same height and width."""
        # Channels-last, on CPUs with 16-bit arithmetic, the gradients of dilated weights are NaN
        # (torch 2.15) where 16 does not divide the channels and the map is 32 pixels or wider.
        features = features.contiguous()
        maps = torch.cat([scale(features) for scale in self.scales], dim=1)
        return self.activation(self.norm(maps))


class VariableUNet(nn.Module):
    """Four double blocks down, a dilated bottleneck, four double blocks up.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        patch_px: Side of the patches that it is meant for, in pixels; sets the channels by
            ``width_for_patch``. Images of other sizes are taken all the same.
        base_width: Channels of the first level, instead of the rule; a multiple of 3.
        shrink: Reduce the image by this factor before (mean of shrink x shrink pixels) and enlarge
            the logits by it after (bilinear). 1 for neither.
        dilations: Of the bottleneck, for ablations.

    Raises:
        ValueError: If ``base_width`` is no positive multiple of 3, ``shrink`` not positive, or
            ``dilations`` are not three positive numbers.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        patch_px: int = 256,
        base_width: int | None = None,
        shrink: int = 1,
        dilations: Sequence[int] = DILATIONS,
    ) -> None:
        super().__init__()
        width = width_for_patch(patch_px) if base_width is None else base_width
        if width < 3 or width % 3:
            raise ValueError(f"base_width must be at least 3 and a multiple of 3, not {width}")
        if shrink < 1:
            raise ValueError(f"shrink must be at least 1, not {shrink}")
        widths = [width * 2**level for level in range(5)]
        self.in_channels, self.shrink, self.size_multiple = in_channels, shrink, 16 * shrink
        self.encoder = nn.ModuleList(map(DoubleConv, [in_channels, *widths[:-2]], widths[:-1]))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = DilatedBottleneck(widths[-2], widths[-1], dilations)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, kernel_size=2, stride=2) for w in widths[-2::-1]
        )
        self.decoder = nn.ModuleList(DoubleConv(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 16 times ``shrink``.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        features = nn.functional.avg_pool2d(image, self.shrink) if self.shrink > 1 else image
        skips: list[Tensor] = []
        for block in self.encoder:
            features = block(features)
            skips.append(features)
            features = self.pool(features)
        features = self.bottleneck(features)
        for up, block in zip(self.up, self.decoder, strict=True):
            features = block(concatenate(skips.pop(), up(features)))
        logits = self.head(features)
        if self.shrink == 1:
            return logits
        return nn.functional.interpolate(logits, scale_factor=self.shrink, mode="bilinear")
