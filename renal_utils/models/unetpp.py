"""UNet++ (Zhou et al., DLMIA 2018 and IEEE TMI 2019), and the small U-Net that goes with it.

Between the encoder and the decoder of a U-Net stands a triangle of further blocks, so that a skip
joins maps that differ less. Maps are enlarged by bilinear interpolation, which has no parameters.

Two papers of the course count two sizes: ASRMU-Net's table 4 the one of 64 to 1024 channels
(36,629,828, four classes), LSU-Net's table 1 the one of 32 to 512 (9.16 million) and a U-Net of
the same style (7.85 million). Double blocks whose convolutions have biases and are followed by
batch normalisation meet the counts.
"""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import DoubleConv, Encoder, check_input, concatenate

DEPTH = 4
Logits = Float[Tensor, "B K H W"]


class UNetPlusPlus(nn.Module):
    """Nested U-Net: 36,629,633 parameters for one class, 65 more for each further one.

    Node (i, j), level i and column j, is a double block on all nodes (i, 0) to (i, j - 1) and the
    enlarged node (i + 1, j - 1): equation 1 of the paper. Column 0 is the encoder.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of level 0; each of the four below doubles them.
        deep_supervision: Give logits of the nodes (0, 1), (0, 2) and (0, 3) as well, in training.

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
        widths = [base_width * 2**level for level in range(DEPTH + 1)]
        self.in_channels, self.size_multiple = in_channels, 2**DEPTH
        self.deep_supervision = deep_supervision
        self.encoder = Encoder(in_channels, widths)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.nodes = nn.ModuleDict(
            {
                f"{level}_{column}": DoubleConv(column * width + below, width)
                for level, (width, below) in enumerate(pairwise(widths))
                for column in range(1, DEPTH - level + 1)
            }
        )
        self.head = nn.Conv2d(base_width, num_classes, kernel_size=1)
        sides = range(DEPTH - 1) if deep_supervision else ()
        self.side_heads = nn.ModuleList(nn.Conv2d(base_width, num_classes, 1) for _ in sides)

    def connect(
        self, maps: Sequence[Float[Tensor, "B _ _ _"]]
    ) -> list[list[Float[Tensor, "B _ _ _"]]]:
        """Return the maps of all nodes: ``rows[level][column]``, of the encoder's five ``maps``."""
        rows = [[encoded] for encoded in maps]
        for column in range(1, len(rows)):
            for level in range(len(rows) - column):
                below = self.up(rows[level + 1][column - 1])
                node = self.nodes[f"{level}_{column}"]
                rows[level].append(node(concatenate(*rows[level], below)))
        return rows

    def forward(self, image: Float[Tensor, "B C H W"]) -> Logits | tuple[Logits, ...]:
        """Return the logits of every class and pixel.

        With deep supervision and in training: those of node (0, 4), then of (0, 1), (0, 2) and
        (0, 3), all of the image's size. The paper may also average the four or leave the later
        columns out when it predicts; we use node (0, 4).

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        finest = self.connect(self.encoder(image))[0]
        logits = self.head(finest[-1])
        if not (self.training and self.deep_supervision):
            return logits
        sides = zip(self.side_heads, finest[1:-1], strict=True)
        return logits, *(head(features) for head, features in sides)


def unetpp_small(
    in_channels: int = 3,
    num_classes: int = 1,
    *,
    base_width: int = 32,
    deep_supervision: bool = False,
) -> UNetPlusPlus:
    """Return UNet++ of 32 to 512 channels: 9,163,329 parameters, 9,163,428 with deep supervision.

    The arguments are those of ``UNetPlusPlus``.
    """
    return UNetPlusPlus(
        in_channels, num_classes, base_width=base_width, deep_supervision=deep_supervision
    )


class SmallUNet(nn.Module):
    """U-Net of 32 to 512 channels without convolutions on the way up: 7,852,545 parameters.

    The enlarged map joins the skip as it is, so a decoder block takes the channels of both levels.
    It is UNet++ with only the last node of each level, joined to column 0 alone.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of the first level; each of the four below doubles them.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, base_width: int = 32) -> None:
        super().__init__()
        widths = [base_width * 2**level for level in range(DEPTH + 1)]
        self.in_channels, self.size_multiple = in_channels, 2**DEPTH
        self.encoder = Encoder(in_channels, widths)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.decoder = nn.ModuleList(
            DoubleConv(width + 2 * width, width) for width in widths[-2::-1]
        )
        self.head = nn.Conv2d(base_width, num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Logits:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        *skips, features = self.encoder(image)
        for block in self.decoder:
            features = block(concatenate(skips.pop(), self.up(features)))
        return self.head(features)
