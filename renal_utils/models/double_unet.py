"""DoubleU-Net (Jha et al., CBMS 2020, arXiv 2006.04868): a second U-Net corrects a first one.

The first network has the convolutions of VGG-19 as its encoder. Its mask multiplies the image, and
the second network sees only what the first has let through; its decoder gets the skips of both.
The kidney thesis compares with it (section 3.2.3) and found it poor on small tiles.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import check_input, concatenate
from renal_utils.models.pretrained import load_encoder

VGG19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # width and convolutions of each stage
SECOND = (32, 64, 128, 256)


class SqueezeExcitation(nn.Module):
    """Weight each channel by what the means of all channels say (Hu et al., CVPR 2018, eq. 2-4).

    Args:
        channels: Channels in and out.
        reduction: The hidden layer has ``channels // reduction`` units.
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the features, each channel times its weight between 0 and 1."""
        hidden = torch.relu(self.squeeze(features.mean(dim=(2, 3))))
        return features * torch.sigmoid(self.excite(hidden))[:, :, None, None]


class AtrousPyramid(nn.Module):
    """Look at five scales at once (ASPP; Chen et al. 2017, arXiv 1706.05587, section 3.3).

    A 1x1 convolution, three 3x3 ones of dilation 6, 12 and 18, and a pooled branch, joined by a 1x1
    convolution; each without bias, with normalisation and ReLU. 512 -> 64 has 971,520 parameters.
    The pooled branch has 2 x 2 means, as in the authors' PyTorch code, where the paper has one:
    normalisation over a single value is impossible.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels of each branch and of the result.
    """

    def __init__(self, in_channels: int, out_channels: int = 64) -> None:
        super().__init__()
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), *_unit(in_channels, out_channels, kernel_size=1)
        )
        self.direct = nn.Sequential(*_unit(in_channels, out_channels, kernel_size=1))
        self.dilated = nn.ModuleList(
            nn.Sequential(*_unit(in_channels, out_channels, dilation=rate)) for rate in (6, 12, 18)
        )
        self.fuse = nn.Sequential(*_unit(5 * out_channels, out_channels, kernel_size=1))

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the joined branches at the size of the input."""
        pooled = F.interpolate(self.pooled(features), features.shape[2:], mode="bilinear")
        branches = [branch(features) for branch in self.dilated]
        return self.fuse(concatenate(pooled, self.direct(features), *branches))


class ExcitedConv(nn.Sequential):
    """Two 3x3 convolutions without bias, with normalisation and ReLU, then squeeze-excitation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            *_unit(in_channels, out_channels),
            *_unit(out_channels, out_channels),
            SqueezeExcitation(out_channels),
        )


class UpPath(nn.Module):
    """Double the size bilinearly, join the skips, convolve; once for each level of skips.

    Args:
        in_channels: Channels that come from below.
        skip_channels: Channels of the skips of each level, the deepest first.
        widths: Channels that go out of each level.
    """

    def __init__(self, in_channels: int, skip_channels: list[int], widths: list[int]) -> None:
        super().__init__()
        ways_in = [i + s for i, s in zip([in_channels, *widths], skip_channels, strict=False)]
        self.blocks = nn.ModuleList(map(ExcitedConv, ways_in, widths))

    def forward(
        self, features: Float[Tensor, "B C h w"], skips: list[tuple[Tensor, ...]]
    ) -> Float[Tensor, "B K H W"]:
        """Return the features of the topmost level; ``skips`` has the deepest level first."""
        for block, level in zip(self.blocks, skips, strict=True):
            features = F.interpolate(features, scale_factor=2, mode="bilinear")
            features = block(concatenate(features, *level))
        return features


class DoubleUNet(nn.Module):
    """Two U-Nets in a row; 29,288,886 parameters for one class.

    For several classes, which the paper does not treat, the mask that multiplies the image is the
    probability that a pixel is not of class 0. Sizes must be multiples of 16.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits.
        encoder_weights: None for random weights, ``"imagenet"`` for those of torchvision's VGG-19.
        deep_supervision: In training, return the logits of both networks.

    Raises:
        ValueError: If no such weights exist, or not for so many channels.
        ConnectionError: If the weights are not in the cache and cannot be fetched.
    """

    size_multiple = 16

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        encoder_weights: str | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.deep_supervision = in_channels, deep_supervision
        self.encoder = _vgg19(in_channels)
        if encoder_weights is not None:
            load_encoder(self.encoder, "vgg19", encoder_weights, in_channels=in_channels)
        first, second = [512, 256, 128, 64], list(SECOND[::-1])
        self.pyramid = AtrousPyramid(512)
        self.decoder = UpPath(64, first, second)
        self.head = nn.Conv2d(SECOND[0], num_classes, kernel_size=1)
        self.second_encoder = nn.ModuleList(map(ExcitedConv, [in_channels, *SECOND], SECOND))
        self.second_pyramid = AtrousPyramid(SECOND[-1])
        both = [a + b for a, b in zip(first, second, strict=True)]
        self.second_decoder = UpPath(64, both, second)
        self.second_head = nn.Conv2d(SECOND[0], num_classes, kernel_size=1)

    def forward(
        self, image: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B K H W"] | tuple[Float[Tensor, "B K H W"], Float[Tensor, "B K H W"]]:
        """Return the second network's logits; with deep supervision, in training, both networks'.

        Returns:
            Logits at the image's size, or the tuple of the second's and the first's, both at it.

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        skips, features = [], image
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        features = self.pyramid(skips.pop())
        skips = skips[::-1]
        first = self.head(self.decoder(features, [(skip,) for skip in skips]))
        second = self._correct(image * foreground(first), skips)
        return (second, first) if self.deep_supervision and self.training else second

    def _correct(
        self, seen: Float[Tensor, "B C H W"], first_skips: list[Tensor]
    ) -> Float[Tensor, "B K H W"]:
        skips, features = [], seen
        for block in self.second_encoder:
            skips.append(block(features))
            features = F.max_pool2d(skips[-1], 2)
        levels = list(zip(first_skips, skips[::-1], strict=True))
        features = self.second_decoder(self.second_pyramid(features), levels)
        return self.second_head(features)


def foreground(logits: Float[Tensor, "B K H W"]) -> Float[Tensor, "B 1 H W"]:
    """Return the probability of the one class, or of not being class 0 where there are several."""
    if logits.shape[1] == 1:
        return torch.sigmoid(logits)
    return 1 - torch.softmax(logits, dim=1)[:, :1]


def _unit(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, dilation: int = 1
) -> tuple[nn.Module, ...]:
    padding = dilation * (kernel_size // 2)
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False
    )
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def _vgg19(in_channels: int) -> nn.ModuleList:
    """Return the 16 convolutions of VGG-19 (Simonyan and Zisserman 2015) in five stages."""
    stages = nn.ModuleList()
    for width, convolutions in VGG19:
        stage: list[nn.Module] = [nn.MaxPool2d(2)] if len(stages) else []
        for _ in range(convolutions):
            stage += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            in_channels = width
        stages.append(nn.Sequential(*stage))
    return stages
