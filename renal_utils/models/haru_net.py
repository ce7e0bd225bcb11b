"""HARU-Net (HARU-Net paper): U2-Net with attention on its skips and two outputs, mask and contour.

What it adds to U2-Net: CBAM on the skips (section on hybrid attention), a context fusion block
instead of the one fusing convolution, and a second set of heads for the contours of nuclei, on the
same decoder. Nuclei are then told apart by ``instances.separate_nuclei``.

Where the authors' published code and their paper differ we follow what gives the published count,
which is the code's: the attention's two summaries are added (the paper says concatenated), and the
last convolution of the context fusion block is 1x1 (the paper says 3x3).
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.attention import CBAM, ChannelAttention
from renal_utils.models.blocks import DoubleConv, check_input, concatenate
from renal_utils.models.u2net import (
    STRIDE,
    SideHeads,
    Stage,
    blocks_of,
    down_and_up,
    stages_of,
    start_as_mean,
)

_SIDES = 6
_HIDDEN = 6
_DEEP_REDUCTION = 32

Logits = Float[Tensor, "B K H W"]


class BranchLogits(NamedTuple):
    """What HARU-Net gives in training: seven logits a branch, the fused ones first.

    Attributes:
        masks: Of nuclei; then the sides, from the finest stage to the deepest.
        contours: Of their outlines, in the same order.
    """

    masks: tuple[Tensor, ...]
    contours: tuple[Tensor, ...]


class ContextFusion(nn.Module):
    """Weigh the side outputs by their averages and maxima over the image, then fuse them.

    91 parameters for one class: two 1x1 convolutions with six hidden channels and bias for the
    weights, one for the fusion.

    Args:
        num_classes: Channels of the logits.
        sides: How many side outputs there are.
    """

    def __init__(self, num_classes: int, *, sides: int = _SIDES) -> None:
        super().__init__()
        channels = sides * num_classes
        self.squeeze = nn.Conv2d(channels, _HIDDEN, kernel_size=1)
        self.expand = nn.Conv2d(_HIDDEN, channels, kernel_size=1)
        self.fuse = nn.Conv2d(channels, num_classes, kernel_size=1)
        start_as_mean(self.fuse, gate=0.5)

    def weights(self, sides: Float[Tensor, "B S H W"]) -> Float[Tensor, "B S 1 1"]:
        """Return the weight of each side output, 0 to 1."""
        summary = sides.mean(dim=(2, 3), keepdim=True) + sides.amax(dim=(2, 3), keepdim=True)
        return self.expand(self.squeeze(summary).relu()).sigmoid()

    def forward(self, sides: Sequence[Logits]) -> Logits:
        """Return the fused logits."""
        joined = concatenate(*sides)
        return self.fuse(joined * self.weights(joined))


class Branch(nn.Module):
    """Six side heads and what fuses them: one output of the network, mask or contour.

    Args:
        widths: Channels of the six maps, from the finest.
        num_classes: Channels of the logits.
        context_fusion: Fuse by ``ContextFusion``; else by one 1x1 convolution, as in U2-Net.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, context_fusion: bool) -> None:
        super().__init__()
        self.sides = SideHeads(widths, num_classes)
        self.context_fusion = context_fusion
        self.fuse = (
            ContextFusion(num_classes)
            if context_fusion
            else nn.Conv2d(_SIDES * num_classes, num_classes, kernel_size=1)
        )
        if not context_fusion:
            start_as_mean(self.fuse)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the fused logits, then the sides, all of the image's size."""
        sides = self.sides(maps, size)
        fused = self.fuse(sides if self.context_fusion else concatenate(*sides))
        return (fused, *sides)


class HARUNet(nn.Module):
    """HARU-Net: 44,069,770 parameters for one class, 44,097,624 for two, both branches counted.

    The blocks can be switched off one by one, for the paper's ablation. In evaluation it gives the
    mask's logits alone, or with ``contours`` those of the contour as further channels.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels K of each branch's logits.
        small: The widths of U2-NetP: 16 channels inside every block and 64 between them.
        width: Channels between the blocks of a network reduced further, and half of them, at most
            16, inside each; 64 is ``small``. None leaves the choice to ``small``.
        rsu: Residual U-blocks as stages; else two convolutions, as a U-Net has.
        attention: CBAM on the four finer skips, channel attention on the deepest.
        context_fusion: Context fusion blocks; else one fusing convolution for each branch.
        contours: Return 2 K channels: the mask's, then the contour's.
        deep_supervision: In training, return ``BranchLogits`` for ``two_branch`` of ``losses``.

    Raises:
        ValueError: If ``width`` is below 1.
    """

    # Without contours and deep supervision nothing is asked of the second branch.
    UNUSED = ("contour.",)

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        small: bool = False,
        width: int | None = None,
        rsu: bool = True,
        attention: bool = True,
        context_fusion: bool = True,
        contours: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        width = 64 if small and width is None else width
        narrow = {} if width is None else {"mid": min(16, -(-width // 2)), "out": width}
        encoder, decoder = stages_of(in_channels, **narrow)
        self.in_channels, self.size_multiple = in_channels, STRIDE
        self.contours, self.deep_supervision = contours, deep_supervision
        self.encoder, self.decoder = _stages(encoder, rsu=rsu), _stages(decoder, rsu=rsu)
        self.pool = nn.MaxPool2d(2)
        self.attention = _attentions(encoder) if attention else None
        widths = [stage.out_channels for stage in (encoder[-1], *decoder)][::-1]
        self.mask = Branch(widths, num_classes, context_fusion=context_fusion)
        self.contour = Branch(widths, num_classes, context_fusion=context_fusion)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ H W"] | BranchLogits:
        """Return the logits; in training with ``deep_supervision``, those of both branches.

        Raises:
            ValueError: If a side is no multiple of 32.
        """
        check_input(image, in_channels=self.in_channels, multiple=STRIDE)
        maps = down_and_up(image, self.encoder, self.decoder, self.pool, self.attention)
        size = image.shape[-2:]
        if self.deep_supervision and self.training:
            return BranchLogits(self.mask(maps, size), self.contour(maps, size))
        if self.contours:
            return concatenate(self.mask(maps, size)[0], self.contour(maps, size)[0])
        return self.mask(maps, size)[0]


def _stages(stages: Sequence[Stage], *, rsu: bool) -> nn.ModuleList:
    if rsu:
        return blocks_of(stages, bias=False)
    return nn.ModuleList(DoubleConv(stage.in_channels, stage.out_channels) for stage in stages)


def _attentions(encoder: Sequence[Stage]) -> nn.ModuleList:
    *finer, deepest = [stage.out_channels for stage in encoder[:-1]]
    return nn.ModuleList([*map(CBAM, finer), ChannelAttention(deepest, reduction=_DEEP_REDUCTION)])
