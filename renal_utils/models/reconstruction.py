"""Spatial and channel reconstruction: SRU and CRU of SCConv, and what ASRMU-Net makes of them.

Both papers say the same two things. Space: some positions of a feature map tell more than others;
part them by a gate and recombine the parts crosswise. Channels: many channels repeat each other;
work on a squeezed part with a full and on the rest with a cheap branch, and weigh the two.

Sources: Li, Wen and He, SCConv (CVPR 2023), section 3; ASRMU-Net (its abstract and results in the
journal's text that we could read). Widespread code of SCConv departs from its paper in two places,
where we follow the paper: a gate is 0 or 1, and the branches' softmax runs over the two branches,
not over all 2 C channels (which would make the output about C times too small).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def open_gate(
    weights: Float[Tensor, "B _ H W"], *, threshold: float | None = 0.5
) -> Float[Tensor, "B _ H W"]:
    """Return 1 where a weight is above the threshold, else 0, with the slope of the weight itself.

    A threshold has no slope, so what computes the weights would never learn. We pass the gradient
    on as if the weight had not been cut (the straight-through estimator, Bengio et al. 2013, arXiv
    1308.3432); the SCConv paper does not say how it trains its gate.

    Args:
        weights: In (0, 1).
        threshold: What a weight must exceed. None keeps the weights as they are: a soft gate.
    """
    if threshold is None:
        return weights
    cut = (weights > threshold).to(weights.dtype)
    return cut + (weights - weights.detach())


class NormGate(nn.Module):
    """Weights of the SRU: how much a channel varies, by the scale its normalisation has learned.

    sigmoid(scale / sum(scale) * GN(X)) (SCConv, 3.2); 2 C parameters.

    Args:
        channels: Channels C.
        groups: Groups of the normalisation; must divide the channels.
    """

    def __init__(self, channels: int, *, groups: int = 4) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return weights in (0, 1), one a channel and pixel."""
        share = self.norm.weight / self.norm.weight.sum()
        return torch.sigmoid(share[:, None, None] * self.norm(features))


class MapGate(nn.Module):
    """Weights of the SSRU: a 7x7 convolution of the mean and the maximum over the channels.

    98 parameters: no bias. The size 7 is our reading (that of CBAM's spatial attention).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        """Return weights in (0, 1), one a pixel."""
        maps = [features.mean(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)]
        return torch.sigmoid(self.conv(torch.cat(maps, dim=1)))


class SpatialReconstruction(nn.Module):
    """Part the maps by a gate, then add the halves of their channels crosswise (SCConv, 3.2).

    Nothing gets lost: the two parts add up to the input, and the two halves of the output add up to
    the two halves of the input.

    Args:
        gate: Gives weights in (0, 1) for feature maps; ``NormGate`` or ``MapGate``.
        threshold: Where the gate opens; None for a soft gate.
    """

    def __init__(self, gate: nn.Module, *, threshold: float | None = 0.5) -> None:
        super().__init__()
        self.gate = gate
        self.threshold = threshold

    def parts(
        self, features: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """Return what tells much and what tells little: W X and (1 - W) X."""
        opened = open_gate(self.gate(features), threshold=self.threshold)
        return opened * features, (1 - opened) * features

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return maps of the same size.

        Raises:
            ValueError: If the number of channels is odd.
        """
        if features.shape[1] % 2:
            raise ValueError(f"channels must be even to be halved, not {features.shape[1]}")
        much, little = self.parts(features)
        much_first, much_second = much.chunk(2, dim=1)
        little_first, little_second = little.chunk(2, dim=1)
        return torch.cat([much_first + little_second, much_second + little_first], dim=1)


class ChannelReconstruction(nn.Module):
    """Split and squeeze the channels, transform them by two branches, weigh these (SCConv, 3.3).

    Half of the channels feed the full branch, half the cheap one, each squeezed to C/4 by a 1x1
    convolution. Full: ``spatial`` plus a 1x1 convolution. Cheap: a 1x1 convolution to 3 C/4, beside
    the C/4 that it comes from.

    Args:
        channels: Channels C that come in and go out; a multiple of 4.
        spatial: The 3x3 part of the full branch, C/4 -> C channels.

    Raises:
        ValueError: If 4 does not divide the channels.
    """

    def __init__(self, channels: int, spatial: nn.Module) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"channels must be a multiple of 4, not {channels}")
        half, quarter = channels // 2, channels // 4
        self.squeeze_full = nn.Conv2d(half, quarter, kernel_size=1, bias=False)
        self.squeeze_cheap = nn.Conv2d(half, quarter, kernel_size=1, bias=False)
        self.spatial = spatial
        self.mix_full = nn.Conv2d(quarter, channels, kernel_size=1, bias=False)
        self.mix_cheap = nn.Conv2d(quarter, channels - quarter, kernel_size=1, bias=False)

    def branches(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "2 B C H W"]:
        """Return the full and the cheap branch, C channels each."""
        first, second = features.chunk(2, dim=1)
        first, second = self.squeeze_full(first), self.squeeze_cheap(second)
        full = self.spatial(first) + self.mix_full(first)
        return torch.stack([full, torch.cat([self.mix_cheap(second), second], dim=1)])

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the branches added up with their weights."""
        branches = self.branches(features)
        return (branch_weights(branches) * branches).sum(dim=0)


def branch_weights(branches: Float[Tensor, "2 B C H W"]) -> Float[Tensor, "2 B C 1 1"]:
    """Return each branch's weight a channel: the softmax, over the two, of its mean over pixels."""
    return branches.mean(dim=(3, 4), keepdim=True).softmax(dim=0)


class ASRM(nn.Module):
    """Spatial, then channel reconstruction, added to the input (ASRMU-Net, middle layers).

    That the input is added ("fused") is our reading.

    Args:
        channels: Channels C; a multiple of 4. 15 C^2 / 16 + 9 C / 4 + 98 parameters.
        threshold: Where the gate opens; None for a soft gate.
    """

    def __init__(self, channels: int, *, threshold: float | None = 0.5) -> None:
        super().__init__()
        self.space = ssru(threshold=threshold)
        self.channels = csru(channels)

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return maps of the same size."""
        return features + self.channels(self.space(features))


def sru(channels: int, *, groups: int = 4) -> SpatialReconstruction:
    """Return the spatial reconstruction unit of SCConv (2 C parameters)."""
    return SpatialReconstruction(NormGate(channels, groups=groups))


def ssru(*, threshold: float | None = 0.5) -> SpatialReconstruction:
    """Return the spatial unit of ASRMU-Net (98 parameters); its gate is one map for all channels.

    So with a hard gate each pixel either keeps its vector or swaps the halves of it.
    """
    return SpatialReconstruction(MapGate(), threshold=threshold)


def cru(channels: int, *, groups: int = 2) -> ChannelReconstruction:
    """Return the channel reconstruction unit of SCConv (29 C^2 / 16 + C parameters at 2 groups)."""
    wide = nn.Conv2d(channels // 4, channels, kernel_size=3, padding=1, groups=groups)
    return ChannelReconstruction(channels, wide)


def csru(channels: int) -> ChannelReconstruction:
    """Return the channel unit of ASRMU-Net: a depthwise and a 1x1 convolution for the group one.

    No biases; 15 C^2 / 16 + 9 C / 4 parameters (64 channels: 3,984). The paper calls the split
    adaptive without saying how in what we could read: ours is half and half, and what adapts are
    the weights of the two branches.
    """
    quarter = channels // 4
    separable = nn.Sequential(
        nn.Conv2d(quarter, quarter, kernel_size=3, padding=1, groups=quarter, bias=False),
        nn.Conv2d(quarter, channels, kernel_size=1, bias=False),
    )
    return ChannelReconstruction(channels, separable)
