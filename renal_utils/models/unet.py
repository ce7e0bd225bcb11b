"""U-Net (Ronneberger, Fischer and Brox, MICCAI 2015), in the form the kidney papers compare with.

What differs from the original: convolutions are padded, so the output has the size of the input;
each is followed by batch normalisation; and the way up repeats pixels and convolves instead of a
transposed convolution. Only this form has the 34,527,236 parameters (four classes, widths 64 to
1024) that the ASRMU-Net paper reports for its baseline.
"""

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import DoubleConv, UpConv, check_input, concatenate


class UNet(nn.Module):
    """Encoder that halves the image four times, decoder that doubles it back, skips between.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of the first level; each level below doubles them.
        depth: How often the image is halved. Sides must be multiples of 2 to this power.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        base_width: int = 64,
        depth: int = 4,
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes, base_width, depth) < 1:
            raise ValueError(
                "in_channels, num_classes, base_width and depth must be at least 1, not "
                f"{in_channels}, {num_classes}, {base_width}, {depth}"
            )
        widths = [base_width * 2**level for level in range(depth + 1)]
        ways_in = [in_channels, *widths[:-1]]
        self.in_channels, self.size_multiple = in_channels, 2**depth
        self.encoder = nn.ModuleList(map(DoubleConv, ways_in, widths))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(map(UpConv, widths[:0:-1], widths[-2::-1]))
        self.decoder = nn.ModuleList(map(DoubleConv, widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv2d(base_width, num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of every class and pixel.

        Raises:
            ValueError: If a side is no multiple of 16 (2 to the depth).
        """
        check_input(image, in_channels=self.in_channels, multiple=self.size_multiple)
        skips: list[Tensor] = []
        features = self.encoder[0](image)
        for block in self.encoder[1:]:
            skips.append(features)
            features = block(self.pool(features))
        for up, block in zip(self.up, self.decoder, strict=True):
            features = block(concatenate(skips.pop(), up(features)))
        return self.head(features)
