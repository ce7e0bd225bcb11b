"""Attention U-Net: gates let through what the coarser level asks for (Oktay et al., MIDL 2018).

The paper's gate compares the skip with the coarser map at the coarser size and enlarges the
weights; its network is a 3-D one. The form that kidney and organ papers compare with (LSU-Net's
table 1: 34.88 million parameters) first brings the coarser map up to the skip's size, and so needs
no resampling inside the gate. We build this one: 34,878,573 parameters for one class.
"""

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import DoubleConv, Encoder, UpConv, check_input, concatenate


class AttentionGate(nn.Module):
    """Multiply each pixel of a skip by a weight that the coarser level's map decides on.

    Additive attention (equations 1 and 2 of the paper): both maps through a 1x1 convolution to half
    their channels, summed, ReLU, a 1x1 convolution to one channel, sigmoid; normalisation after
    each convolution, which the paper does not have. 4,323, 16,835, 66,435 and 263,939 parameters
    for 64, 128, 256 and 512 channels.

    Args:
        channels: Channels of the skip, and of the coarser map once it is brought up.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.of_skip = _point_conv(channels, hidden)
        self.of_coarser = _point_conv(channels, hidden)
        self.to_weight = _point_conv(hidden, 1)

    def weights(
        self, skip: Float[Tensor, "B C H W"], coarser: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B 1 H W"]:
        """Return the weight of each pixel, 0 to 1."""
        agreement = (self.of_skip(skip) + self.of_coarser(coarser)).relu()
        return self.to_weight(agreement).sigmoid()

    def forward(
        self, skip: Float[Tensor, "B C H W"], coarser: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """Return the skip with each pixel weighed."""
        return skip * self.weights(skip, coarser)


class AttentionUNet(nn.Module):
    """U-Net with a gate on each skip: 34,878,573 parameters for one class, 195 more for four.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of the first level; each of the four below doubles them.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, base_width: int = 64) -> None:
        super().__init__()
        widths = [base_width * 2**level for level in range(5)]
        self.in_channels, self.size_multiple = in_channels, 16
        self.encoder = Encoder(in_channels, widths)
        self.up = nn.ModuleList(map(UpConv, widths[:0:-1], widths[-2::-1]))
        self.gates = nn.ModuleList(map(AttentionGate, widths[-2::-1]))
        self.decoder = nn.ModuleList(map(DoubleConv, widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv2d(base_width, num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        *skips, features = self.encoder(image)
        for up, gate, block in zip(self.up, self.gates, self.decoder, strict=True):
            coarser = up(features)
            features = block(concatenate(gate(skips.pop(), coarser), coarser))
        return self.head(features)


def _point_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1), nn.BatchNorm2d(out_channels)
    )
