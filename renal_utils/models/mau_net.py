"""A multi-scale attention U-Net, our stand-in for the "MAU-Net" that ASRMU-Net is compared with.

The ASRMU-Net paper gives MAU-Net 11,110,720 parameters but, in what we could read of it, not which
network of that name it means; several exist and none that we know has this count. This one is OURS:
the U-Net of the same paper at base width 36 with attention at several scales on its skips.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from renal_utils.models.blocks import DoubleConv, UpConv, check_input, concatenate


class MultiScaleAttention(nn.Module):
    """Weigh channels by their means, then each pixel by its surroundings at three scales.

    The scales are depthwise 3x3 convolutions of dilation 1, 2 and 4 on half of the channels, added
    up: each sees 3, 5 or 9 pixels.

    Args:
        channels: Channels C that come in and go out; a multiple of 4.
        dilations: Distance of the taps at each scale, in pixels.
    """

    def __init__(self, channels: int, *, dilations: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        half, hidden = channels // 2, channels // 4
        self.channel_gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size=1),
            nn.Sigmoid(),
        )
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, half, kernel_size=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )
        self.scales = nn.ModuleList(
            nn.Conv2d(half, half, kernel_size=3, padding=d, dilation=d, groups=half)
            for d in dilations
        )
        self.pixel_gate = nn.Sequential(
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, channels, kernel_size=1),
            nn.Sigmoid(),
        )

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the maps, each value times a weight in (0, 1) of its channel and of its pixel."""
        features = features * self.channel_gate(features)
        reduced = self.reduce(features)
        # in float32: on the CPU, torch's bfloat16 gradient of a dilated depthwise kernel holds NaN
        device = "cpu" if features.is_meta else features.device.type  # meta knows no autocast
        with torch.autocast(device, enabled=False):
            surroundings = sum(_in_float32(scale, reduced) for scale in self.scales)
        return features * self.pixel_gate(surroundings.to(reduced.dtype))


def _in_float32(conv: nn.Conv2d, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    return functional.conv2d(
        features.float(),
        conv.weight.float(),
        None if conv.bias is None else conv.bias.float(),
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
    )


class MAUNet(nn.Module):
    """U-Net with multi-scale attention on each of its four skips (our stand-in, see above).

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of the first level; each level below doubles them. A multiple of 4.

    Raises:
        ValueError: If ``base_width`` is no positive multiple of 4.
    """

    size_multiple = 16

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, base_width: int = 36) -> None:
        super().__init__()
        if base_width < 4 or base_width % 4:
            raise ValueError(f"base_width must be at least 4 and a multiple of 4, not {base_width}")
        widths = [base_width * 2**level for level in range(5)]
        self.in_channels = in_channels
        self.encoder = nn.ModuleList(map(DoubleConv, [in_channels, *widths[:-1]], widths))
        self.pool = nn.MaxPool2d(2)
        self.attention = nn.ModuleList(map(MultiScaleAttention, widths[-2::-1]))
        self.up = nn.ModuleList(map(UpConv, widths[:0:-1], widths[-2::-1]))
        self.decoder = nn.ModuleList(map(DoubleConv, widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv2d(base_width, num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        skips: list[Tensor] = []
        features = self.encoder[0](image)
        for block in self.encoder[1:]:
            skips.append(features)
            features = block(self.pool(features))
        for attend, up, block in zip(self.attention, self.up, self.decoder, strict=True):
            features = block(concatenate(attend(skips.pop()), up(features)))
        return self.head(features)
