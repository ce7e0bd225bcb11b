"""The spatial shift of S2-MLPv2 and the tokenized shift block that LSU-Net builds on it.

A shift moves a quarter of the channels by one pixel in each of four directions. It has no weights,
yet afterwards a 1x1 convolution sees the neighbours of its pixel. Widespread code assigns one slice
of a tensor to an overlapping slice of the same tensor, so that a value just written is read again:
a column 0, 16, 32, 48 becomes 0, 0, 0, 0 instead of 0, 0, 16, 32. Here every shift makes a copy.

Sources: Yu et al., S2-MLPv2 (arXiv 2108.01072); Ding et al., LSU-Net (arXiv 2502.00042), section 2.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.norms import group_norm

# dimension of B C H W and direction of each quarter of the channels (LSU-Net, eq. 6 and 7)
ROWS_FIRST = ((2, 1), (2, -1), (3, 1), (3, -1))
COLUMNS_FIRST = ((3, 1), (3, -1), (2, 1), (2, -1))


def shift_by_one(
    features: Float[Tensor, "B C H W"], *, dim: int, step: int
) -> Float[Tensor, "B C H W"]:
    """Return a copy moved by one pixel, in which the border that nothing moves into stays.

    Args:
        features: Any feature maps.
        dim: 2 to move along the height, 3 along the width.
        step: 1 to move towards higher indices (down, right), -1 towards lower ones.

    Raises:
        ValueError: If ``step`` is neither 1 nor -1.
    """
    if step not in (1, -1):
        raise ValueError(f"step must be 1 or -1, not {step}")
    last = features.shape[dim] - 1
    if step == 1:
        return torch.cat([features.narrow(dim, 0, 1), features.narrow(dim, 0, last)], dim)
    return torch.cat([features.narrow(dim, 1, last), features.narrow(dim, last, 1)], dim)


def spatial_shift(
    features: Float[Tensor, "B C H W"], moves: Sequence[tuple[int, int]] = ROWS_FIRST
) -> Float[Tensor, "B C H W"]:
    """Return a copy whose four quarters of the channels are each moved by one pixel.

    Args:
        features: Any feature maps; where 4 does not divide C, quarters differ by one channel.
        moves: Dimension and direction of each quarter: ``ROWS_FIRST`` (eq. 6 of LSU-Net) or
            ``COLUMNS_FIRST`` (eq. 7).
    """
    channels = features.shape[1]
    bounds = [channels * quarter // 4 for quarter in range(5)]
    quarters = (features[:, start:end] for start, end in pairwise(bounds))
    moved = [
        shift_by_one(quarter, dim=dim, step=step)
        for quarter, (dim, step) in zip(quarters, moves, strict=True)
    ]
    return torch.cat(moved, dim=1)


class SplitAttention(nn.Module):
    """Weigh parts against each other, channel by channel, and add them up (S2-MLPv2, section 3).

    The parts are summed over parts and pixels (a sum, not a mean, as published: its size grows with
    the image), two layers without bias turn the C sums into C weights a part, and a softmax over
    the parts makes each channel's weights add up to 1. 4 C^2 parameters for three parts.

    Args:
        channels: Channels C of each part.
        parts: How many parts there are.
    """

    def __init__(self, channels: int, *, parts: int = 3) -> None:
        super().__init__()
        self.parts = parts
        self.hidden = nn.Linear(channels, channels, bias=False)
        self.activation = nn.GELU()
        self.score = nn.Linear(channels, parts * channels, bias=False)

    def weights(self, parts: Float[Tensor, "B P C H W"]) -> Float[Tensor, "B P C 1 1"]:
        """Return the weight of each part and channel, in [0, 1], summing to 1 over the parts."""
        scores = self.score(self.activation(self.hidden(parts.sum(dim=(1, 3, 4)))))
        return scores.unflatten(1, (self.parts, -1)).softmax(dim=1)[..., None, None]

    def forward(self, parts: Float[Tensor, "B P C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the weighted sum of the parts."""
        return (self.weights(parts) * parts).sum(dim=1)


class SpatialShift(nn.Module):
    """Spatial shift block: widen threefold, shift two thirds, weigh the thirds, mix the channels.

    8 C^2 + 4 C parameters (C = 512: 2,099,200).

    Args:
        channels: Channels C that come in and go out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.attention = SplitAttention(channels)
        self.mix = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return maps in which each pixel has seen its four neighbours."""
        first, second, still = self.widen(features).chunk(3, dim=1)
        parts = [spatial_shift(first), spatial_shift(second, COLUMNS_FIRST), still]
        return self.mix(self.attention(torch.stack(parts, dim=1)))


class TokenizedShift(nn.Module):
    """Tokenized shift block of LSU-Net (eq. 8 to 10): shift, depthwise 3x3, two 1x1, and a skip.

    11 C^2 + 19 C parameters.

    Args:
        channels: Channels C that come in and go out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = SpatialShift(channels)
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels),
            group_norm(channels),
            nn.Conv2d(channels, channels, kernel_size=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, kernel_size=1),
        )
        self.skip = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return maps of the same size."""
        return self.main(features + self.shift(features)) + self.skip(features)


class PatchEmbedding(nn.Module):
    """Overlapping patches: a 3x3 convolution of stride 2, each pixel normalised over its channels.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D _ _"]:
        """Return maps of half the height and width."""
        pixels = self.project(features).movedim(1, -1)
        return self.norm(pixels).movedim(-1, 1)
