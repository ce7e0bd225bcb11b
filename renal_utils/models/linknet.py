"""LinkNet (Chaurasia and Culurciello, VCIP 2017), the original on a ResNet-18.

The kidney thesis describes this network (section 4.2) and trains others of its form, on
encoders of segmentation-models-pytorch; see ``pretrained``. What sets it apart from a U-Net: what a
decoder block gives is *added* to the encoder's features, not joined to them, so that a block never
sees more channels than it must.
"""

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import check_input
from renal_utils.models.pretrained import load_encoder

WIDTHS = (64, 128, 256, 512)


class LinkBlock(nn.Sequential):
    """Squeeze to a quarter of the channels, transpose-convolve, widen; each with norm and ReLU.

    512 -> 256 channels has 246,784 parameters, all convolutions without bias.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: 2 doubles height and width, 1 keeps them.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 2) -> None:
        middle = in_channels // 4
        super().__init__(
            *_normed(nn.Conv2d(in_channels, middle, 1, bias=False)),
            *_normed(
                nn.ConvTranspose2d(
                    middle,
                    middle,
                    kernel_size=3,
                    stride=stride,
                    padding=1,
                    output_padding=stride - 1,
                    bias=False,
                )
            ),
            *_normed(nn.Conv2d(middle, out_channels, 1, bias=False)),
        )


class LinkNet(nn.Module):
    """ResNet-18 down to a 32nd, four blocks back to a quarter, added skips, a head to full size.

    11,533,377 parameters for one class, 11,535,957 for 21. The head's convolutions have a bias, as
    that count requires. Sizes must be multiples of 32.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits.
        encoder_weights: None for random weights, ``"imagenet"`` for those of torchvision's ResNet.

    Raises:
        ValueError: If no such weights exist, or not for so many channels.
        ConnectionError: If the weights are not in the cache and cannot be fetched.
    """

    size_multiple = 32

    def __init__(
        self, in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = _resnet18(in_channels)
        if encoder_weights is not None:
            load_encoder(self.encoder, "resnet18", encoder_weights, in_channels=in_channels)
        ways_out = (*WIDTHS[-2::-1], WIDTHS[0])
        self.decoder = nn.ModuleList(
            LinkBlock(i, o, stride=1 if i == o else 2)
            for i, o in zip(WIDTHS[::-1], ways_out, strict=True)
        )
        self.head = nn.Sequential(
            *_normed(nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1)),
            *_normed(nn.Conv2d(32, 32, 3, padding=1)),
            nn.ConvTranspose2d(32, num_classes, kernel_size=2, stride=2),
        )

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 32.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        features, skips = image, []
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        skips.pop()  # the deepest is what the decoder starts from
        for block in self.decoder:
            features = block(features) + skips.pop()
        return self.head(features)


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return convolution, norm, nn.ReLU(inplace=True)


def _resnet18(in_channels: int) -> nn.Sequential:
    """Return torchvision's ResNet-18 (BSD licence) without its classifier: stem and four stages."""
    from torchvision.models import resnet18  # imported here: it takes a second

    parts = resnet18(weights=None)
    if in_channels != 3:
        parts.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    stem = nn.Sequential(parts.conv1, parts.bn1, parts.relu, parts.maxpool)
    return nn.Sequential(stem, parts.layer1, parts.layer2, parts.layer3, parts.layer4)
