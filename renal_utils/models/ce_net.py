"""CE-Net (Gu et al., IEEE TMI 38(10), 2019): ResNet-34, two context blocks, LinkNet's decoder.

HARU-Net's table of rivals has it, and its weighing of side branches was inspired by it. Between
encoder and decoder stand a block that looks at four distances at once and one that summarises the
map at four coarsenesses (section II-B). 29,003,093 parameters for one class.

The ResNet is that of segmentation-models-pytorch (MIT licence). The paper starts it from ImageNet's
weights: ``encoder_weights="imagenet"``; by default we start from random ones, so that nothing needs
the network. The paper's last layer is a sigmoid; ours returns logits.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from renal_utils.models.blocks import check_input, concatenate


class DenseAtrousConv(nn.Module):
    """Add four branches of dilated convolutions to a map (DAC, section II-B of the paper).

    The branches see 3, 7, 9 and 19 pixels a side. They share their layers: three 3x3 convolutions
    of dilation 1, 3 and 5 and one 1x1, 7,342,080 parameters for 512 channels.

    Args:
        channels: Channels of the map, before and after.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near, self.middle, self.far = (
            nn.Conv2d(channels, channels, kernel_size=3, padding=dilation, dilation=dilation)
            for dilation in (1, 3, 5)
        )
        self.point = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the map with its context added; never less than the map itself."""
        near = self.near(features)
        near_then_middle = self.middle(near)
        branches = (
            near,
            self.point(self.middle(features)),
            self.point(near_then_middle),
            self.point(self.far(near_then_middle)),
        )
        return features + sum(branch.relu() for branch in branches)


class MultiKernelPooling(nn.Module):
    """Put four summaries of a map beside it, one channel each (RMP, section II-B of the paper).

    Each is the map pooled by 2, 3, 5 or 6 pixels, brought to one channel by a convolution that all
    four share, and enlarged. A map smaller than a kernel is pooled as a whole, which the paper
    does not foresee: so images under 192 pixels are valid.

    Args:
        channels: Channels C of the map; C + 4 go out. C + 1 parameters.
    """

    KERNELS = (2, 3, 5, 6)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """Return the four summaries, then the map."""
        size = features.shape[-2:]
        summaries = []
        for kernel in self.KERNELS:
            pooled = functional.max_pool2d(features, [min(kernel, side) for side in size])
            summary = self.squeeze(pooled)
            summaries.append(functional.interpolate(summary, size, mode="bilinear"))
        return concatenate(*summaries, features)


class DecoderBlock(nn.Sequential):
    """Double the size within a quarter of the channels, as LinkNet does, with biases.

    1x1 convolution, transposed 3x3 of stride 2, 1x1, each with normalisation and ReLU. 516 -> 256
    channels has 250,899 parameters.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        narrow = in_channels // 4
        up = nn.ConvTranspose2d(narrow, narrow, 3, stride=2, padding=1, output_padding=1)
        super().__init__(
            *(nn.Conv2d(in_channels, narrow, kernel_size=1), *_activate(narrow)),
            *(up, *_activate(narrow)),
            *(nn.Conv2d(narrow, out_channels, kernel_size=1), *_activate(out_channels)),
        )


class CENet(nn.Module):
    """Context encoder network: 29,003,093 parameters for one class, 289 more for each further.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        encoder_weights: None for random weights, or a name such as ``"imagenet"``.

    Raises:
        ValueError: If no such weights exist; the message lists those that do.
        ConnectionError: If the weights are not in the cache and the hub cannot be reached.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
    ) -> None:
        super().__init__()
        self.in_channels, self.size_multiple = in_channels, 32
        self.encoder = _resnet34(in_channels, encoder_weights)
        self.context = nn.Sequential(DenseAtrousConv(512), MultiKernelPooling(512))
        self.decoder = nn.ModuleList(map(DecoderBlock, [516, 256, 128, 64], [256, 128, 64, 64]))
        self.head = nn.Sequential(
            *(nn.ConvTranspose2d(64, 32, kernel_size=4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 32, kernel_size=3, padding=1), nn.ReLU()),
            nn.Conv2d(32, num_classes, kernel_size=3, padding=1),
        )

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 32.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        *skips, features = self.encoder(image)[2:]  # 1/4, 1/8, 1/16 and 1/32 of the sides
        features = self.context(features)
        for block in self.decoder[:-1]:
            features = block(features) + skips.pop()
        return self.head(self.decoder[-1](features))


def _resnet34(in_channels: int, weights: str | None) -> nn.Module:
    # imported here: it brings torchvision and timm along, several seconds on a cold start
    from segmentation_models_pytorch.encoders import get_encoder

    try:
        return get_encoder("resnet34", in_channels=in_channels, weights=weights)
    except KeyError as error:
        raise ValueError(f"ce_net: {error.args[0]}") from error
    except OSError as error:
        raise ConnectionError(
            f"encoder weights {weights!r} of resnet34 are not in the Hugging Face cache and the "
            "hub cannot be reached; connect once (later runs use the cache), or give "
            "encoder_weights=None to start from random weights"
        ) from error


def _activate(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
