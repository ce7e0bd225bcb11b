"""Residual U-block (Qin et al., Pattern Recognition 2020: U2-Net, section 3.1).

Each stage of U2-Net and of HARU-Net is a small U-Net of its own: it sees far within one stage, and
most of what it computes is computed at a reduced size. Its input, taken to the right number of
channels by a first convolution, is added to its output.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from renal_utils.models.blocks import concatenate


class ConvUnit(nn.Sequential):
    """A 3x3 convolution that keeps the size, batch normalisation, ReLU.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        dilation: Distance of the kernel's pixels.
        bias: Whether the convolution has one; the normalisation makes it superfluous.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, dilation: int = 1, bias: bool = True
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class RSU(nn.Module):
    """Residual U-block: convolution, a small U-Net on it, and the sum of both.

    With pooling (RSU-L): L - 1 levels, halved between, and a bottom of dilation 2 at the last
    level's size. Without (RSU-4F, for maps too small to be halved again): every level at full size,
    with dilations 1, 2, 4 and 8 at the bottom. Published counts: RSU-7 of 3, 32, 64 channels
    206,016; RSU-4F of 512, 256, 512 channels 10,034,688.

    Args:
        in_channels: Channels that come in.
        mid_channels: Channels inside.
        out_channels: Channels that go out.
        height: L, convolutions on the way down, the bottom included; at least 3.
        dilated: Dilate instead of pooling.
        bias: Whether convolutions have one (U2-Net: yes, HARU-Net: no).

    Raises:
        ValueError: If the height is below 3.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        height: int,
        dilated: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if height < 3:
            raise ValueError(f"an RSU needs a height of at least 3, not {height}")
        rates = [2**level for level in range(height)] if dilated else [1] * (height - 1) + [2]
        inside = [out_channels] + [mid_channels] * (height - 1)
        outside = [mid_channels] * (height - 2) + [out_channels]
        self.pooled = not dilated
        self.entry = ConvUnit(in_channels, out_channels, bias=bias)
        self.down = nn.ModuleList(
            ConvUnit(i, mid_channels, dilation=rate, bias=bias)
            for i, rate in zip(inside, rates, strict=True)
        )
        self.up = nn.ModuleList(
            ConvUnit(2 * mid_channels, o, dilation=rate, bias=bias)
            for o, rate in zip(outside, rates[-2::-1], strict=True)
        )

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return a map of the input's size, whatever that is."""
        entered = self.entry(features)
        features, skips = entered, []
        *levels, bottom = self.down
        for number, level in enumerate(levels):
            if self.pooled and number:
                features = functional.max_pool2d(features, 2, ceil_mode=True)
            features = level(features)
            skips.append(features)
        features = bottom(features)
        for unit in self.up:
            skip = skips.pop()
            features = unit(concatenate(resized(features, skip.shape[-2:]), skip))
        return entered + features


def resized(features: Float[Tensor, "B C _ _"], size: Sequence[int]) -> Float[Tensor, "B C _ _"]:
    """Return a map at another size, bilinear between pixel centres; itself where it has it."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return functional.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)
