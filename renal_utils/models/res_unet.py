"""Res-UNet: a U-Net of residual units (Zhang, Liu and Wang, IEEE GRSL 2018, "Deep Residual U-Net").

LSU-Net's table 1 counts 13.04 million parameters. The paper's shortcuts are identities and its maps
are enlarged without parameters; the form that has this count convolves each shortcut and enlarges
by transposed convolutions. The last layer of both is a sigmoid, which we leave to the loss: ours
returns logits as all networks here do.
"""

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import check_input, concatenate


class Residual(nn.Module):
    """The sum of two branches on one map: what is learnt on top, and a shortcut.

    Args:
        body: The branch that learns.
        shortcut: The branch that carries the map past it; same channels and size as the body's.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return the sum of the branches."""
        return self.body(features) + self.shortcut(features)


def residual_stem(in_channels: int, out_channels: int) -> Residual:
    """Return the unit that takes the image, which needs no normalisation before it.

    40,640 parameters for 3 -> 64 channels.
    """
    body = nn.Sequential(
        _conv(in_channels, out_channels),
        *_activate(out_channels),
        _conv(out_channels, out_channels),
    )
    return Residual(body, _conv(in_channels, out_channels))


def residual_unit(in_channels: int, out_channels: int, *, stride: int = 1) -> Residual:
    """Return a pre-activation unit: twice normalisation, ReLU, 3x3 convolution, and a shortcut.

    The shortcut is a 3x3 convolution with normalisation. 295,936 parameters for 64 -> 128 channels.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: 2 halves the size, in place of pooling (section II-A of the paper).
    """
    body = nn.Sequential(
        *_activate(in_channels),
        _conv(in_channels, out_channels, stride=stride),
        *_activate(out_channels),
        _conv(out_channels, out_channels),
    )
    shortcut = nn.Sequential(
        _conv(in_channels, out_channels, stride=stride), nn.BatchNorm2d(out_channels)
    )
    return Residual(body, shortcut)


class ResUNet(nn.Module):
    """Residual U-Net of four levels: 13,043,009 parameters for one class.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of the first level; each of the three below doubles them.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, base_width: int = 64) -> None:
        super().__init__()
        if min(in_channels, num_classes, base_width) < 1:
            raise ValueError(
                "in_channels, num_classes and base_width must be at least 1, not "
                f"{in_channels}, {num_classes}, {base_width}"
            )
        widths = [base_width * 2**level for level in range(4)]
        self.in_channels, self.size_multiple = in_channels, 8
        self.encoder = nn.ModuleList(
            [
                residual_stem(in_channels, widths[0]),
                *(residual_unit(width, 2 * width, stride=2) for width in widths[:-1]),
            ]
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, 2 * width, kernel_size=2, stride=2)
            for width in widths[-2::-1]
        )
        self.decoder = nn.ModuleList(
            residual_unit(2 * width + width, width) for width in widths[-2::-1]
        )
        self.head = nn.Conv2d(base_width, num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 8.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        maps = [image]
        for unit in self.encoder:
            maps.append(unit(maps[-1]))
        _, *skips, features = maps
        for up, unit in zip(self.up, self.decoder, strict=True):
            features = unit(concatenate(skips.pop(), up(features)))
        return self.head(features)


def _conv(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)


def _activate(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
