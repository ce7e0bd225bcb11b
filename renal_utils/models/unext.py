"""UNeXt (Valanarasu and Patel, MICCAI 2022, arXiv 2203.04967): few convolutions, shifted MLPs.

Three small convolution stages halve the image; two more turn it into tokens, one a pixel of a 16th
and a 32nd of the size, and mix them by multi-layer perceptrons. An MLP sees one token at a time:
only because groups of channels are first shifted by up to two tokens does it see its neighbours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import check_input

UNEXT_S_WIDTHS = (8, 16, 32, 64, 128)


def shift_groups(
    features: Float[Tensor, "B C H W"], axis: int, *, reach: int = 2
) -> Float[Tensor, "B C H W"]:
    """Shift groups of channels by -reach to +reach pixels (the shifted MLP); zeros come in.

    The groups are as ``torch.chunk`` makes them, the last one smaller where they are uneven.

    Args:
        features: The maps.
        axis: 2 shifts along the height, 3 along the width.
        reach: Furthest shift; there are ``2 * reach + 1`` groups.
    """
    size = features.shape[axis]
    border = (0, 0, reach, reach) if axis == 2 else (reach, reach)
    groups = F.pad(features, border).chunk(2 * reach + 1, dim=1)
    starts = range(2 * reach, -1, -1)  # what starts later has been shifted back
    return torch.cat([g.narrow(axis, s, size) for g, s in zip(groups, starts, strict=False)], 1)


def on_channels(layer: nn.Module, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
    """Apply a layer of the last axis, such as ``nn.Linear``, to the channels of each pixel."""
    return layer(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbedding(nn.Module):
    """Turn overlapping 3x3 patches into tokens of half the size, normalised one by one.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels of a token.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K h w"]:
        """Return tokens, as maps of half the height and width."""
        return on_channels(self.norm, self.project(features))


class ShiftedBlock(nn.Module):
    """Shift along the height, mix, shift along the width, mix.

    A depthwise 3x3 convolution between the two tells the tokens where they are. The hidden layer is
    as wide as the input; a block of 160 channels has 53,440 parameters.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mix_height = nn.Linear(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mix_width = nn.Linear(channels, channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the features with the mixed ones added."""
        mixed = shift_groups(on_channels(self.norm, features), axis=2)
        mixed = F.gelu(self.depthwise(on_channels(self.mix_height, mixed)))
        return features + on_channels(self.mix_width, shift_groups(mixed, axis=3))


class TokenStage(nn.Module):
    """A shifted block, and a normalisation of what it gives.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = ShiftedBlock(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return tokens of the same size."""
        return on_channels(self.norm, self.block(features))


class UNeXt(nn.Module):
    """Three convolution stages, two of shifted tokens, and back; skips are added.

    1,471,921 parameters for one class, 1,471,972 for four; UNeXt-S (``UNEXT_S_WIDTHS``) has
    253,561. The paper's loss is half the BCE plus the Dice loss. Sizes must be multiples of 32.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits.
        widths: Channels of the three convolution stages and the two of tokens.

    Raises:
        ValueError: If there are not five widths, or a token stage has fewer than five channels.
    """

    size_multiple = 32

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        widths: Sequence[int] = (16, 32, 128, 160, 256),
    ) -> None:
        super().__init__()
        if len(widths) != 5 or min(widths) < 1 or min(widths[2:]) < 5:
            raise ValueError(
                f"widths must be five numbers, the last three at least 5, not {tuple(widths)}"
            )
        self.in_channels = in_channels
        self.encoder = nn.ModuleList(map(_halving, [in_channels, *widths[:2]], widths[:3]))
        self.encoder.extend(map(_tokens, widths[2:4], widths[3:]))
        ways_out = [*widths[3::-1], widths[0]]
        self.decoder = nn.ModuleList(map(_convolution, widths[::-1], ways_out))
        self.decoder[-1] = nn.Conv2d(widths[0], widths[0], 3, padding=1)  # without normalisation
        self.refine = nn.ModuleList(map(TokenStage, ways_out[:2]))
        self.head = nn.Conv2d(widths[0], num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 32.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        skips, features = [], image
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        skips.pop()  # the deepest is what the decoder starts from
        for level, block in enumerate(self.decoder):
            features = torch.relu(F.interpolate(block(features), scale_factor=2, mode="bilinear"))
            features = features + skips.pop() if skips else features
            if level < len(self.refine):
                features = self.refine[level](features)
        return self.head(features)


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def _halving(in_channels: int, out_channels: int) -> nn.Sequential:
    return _convolution(in_channels, out_channels).extend([nn.MaxPool2d(2), nn.ReLU(inplace=True)])


def _tokens(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(PatchEmbedding(in_channels, out_channels), TokenStage(out_channels))
