"""UNet 3+ (Huang et al., ICASSP 2020): each level of the decoder sees all levels at once.

Encoder maps of its own and finer levels come pooled, decoder maps of coarser levels come enlarged;
each is brought to the same few channels, so that no level outweighs another (section 2.1). Our
network is the plain one and the one with deep supervision. The paper's classification-guided
module, which blanks images that it holds to be without organ, is left out.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import Encoder, check_input, concatenate

LEVELS = 5
Logits = Float[Tensor, "B K H W"]


class FullScaleNode(nn.Module):
    """Join the maps of all levels at the size of one (equation 1 of the paper).

    Args:
        level: Whose size it works at, 0 the finest.
        widths: Channels of each level's map, finest first.
        part_width: Channels that each map is brought to; the node gives as many times this as
            there are levels.
    """

    def __init__(self, level: int, widths: Sequence[int], part_width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(_resize(level, source), *_conv_unit(width, part_width))
            for source, width in enumerate(widths)
        )
        joined = part_width * len(widths)
        self.fuse = _conv_unit(joined, joined)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B D H W"]:
        """Return the node's map.

        Args:
            maps: One a level, finest first: the encoder's up to the node's own level, the
                decoder's below it (the deepest level has only one).
        """
        parts = [part(features) for part, features in zip(self.parts, maps, strict=True)]
        return self.fuse(concatenate(*parts))


class UNet3Plus(nn.Module):
    """UNet 3+: 26,971,777 parameters for one class, 26,989,637 with deep supervision.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of the first level, and of each part of a decoder level; each of the
            four levels below doubles the former.
        deep_supervision: Give the logits of every level in training (section 2.2).

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        base_width: int = 64,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        widths = [base_width * 2**level for level in range(LEVELS)]
        self.in_channels, self.size_multiple = in_channels, 2 ** (LEVELS - 1)
        self.deep_supervision = deep_supervision
        self.encoder = Encoder(in_channels, widths)
        self.decoder = nn.ModuleList()  # deepest level first, as it is run
        for level in range(LEVELS - 2, -1, -1):
            self.decoder.append(FullScaleNode(level, widths, base_width))
            widths[level] = LEVELS * base_width
        self.head = _head(widths[0], num_classes)
        sides = range(1, LEVELS) if deep_supervision else ()
        self.side_heads = nn.ModuleList(
            nn.Sequential(_head(widths[level], num_classes), _resize(0, level)) for level in sides
        )

    def forward(self, image: Float[Tensor, "B C H W"]) -> Logits | tuple[Logits, ...]:
        """Return the logits of every class and pixel.

        With deep supervision and in training: those of the finest level, then those of the next
        four, computed at 1/2, 1/4, 1/8 and 1/16 of the sides and enlarged to the image's size.

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        maps = self.encoder(image)
        for level, node in zip(range(LEVELS - 2, -1, -1), self.decoder, strict=True):
            maps[level] = node(maps)  # from here on, finer levels find the decoder's map here
        logits = self.head(maps[0])
        if not (self.training and self.deep_supervision):
            return logits
        sides = zip(self.side_heads, maps[1:], strict=True)
        return logits, *(head(features) for head, features in sides)


def _resize(level: int, source: int) -> nn.Module:
    """Return what brings a map of the level ``source`` to the size of ``level``."""
    if source < level:
        return nn.MaxPool2d(2 ** (level - source))
    if source > level:
        return nn.Upsample(scale_factor=2 ** (source - level), mode="bilinear")
    return nn.Identity()


def _conv_unit(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _head(in_channels: int, num_classes: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, num_classes, kernel_size=3, padding=1)
