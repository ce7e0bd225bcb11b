"""Rolling-UNet (Liu et al., AAAI 2024): a U-Net whose deep levels roll channels round the image.

Its idea: roll channel number i round the image by i pixels, and a linear layer over the channels of
one pixel sees a whole row or column. Two such layers in orthogonal directions see the whole image.
The LSU-Net paper names it among the light networks. The published description leaves details open;
they were settled by the three published counts, whose square, linear and constant parts in the
width n are 6898.5 n^2 + 1073 n + 1, and by what the authors' code (MIT licence) does. We leave out
its dropout in the bottleneck.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import DoubleConv, check_input, concatenate
from renal_utils.models.unext import on_channels

ROLLING_WIDTHS = {"s": 16, "m": 32, "l": 64}


def roll_channels(
    features: Float[Tensor, "B C H W"], axis: int, *, step: int = 1
) -> Float[Tensor, "B C H W"]:
    """Roll channel i by i steps round the image; what leaves at one side comes in at the other.

    Args:
        features: The maps.
        axis: 2 rolls along the height, 3 along the width.
        step: Pixels from one channel to the next, negative to roll back.
    """
    channels, size = features.shape[1], features.shape[axis]
    places = torch.arange(size, device=features.device)
    shifts = step * torch.arange(channels, device=features.device)
    sources = (places[None, :] - shifts[:, None]) % size
    sources = sources[None, :, :, None] if axis == 2 else sources[None, :, None, :]
    return features.gather(axis, sources.expand_as(features))


class OrthogonalRoll(nn.Module):
    """Roll and mix along one axis, then along the other; the input is added (OR-MLP).

    Args:
        channels: Channels in and out.
        first_axis: 2 starts along the height, 3 along the width.
        first_step: Step of the first roll; that of the second is 1.
    """

    def __init__(self, channels: int, *, first_axis: int, first_step: int) -> None:
        super().__init__()
        self.first_axis, self.first_step = first_axis, first_step
        self.first = nn.Linear(channels, channels)
        self.second = nn.Linear(channels, channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the features with the mixed ones added."""
        mixed = roll_channels(features, self.first_axis, step=self.first_step)
        mixed = F.gelu(on_channels(self.first, mixed))
        mixed = roll_channels(mixed, 5 - self.first_axis)
        return features + on_channels(self.second, mixed)


class LongLocalBlock(nn.Module):
    """The Lo2 block: rolled mixing for what is far, a separable convolution for what is near.

    Two orthogonal rolls of opposite first direction are joined, normalised and mixed (DOR-MLP),
    then joined with the convolution and mixed again: 9 C^2 + 23 C parameters, about those of a 3x3
    convolution.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rolls = nn.ModuleList(
            OrthogonalRoll(channels, first_axis=axis, first_step=step)
            for axis, step in ((2, 1), (3, -1))
        )
        self.norm = nn.LayerNorm(2 * channels)
        self.mix = nn.Linear(2 * channels, channels)
        self.near = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels),
            nn.Conv2d(channels, channels, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(channels),
        )
        self.fuse = nn.Linear(2 * channels, channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return features of the same size."""
        rolled = concatenate(*(roll(features) for roll in self.rolls))
        far = features + on_channels(self.mix, on_channels(self.norm, rolled))
        return on_channels(self.fuse, concatenate(far, self.near(features)))


class FeatureIncentive(nn.Module):
    """A 3x3 convolution, GELU, and normalisation of each pixel's channels.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return features of the same size."""
        return on_channels(self.norm, F.gelu(self.convolution(features)))


class LongLocalStage(nn.Module):
    """A Lo2 block and a normalisation of what it gives.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # the published count holds a second normalisation, which the authors' code never applies
        self.unused = nn.LayerNorm(channels)
        self.block = LongLocalBlock(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return features of the same size."""
        return on_channels(self.norm, self.block(features))


class RollingUNet(nn.Module):
    """Three double convolutions, two levels of Lo2 blocks, and back; skips are added.

    For one class S has 1,783,185 parameters, M 7,098,401 and L 28,324,929. Sizes must be multiples
    of 16.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits.
        size: ``"s"``, ``"m"`` or ``"l"``: 16, 32 or 64 channels at the first level.
        base_width: Channels at the first level instead of those of ``size``; even.

    Raises:
        ValueError: If ``size`` is unknown or the width is odd or not positive.
    """

    size_multiple = 16
    UNUSED = ("encoder.3.1.unused.", "bottleneck.1.unused.", "decoder.0.0.unused.")

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        size: str = "s",
        base_width: int | None = None,
    ) -> None:
        super().__init__()
        widths = [_first_width(size, base_width) * 2**level for level in range(5)]
        self.in_channels = in_channels
        self.encoder = nn.ModuleList(map(DoubleConv, [in_channels, *widths[:2]], widths[:3]))
        self.encoder.append(
            nn.Sequential(FeatureIncentive(widths[2], widths[3]), LongLocalStage(widths[3]))
        )
        self.bottleneck = nn.Sequential(
            FeatureIncentive(widths[3], widths[4]),
            LongLocalStage(widths[4]),
            FeatureIncentive(widths[4], widths[3]),
        )
        deepest = nn.Sequential(LongLocalStage(widths[3]), *_unit(widths[3], widths[2]))
        self.decoder = nn.ModuleList([deepest])
        self.decoder.extend(map(_double, widths[2::-1], [widths[1], widths[0], widths[0] // 2]))
        self.head = nn.Conv2d(widths[0] // 2, num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        skips, features = [], image
        for block in self.encoder:
            skips.append(block(features))
            features = F.max_pool2d(skips[-1], 2)
        features = self.bottleneck(features)
        for block in self.decoder:
            features = F.interpolate(features, scale_factor=2, mode="bilinear")
            features = block(features + skips.pop())
        return self.head(features)


def _first_width(size: str, base_width: int | None) -> int:
    if size not in ROLLING_WIDTHS:
        raise ValueError(f"no size {size!r} of Rolling-UNet; known: {', '.join(ROLLING_WIDTHS)}")
    width = ROLLING_WIDTHS[size] if base_width is None else base_width
    if width < 2 or width % 2:
        raise ValueError(f"base_width must be even and at least 2, not {width}")
    return width


def _unit(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two units of which only the second changes the channels."""
    return nn.Sequential(*_unit(in_channels, in_channels), *_unit(in_channels, out_channels))
