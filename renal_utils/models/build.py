"""The networks by name: one explicit table, one function.

A new network is one import and one line in ``MODELS``. Whatever it is built of, its ``forward``
turns images ``B C H W`` into logits ``B K H W`` of the same height and width, with K =
``num_classes``: 1 for one class on background (sigmoid), else one channel a class (softmax).
"""

import inspect
from collections.abc import Callable, Mapping

from torch import nn

from renal_utils.models.asrmu_net import asrmu_net
from renal_utils.models.attention_unet import AttentionUNet
from renal_utils.models.cbam_unet import CbamUNet
from renal_utils.models.ce_net import CENet
from renal_utils.models.double_unet import DoubleUNet
from renal_utils.models.fcn import fcn8s, fcn16s, fcn32s
from renal_utils.models.haru_net import HARUNet
from renal_utils.models.linknet import LinkNet
from renal_utils.models.lsu_net import LSUNet
from renal_utils.models.mask_rcnn import MaskRCNN
from renal_utils.models.mau_net import MAUNet
from renal_utils.models.norms import use_group_norm
from renal_utils.models.pretrained import (
    linknet_efficientnet_b2,
    linknet_efficientnet_b3,
    linknet_efficientnet_b5,
    linknet_mobilenet_v2,
    unet_mobilenet_v2,
    unet_resnet34,
)
from renal_utils.models.res_unet import ResUNet
from renal_utils.models.rolling_unet import RollingUNet
from renal_utils.models.u2net import U2Net, u2netp
from renal_utils.models.unet import UNet
from renal_utils.models.unet3p import UNet3Plus
from renal_utils.models.unetpp import SmallUNet, UNetPlusPlus, unetpp_small
from renal_utils.models.unext import UNeXt
from renal_utils.models.variable_unet import VariableUNet

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "unet_resnet34": unet_resnet34,
    "variable_unet": VariableUNet,
    "lsu_net": LSUNet,
    "asrmu_net": asrmu_net,
    "mau_net": MAUNet,
    "unet_small": SmallUNet,
    "unetpp": UNetPlusPlus,
    "unetpp_small": unetpp_small,
    "unet3p": UNet3Plus,
    "attention_unet": AttentionUNet,
    "cbam_unet": CbamUNet,
    "res_unet": ResUNet,
    "ce_net": CENet,
    "fcn32s": fcn32s,
    "fcn16s": fcn16s,
    "fcn8s": fcn8s,
    "linknet": LinkNet,
    "linknet_efficientnet_b2": linknet_efficientnet_b2,
    "linknet_efficientnet_b3": linknet_efficientnet_b3,
    "linknet_efficientnet_b5": linknet_efficientnet_b5,
    "linknet_mobilenet_v2": linknet_mobilenet_v2,
    "unet_mobilenet_v2": unet_mobilenet_v2,
    "double_unet": DoubleUNet,
    "unext": UNeXt,
    "rolling_unet_s": RollingUNet,
    "u2net": U2Net,
    "u2netp": u2netp,
    "haru_net": HARUNet,
    "mask_rcnn": MaskRCNN,
}


def model_options(name: str) -> dict[str, object]:
    """Return the options that the network called ``name`` takes, with their defaults.

    Raises:
        ValueError: If the name is unknown; the message lists the known ones.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; known: {', '.join(MODELS)}")
    parameters = inspect.signature(MODELS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def build_model(
    name: str,
    *,
    in_channels: int = 3,
    num_classes: int = 1,
    norm: str = "batch",
    **options: object,
) -> nn.Module:
    """Return a new network with random weights (seed torch first for the same ones).

    Args:
        name: A key of ``MODELS``.
        in_channels: Channels of the image.
        num_classes: Channels of the logits (``LabelSet.num_outputs``).
        norm: ``batch`` as the network's authors have it, or ``group``, see ``norms``.
        **options: What this network takes besides, see ``model_options``.

    Raises:
        ValueError: If the name, the norm or an option is unknown; the message lists the known ones.
    """
    known = model_options(name)
    if norm not in ("batch", "group"):
        raise ValueError(f"model {name!r}: norm is 'batch' or 'group', not {norm!r}")
    unknown = sorted(set(options) - set(known))
    if unknown:
        takes = ", ".join(f"{k}={v!r}" for k, v in known.items()) or "none"
        raise ValueError(f"model {name!r} has no option {', '.join(unknown)}; it takes: {takes}")
    if num_classes < 1:
        raise ValueError(f"model {name!r}: num_classes must be at least 1, not {num_classes}")
    model = MODELS[name](in_channels, num_classes, **options)
    return use_group_norm(model) if norm == "group" else model
