"""FCN-32s, 16s and 8s on VGG-16 (Long, Shelhamer and Darrell, CVPR 2015; IEEE TPAMI 2017).

A classifier's fully connected layers are read as convolutions, so that it scores every place of the
image, and the whole is trained end to end. Scores of finer maps are added on the
way back up. The HuBMAP thesis introduces it as the step before U-Net (section 2.3).

Sizes. The paper pads its first layer with 100 pixels, convolves the 7x7 layer without padding and
crops the result to the image. We pad each convolution by half its kernel, so every map has exactly
1/2, 1/4 ... 1/32 of the image's sides, and each up-kernel (side 2 s, stride s) by s / 2, so it
enlarges exactly s times: nothing is cropped. No parameter changes, only what is seen at borders.

Further deviations: all weights start random (He et al. 2015) instead of from ImageNet, scores too,
which start at zero in the paper; and all up-kernels are learnt, as the counts have it, where the
paper freezes the last one.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import check_input

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of VGG-16's five stages
DEEPEST_STRIDE = 32


def bilinear_kernel(stride: int) -> Float[Tensor, "k k"]:
    """Return the kernel of side 2 ``stride`` that interpolates in a transposed convolution.

    Its values fall linearly from the centre to the border; each output pixel's weights sum to 1.

    Args:
        stride: How many times a map is enlarged, even.
    """
    centre = stride - 0.5
    line = 1 - (torch.arange(2 * stride) - centre).abs() / stride
    return line[:, None] * line[None, :]


def bilinear_up(channels: int, stride: int) -> nn.ConvTranspose2d:
    """Return a layer that enlarges a map ``stride`` times, by bilinear interpolation at first.

    No bias; (2 ``stride``)^2 weights for each pair of channels: 1,806,336 for 21 and 32. They start
    at zero between different channels, and are learnt.

    Args:
        channels: Channels of the map, before and after.
        stride: How many times it is enlarged, even.
    """
    up = nn.ConvTranspose2d(
        channels, channels, 2 * stride, stride=stride, padding=stride // 2, bias=False
    )
    with torch.no_grad():
        up.weight.zero_()
        for channel in range(channels):
            up.weight[channel, channel] = bilinear_kernel(stride)
    return up


class FCN(nn.Module):
    """Fully convolutional network on VGG-16.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        fused: How many finer maps add their scores: 0 is FCN-32s, 1 FCN-16s, 2 FCN-8s, in general
            up to 4.
        base_width: Channels of the first stage; the next have 2, 4, 8 and 8 times as many.
        hidden_width: Channels of the two layers that were fully connected.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        fused: int = 2,
        base_width: int = 64,
        hidden_width: int = 4096,
    ) -> None:
        super().__init__()
        _check_arguments(in_channels, num_classes, fused, base_width, hidden_width)
        widths = [base_width * factor for factor in (1, 2, 4, 8, 8)]
        self.in_channels, self.size_multiple = in_channels, DEEPEST_STRIDE
        self.encoder = nn.ModuleList(map(_stage, [in_channels, *widths], widths, CONVOLUTIONS))
        self.classifier = nn.Sequential(
            *_dense(widths[-1], hidden_width, kernel=7), *_dense(hidden_width, hidden_width)
        )
        self.score = nn.Conv2d(hidden_width, num_classes, kernel_size=1)
        finer = widths[-2::-1][:fused]  # coarsest first: pool4, pool3 ...
        self.finer_scores = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in finer)
        self.up = nn.ModuleList(bilinear_up(num_classes, 2) for _ in finer)
        self.enlarge = bilinear_up(num_classes, DEEPEST_STRIDE // 2**fused)
        self.apply(_start_like_he)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 32.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        pools = [image]
        for stage in self.encoder:
            pools.append(stage(pools[-1]))
        scores = self.score(self.classifier(pools.pop()))
        for up, finer_score in zip(self.up, self.finer_scores, strict=True):
            scores = up(scores) + finer_score(pools.pop())
        return self.enlarge(scores)


def fcn32s(
    in_channels: int = 3, num_classes: int = 1, *, base_width: int = 64, hidden_width: int = 4096
) -> FCN:
    """Return FCN-32s, enlarged in one step: 136,152,917 parameters for 21 classes. See ``FCN``."""
    widths = {"base_width": base_width, "hidden_width": hidden_width}
    return FCN(in_channels, num_classes, fused=0, **widths)


def fcn16s(
    in_channels: int = 3, num_classes: int = 1, *, base_width: int = 64, hidden_width: int = 4096
) -> FCN:
    """Return FCN-16s, which adds pool 4: 134,815,994 parameters for 21 classes. See ``FCN``."""
    widths = {"base_width": base_width, "hidden_width": hidden_width}
    return FCN(in_channels, num_classes, fused=1, **widths)


def fcn8s(
    in_channels: int = 3, num_classes: int = 1, *, base_width: int = 64, hidden_width: int = 4096
) -> FCN:
    """Return FCN-8s, which adds pools 4 and 3: 134,489,759 parameters, 21 classes. See ``FCN``."""
    widths = {"base_width": base_width, "hidden_width": hidden_width}
    return FCN(in_channels, num_classes, fused=2, **widths)


def _stage(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in [in_channels, *[out_channels] * (convolutions - 1)]:
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _dense(in_channels: int, out_channels: int, *, kernel: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return conv, nn.ReLU(inplace=True), nn.Dropout(0.5)


def _start_like_he(layer: nn.Module) -> None:
    # there is no normalisation: torch's own start would let the signal fade on 15 layers
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _check_arguments(
    in_channels: int, num_classes: int, fused: int, base_width: int, hidden_width: int
) -> None:
    if min(in_channels, num_classes, base_width, hidden_width) < 1:
        raise ValueError(
            "in_channels, num_classes, base_width and hidden_width must be at least 1, not "
            f"{in_channels}, {num_classes}, {base_width}, {hidden_width}"
        )
    if not 0 <= fused <= 4:
        raise ValueError(f"fused must be 0 (FCN-32s) to 4, of the four finer maps, not {fused}")
