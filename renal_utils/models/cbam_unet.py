"""CBAM-UNet: a U-Net whose skips pass through CBAM, a rival in the ASRMU-Net paper (its table 4).

The paper gives its count, 34,571,148 for four classes, and no diagram that says where the attention
stands. The count is that of our U-Net and four CBAM, for 64 to 512 channels; it cannot tell whether
they stand on the skips, after the encoder's blocks or after the decoder's. We put them on the
skips, as HARU-Net does.
"""

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.attention import CBAM
from renal_utils.models.blocks import DoubleConv, Encoder, UpConv, check_input, concatenate


class CbamUNet(nn.Module):
    """U-Net with CBAM on each skip: 34,571,148 parameters for four classes.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of the first level; each of the four below doubles them.
        reduction: See ``ChannelAttention``.
        kernel: Side of the spatial attention's convolution, odd.

    Raises:
        ValueError: If a number is not positive, or the kernel is even.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        base_width: int = 64,
        reduction: int = 16,
        kernel: int = 7,
    ) -> None:
        super().__init__()
        widths = [base_width * 2**level for level in range(5)]
        self.in_channels, self.size_multiple = in_channels, 16
        self.encoder = Encoder(in_channels, widths)
        self.attention = nn.ModuleList(
            CBAM(width, reduction=reduction, kernel=kernel) for width in widths[-2::-1]
        )
        self.up = nn.ModuleList(map(UpConv, widths[:0:-1], widths[-2::-1]))
        self.decoder = nn.ModuleList(map(DoubleConv, widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv2d(base_width, num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 16.
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        *skips, features = self.encoder(image)
        for attend, up, block in zip(self.attention, self.up, self.decoder, strict=True):
            features = block(concatenate(attend(skips.pop()), up(features)))
        return self.head(features)
