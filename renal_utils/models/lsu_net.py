"""LSU-Net, a light segmentation network (Ding et al., arXiv 2502.00042, ICASSP 2025).

The paper publishes no code and no widths. Widths 32, 64, 80, 96, 176, skips that are added, biases
in all convolutions, group normalisation of 8 groups, blocks of the decoder before its enlargements
and six 1x1 heads are our reading: with four classes and all heads it has 1,080,360 parameters
(published: 1.08 M). At 224 x 224 its convolutions multiply 1.09 G times; with two operations for
each value normalised that is 1.104 G (published: 1.10 G), with the additions of biases 1.119 G.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import check_input
from renal_utils.models.norms import group_norm
from renal_utils.models.shift import PatchEmbedding, TokenizedShift


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of every n-th row and column, as one of stride n, with equal weights.

    Rows and columns are dropped before the convolution: on the CPU, the backward pass of a strided
    1x1 convolution of a channels-last tensor with fewer than 16 channels writes past its memory
    (oneDNN's issue 6035; seen with PyTorch 2.15).

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        every: From one row or column that is kept to the next.
    """

    def __init__(self, in_channels: int, out_channels: int, *, every: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)
        self.every = every

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D _ _"]:
        """Return maps of the size divided by ``every``."""
        return super().forward(features[..., :: self.every, :: self.every])


class LightConv(nn.Module):
    """Light Conv Block (eq. 1 to 5): one full 3x3 convolution, then only depthwise and 1x1 ones.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: 2 in the encoder, where a strided 1x1 convolution stands beside the main branch
            (eq. 4); 1 in the decoder, where nothing does (eq. 5).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        width = out_channels
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.GELU(),
        )
        self.main = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width),
            nn.Conv2d(width, width, kernel_size=1),
            group_norm(width),
            nn.Conv2d(width, width, kernel_size=1),
            nn.GELU(),
            Pointwise(width, width, every=stride),
        )
        self.skip = Pointwise(width, width, every=stride) if stride > 1 else nn.Identity()

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D _ _"]:
        """Return maps of the size divided by the stride."""
        features = self.first(features)
        return self.main(features) + self.skip(features)


def plain_block(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """Return what stands for a block that is switched off: 1x1 convolution, normalisation, GELU."""
    return nn.Sequential(
        Pointwise(in_channels, out_channels, every=stride),
        nn.BatchNorm2d(out_channels),
        nn.GELU(),
    )


def shift_down(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the Tokenized Shift Down Block: overlapping patches of half the size, then shifts."""
    return nn.Sequential(PatchEmbedding(in_channels, out_channels), TokenizedShift(out_channels))


def shift_up(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the Tokenized Shift Up Block: a 1x1 convolution to the channels, then shifts."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1), TokenizedShift(out_channels)
    )


class LSUNet(nn.Module):
    """Three light and two shift stages down, the same up, added skips, a head on every level.

    The paper's ablation (4 classes; parameters of the paper / of ours with all heads): whole
    1.08 M / 1,080,360; ``light_blocks=False`` 0.77 M / 887,464; ``shift_blocks=False`` 0.26 M /
    261,704; without multi-scale loss, ``deep_supervision=False``, 1.08 M / 1,078,548 (the five
    heads that nothing would train are then left out). The paper does not say what stands for a
    block taken out; ours is a 1x1 convolution with normalisation and GELU. Its operations rise from
    1.10 G to 2.81 G and 2.10 G when blocks go, ours fall: it must have put larger blocks there.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        widths: Channels of the five stages, from the first to the deepest.
        light_blocks: Use Light Conv Blocks in the three shallow stages.
        shift_blocks: Use Tokenized Shift Blocks in the two deep stages.
        deep_supervision: Return the logits of every level while training.

    Raises:
        ValueError: If there are not five positive widths.
    """

    size_multiple = 32

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        widths: Sequence[int] = (32, 64, 80, 96, 176),
        light_blocks: bool = True,
        shift_blocks: bool = True,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != 5 or min(widths) < 1:
            raise ValueError(f"widths must be five positive numbers, not {tuple(widths)}")
        self.in_channels, self.deep_supervision = in_channels, deep_supervision
        light = LightConv if light_blocks else plain_block
        down = shift_down if shift_blocks else partial(plain_block, stride=2)
        up = shift_up if shift_blocks else plain_block
        narrowing = list(pairwise([in_channels, *widths]))
        widening = list(pairwise([*reversed(widths), widths[0]]))
        encoder = [light(i, o, stride=2) for i, o in narrowing[:3]]
        encoder += [down(i, o) for i, o in narrowing[3:]]
        decoder = [up(i, o) for i, o in widening[:2]] + [light(i, o) for i, o in widening[2:]]
        sides = widths if deep_supervision else ()
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(widths[0], num_classes, kernel_size=1)
        self.sides = nn.ModuleList(nn.Conv2d(w, num_classes, kernel_size=1) for w in sides)

    def levels(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return the decoder's maps, from the bottleneck (1/32 of the size) to the full size."""
        skips: list[Tensor] = []
        features = image
        for block in self.encoder:
            features = block(features)
            skips.append(features)
        levels = [skips.pop()]
        for block in self.decoder:
            features = self.enlarge(block(features))
            if skips:
                features = features + skips.pop()
            levels.append(features)
        return levels

    def forward(
        self, image: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B K H W"] | tuple[Float[Tensor, "B K _ _"], ...]:
        """Return the logits of every class and pixel.

        Returns:
            Logits of the image's size. With ``deep_supervision``, while training, a tuple: these
            (l0), then l1 to l5 of 1/2, 1/4, 1/8, 1/16 and 1/32 of the height and width, as the
            multi-scale deep loss (eq. 11) compares each with the mask reduced to its size.

        Raises:
            ValueError: If a side is no multiple of 32.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        *deeper, last = self.levels(image)
        main = self.head(last)
        if not (self.deep_supervision and self.training):
            return main
        pairs = zip(self.sides, reversed(deeper), strict=True)
        return main, *(side(features) for side, features in pairs)
