"""ASRMU-Net: the U-Net with reconstruction units in place of its deep second convolutions.

The journal's text that we could read (in part damaged) names the units and their order, not the
wiring. Ours is the reading that comes nearest: 21,320,810 parameters with four classes against
21,317,542 published, 3,268 (0.015 %) too many. Its loss ("improved") is not given either: choose
one by name.
"""

from torch import nn

from renal_utils.models.reconstruction import ASRM, csru, ssru
from renal_utils.models.unet import UNet


def asrmu_net(
    in_channels: int = 3,
    num_classes: int = 1,
    *,
    base_width: int = 64,
    use_ssru: bool = True,
    use_asrm: bool = True,
    use_csru: bool = True,
    gate_threshold: float | None = 0.5,
) -> UNet:
    """Return the U-Net whose blocks the switches exchange, as in the paper's ablation.

    Parameters with four classes: none of the three 34,527,236, the paper's baseline exactly; with
    SSRU 34,527,432; with SSRU and ASRM 33,999,466; with all 21,320,810.

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        base_width: Channels of the first level; each level below doubles them. Even.
        use_ssru: Spatial reconstruction after the blocks of levels 1 and 2 (shallow).
        use_asrm: Level 3 (middle): ASRM instead of the second convolution.
        use_csru: Levels 4 and 5 and the first block of the decoder (deep): channel reconstruction
            instead of the second convolution.
        gate_threshold: Where the spatial gates open; None for soft gates, which is ours.

    Raises:
        ValueError: If a size is not positive, or ``base_width`` is odd.
    """
    if base_width % 2:
        raise ValueError(f"base_width must be even, for gates halve the channels; not {base_width}")
    model = UNet(in_channels, num_classes, base_width=base_width)
    middle, deep, deepest = (base_width * 2**level for level in (2, 3, 4))
    if use_ssru:
        for level in (0, 1):
            model.encoder[level].add_module("ssru", ssru(threshold=gate_threshold))
    if use_asrm:
        put_in(model.encoder[2], ASRM(middle, threshold=gate_threshold))
    if use_csru:
        put_in(model.encoder[3], csru(deep))
        put_in(model.encoder[4], csru(deepest))
        put_in(model.decoder[0], csru(deep))
    return model


def put_in(block: nn.Module, unit: nn.Module) -> None:
    """Exchange a double block's second convolution; normalisation and ReLU after it remain."""
    block.add_module("3", unit)  # its place in the sequence: 0-2 are the first convolution's
