"""CBAM: weigh a map's channels, then its pixels (Woo et al., ECCV 2018).

Both steps multiply the map by weights between 0 and 1 that they compute from averages and maxima of
the map itself. HARU-Net (section 3.2, equations 1 and 2) puts them on the skips of its network, and
so does the CBAM-UNet of the ASRMU-Net paper as we read it.

Convolutions have no bias and no normalisation follows: only so does CBAM-UNet have the 34,571,148
parameters that the paper reports. The module that CBAM's authors published has both.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import concatenate


class ChannelAttention(nn.Module):
    """Multiply each channel by a weight (section 3, equation 2 of Woo et al.).

    The average and the maximum of each channel pass through one small network of two layers; the
    sigmoid of the two results' sum is the weight. The HARU-Net paper's words say "concatenated"
    for the sum; its code adds. 2 C^2 / ``reduction`` parameters: 16,384 for 512 channels and 32.

    Args:
        channels: Channels C of the map.
        reduction: The small network's hidden layer has C / ``reduction`` channels, at least one.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        if min(channels, reduction) < 1:
            raise ValueError(
                f"channels and reduction must be at least 1, not {channels} and {reduction}"
            )
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)

    def weights(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 1 1"]:
        """Return the weight of each channel, 0 to 1."""
        mean = features.mean(dim=(2, 3), keepdim=True)
        highest = features.amax(dim=(2, 3), keepdim=True)
        scores = [self.expand(self.squeeze(summary).relu()) for summary in (mean, highest)]
        return (scores[0] + scores[1]).sigmoid()

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the map with each channel weighed."""
        return features * self.weights(features)


class SpatialAttention(nn.Module):
    """Multiply each pixel by a weight (section 3, equation 3 of Woo et al.).

    The maximum and the mean over the channels make a map of two channels; the sigmoid of one
    convolution of it is the weight. 2 ``kernel``^2 parameters: 98 for 7.

    Args:
        kernel: Side of the convolution in pixels, odd so that it has a centre.

    Raises:
        ValueError: If the side is not odd.
    """

    def __init__(self, *, kernel: int = 7) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, such as 7 or 3, not {kernel}")
        self.conv = nn.Conv2d(2, 1, kernel_size=kernel, padding=kernel // 2, bias=False)

    def weights(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        """Return the weight of each pixel, 0 to 1."""
        highest = features.amax(dim=1, keepdim=True)
        mean = features.mean(dim=1, keepdim=True)
        return torch.sigmoid(self.conv(concatenate(highest, mean)))

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the map with each pixel weighed."""
        return features * self.weights(features)


class CBAM(nn.Sequential):
    """Channel attention, then spatial attention: 2 C^2 / ``reduction`` + 2 ``kernel``^2 parameters.

    With the defaults 610, 2,146, 8,290 and 32,866 for 64, 128, 256 and 512 channels.

    Args:
        channels: Channels C of the map.
        reduction: See ``ChannelAttention``.
        kernel: See ``SpatialAttention``.

    Raises:
        ValueError: If an argument is not positive, or the kernel is even.
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__(
            ChannelAttention(channels, reduction=reduction), SpatialAttention(kernel=kernel)
        )
