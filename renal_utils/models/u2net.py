"""U2-Net and its small form U2-NetP (Qin et al., Pattern Recognition 2020): a U-Net of U-Nets.

Six stages on the way down, five on the way up, each a residual U-block. Every stage on the way up,
and the bottom, has a side output; a 1x1 convolution fuses the six.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import check_input, concatenate
from renal_utils.models.rsu import RSU, resized

STRIDE = 32


class Stage(NamedTuple):
    """A residual U-block of U2-Net: its height, its channels, and whether it dilates."""

    height: int
    in_channels: int
    mid_channels: int
    out_channels: int
    dilated: bool = False


ENCODER = (
    Stage(7, 3, 32, 64),
    Stage(6, 64, 32, 128),
    Stage(5, 128, 64, 256),
    Stage(4, 256, 128, 512),
    Stage(4, 512, 256, 512, dilated=True),
    Stage(4, 512, 256, 512, dilated=True),
)
DECODER = (  # from the deepest to the finest
    Stage(4, 1024, 256, 512, dilated=True),
    Stage(4, 1024, 128, 256),
    Stage(5, 512, 64, 128),
    Stage(6, 256, 32, 64),
    Stage(7, 128, 16, 64),
)


def narrowed(stages: Sequence[Stage], *, first: int, mid: int, out: int) -> tuple[Stage, ...]:
    """Return stages of the same heights with one width for all, as U2-NetP has them.

    Args:
        stages: Those of the full network.
        first: Channels that come into the first.
        mid: Channels inside each.
        out: Channels that go out of each.
    """
    ways_in = [first] + [out if stages is ENCODER else 2 * out] * (len(stages) - 1)
    return tuple(
        stage._replace(in_channels=way_in, mid_channels=mid, out_channels=out)
        for stage, way_in in zip(stages, ways_in, strict=True)
    )


def blocks_of(stages: Sequence[Stage], *, bias: bool = True) -> nn.ModuleList:
    """Return the residual U-block of each stage."""
    return nn.ModuleList(
        RSU(s.in_channels, s.mid_channels, s.out_channels, height=s.height, dilated=s.dilated,
            bias=bias)
        for s in stages
    )  # fmt: skip


class SideHeads(nn.Module):
    """A 3x3 convolution to logits for each of several maps, each enlarged to the image.

    Args:
        widths: Channels of the maps.
        num_classes: Channels of the logits.
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(w, num_classes, 3, padding=1) for w in widths)

    def forward(
        self, maps: Sequence[Float[Tensor, "B _ _ _"]], size: Sequence[int]
    ) -> list[Float[Tensor, "B K H W"]]:
        """Return the logits of each map at the image's size."""
        return [resized(head(m), size) for head, m in zip(self.heads, maps, strict=True)]


class U2Net(nn.Module):
    """U2-Net: 44,009,869 parameters for one class, U2-NetP 1,131,181.

    The authors' network returns probabilities; this one returns logits. Its fusing convolution has
    ``num_classes`` outputs, where theirs has one whatever the classes.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits.
        small: U2-NetP: 16 channels inside every block and 64 between them.
        deep_supervision: In training, return seven logits of the image's size: the fused ones, then
            those of the stages from the finest to the deepest.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        small: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        encoder, decoder = stages_of(in_channels, mid=16 if small else None, out=64)
        self.in_channels, self.size_multiple = in_channels, STRIDE
        self.deep_supervision = deep_supervision
        self.encoder, self.decoder = blocks_of(encoder), blocks_of(decoder)
        self.pool = nn.MaxPool2d(2)
        widths = [stage.out_channels for stage in (encoder[-1], *decoder)][::-1]
        self.sides = SideHeads(widths, num_classes)
        self.fuse = nn.Conv2d(6 * num_classes, num_classes, kernel_size=1)
        start_as_mean(self.fuse)

    def forward(
        self, image: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B K H W"] | tuple[Float[Tensor, "B K H W"], ...]:
        """Return the fused logits; in training with ``deep_supervision``, those and the sides.

        Raises:
            ValueError: If a side is no multiple of 32.
        """
        check_input(image, in_channels=self.in_channels, multiple=STRIDE)
        maps = down_and_up(image, self.encoder, self.decoder, self.pool)
        sides = self.sides(maps, image.shape[-2:])
        fused = self.fuse(concatenate(*sides))
        return (fused, *sides) if self.deep_supervision and self.training else fused


@torch.no_grad()
def start_as_mean(fuse: nn.Conv2d, *, gate: float = 1.0) -> None:
    """Let a fusing convolution begin as the mean of the sides, class by class.

    The authors leave its few weights random. They then may well be negative, and a fused output
    that begins as the opposite of its sides takes hundreds of steps to turn round.

    Args:
        fuse: From all sides' logits, side after side, to one side's.
        gate: What the sides have been multiplied by; 0.5 behind a sigmoid gate that is half open.
    """
    sides = fuse.in_channels // fuse.out_channels
    fuse.weight.copy_(torch.eye(fuse.out_channels).repeat(1, sides)[..., None, None] / sides / gate)
    fuse.bias.zero_()


def stages_of(
    in_channels: int, *, mid: int | None = None, out: int = 64
) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """Return the stages on the way down and up: the full network's, or of one width for all.

    Args:
        in_channels: Channels of the image.
        mid: Channels inside each block; None is the full network.
        out: Channels between the blocks, where ``mid`` is given.

    Raises:
        ValueError: If a number of channels is not positive.
    """
    if min(in_channels, out, 1 if mid is None else mid) < 1:
        raise ValueError(f"channels must be at least 1, not {in_channels}, {mid} and {out}")
    if mid is None:
        return (ENCODER[0]._replace(in_channels=in_channels), *ENCODER[1:]), DECODER
    return (
        narrowed(ENCODER, first=in_channels, mid=mid, out=out),
        narrowed(DECODER, first=2 * out, mid=mid, out=out),
    )


def down_and_up(
    image: Float[Tensor, "B C H W"],
    encoder: nn.ModuleList,
    decoder: nn.ModuleList,
    pool: nn.Module,
    attention: nn.ModuleList | None = None,
) -> list[Tensor]:
    """Return the maps that have a side output, from the finest to the deepest.

    Args:
        image: The batch.
        encoder: Stages on the way down; the size is halved between them.
        decoder: Stages on the way up, from the deepest.
        pool: Halves the size.
        attention: What each skip passes through, from the finest; None lets it pass as it is.
    """
    skips = [encoder[0](image)]
    for stage in encoder[1:]:
        skips.append(stage(pool(skips[-1])))
    maps = [skips.pop()]
    ways = list(attention) if attention is not None else [nn.Identity()] * len(skips)
    for stage, skip, way in zip(decoder, skips[::-1], ways[::-1], strict=True):
        maps.append(stage(concatenate(resized(maps[-1], skip.shape[-2:]), way(skip))))
    return maps[::-1]


def u2netp(in_channels: int = 3, num_classes: int = 1, *, deep_supervision: bool = False) -> U2Net:
    """Return U2-NetP, U2-Net's small form (1,131,181 parameters for one class); see ``U2Net``."""
    return U2Net(in_channels, num_classes, small=True, deep_supervision=deep_supervision)
