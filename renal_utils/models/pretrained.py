"""Networks of segmentation-models-pytorch, whose encoders can start from ImageNet's weights.

These are that library's networks (MIT licence), not ours: we give them names, the check of an
input's size that all networks here share, and clear errors. Their weights are fetched from the
Hugging Face hub the first time and kept in its cache afterwards; those of torchvision, for networks
of ours, from the address that torchvision states. Counts are for one class.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from renal_utils.models.blocks import check_input


def unet_resnet34(
    in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
) -> nn.Module:
    """Return U-Net on a ResNet-34 (24,436,369 parameters), see ``pretrained_network``."""
    return pretrained_network("Unet", "resnet34", in_channels, num_classes, encoder_weights)


def unet_mobilenet_v2(
    in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
) -> nn.Module:
    """Return U-Net on a MobileNetV2 (6,628,945 parameters), see ``pretrained_network``."""
    return pretrained_network("Unet", "mobilenet_v2", in_channels, num_classes, encoder_weights)


def linknet_mobilenet_v2(
    in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
) -> nn.Module:
    """Return LinkNet on a MobileNetV2 (4,319,859 parameters), see ``pretrained_network``."""
    return pretrained_network("Linknet", "mobilenet_v2", in_channels, num_classes, encoder_weights)


def linknet_efficientnet_b2(
    in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
) -> nn.Module:
    """Return LinkNet on an EfficientNet-B2 (7,892,755 parameters; 498,432 of them unused)."""
    return _linknet_efficientnet("b2", in_channels, num_classes, encoder_weights)


def linknet_efficientnet_b3(
    in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
) -> nn.Module:
    """Return LinkNet on an EfficientNet-B3 (10,926,953 parameters; 592,896 of them unused)."""
    return _linknet_efficientnet("b3", in_channels, num_classes, encoder_weights)


def linknet_efficientnet_b5(
    in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
) -> nn.Module:
    """Return LinkNet on an EfficientNet-B5 (28,745,835 parameters; 1,052,672 of them unused).

    With ImageNet's weights it is the best network of the HuBMAP thesis (its table 2).
    """
    return _linknet_efficientnet("b5", in_channels, num_classes, encoder_weights)


def pretrained_network(
    network: str,
    encoder: str,
    in_channels: int,
    num_classes: int,
    encoder_weights: str | None,
) -> nn.Module:
    """Return a network of segmentation-models-pytorch on one of its encoders.

    It has ``size_multiple`` and refuses other sizes as our own networks do; the names of its
    parameters are that library's.

    Args:
        network: Its class, such as ``"Unet"`` or ``"Linknet"``.
        encoder: Name of the encoder, such as ``"mobilenet_v2"``.
        in_channels: Channels of the image.
        num_classes: Channels of the logits.
        encoder_weights: None for random weights, or a name such as ``"imagenet"``.

    Raises:
        ValueError: If no such weights exist; the message lists those that do.
        ConnectionError: If the weights are not in the cache and the hub cannot be reached.
    """
    # imported here: it brings torchvision and timm along, several seconds on a cold start
    import segmentation_models_pytorch as smp

    make = getattr(smp, network)
    try:
        model = make(
            encoder, encoder_weights=encoder_weights, in_channels=in_channels, classes=num_classes
        )
    except KeyError as error:
        raise ValueError(f"{network} on {encoder}: {error.args[0]}") from error
    except OSError as error:
        raise _unreachable(encoder, encoder_weights, "the Hugging Face hub") from error
    model.size_multiple = model.encoder.output_stride
    check = partial(_check_before, in_channels=in_channels, multiple=model.size_multiple)
    model.register_forward_pre_hook(check)
    return model


def torchvision_weights(network: str, name: str) -> Mapping[str, Tensor]:
    """Return weights of a torchvision network by name, fetched once and then from its cache.

    Args:
        network: Such as ``"vgg19"`` or ``"resnet18"``.
        name: ``"imagenet"`` for torchvision's best, or a name of torchvision's.

    Raises:
        ValueError: If no such weights exist; the message lists those that do.
        ConnectionError: If they are not in the cache and cannot be fetched.
    """
    from torchvision.models import get_model_weights  # as heavy as the import above

    known = get_model_weights(network)
    weights = known.DEFAULT if name == "imagenet" else known.__members__.get(name)
    if weights is None:
        names = ", ".join(["imagenet", *known.__members__])
        raise ValueError(f"no weights {name!r} of {network}; known: {names}")
    try:
        return weights.get_state_dict(progress=False)
    except OSError as error:
        raise _unreachable(network, name, "torchvision's server") from error


def load_encoder(encoder: nn.Module, network: str, name: str, *, in_channels: int) -> None:
    """Give an encoder torchvision's weights: its tensors, in order, are the first of that network.

    Args:
        encoder: Built in the order of torchvision's network; its names may differ.
        network: Torchvision's name of that network.
        name: As ``torchvision_weights`` takes it.
        in_channels: Channels that the encoder takes; the weights are for three.

    Raises:
        ValueError: If there are no such weights, or the image has not three channels.
        ConnectionError: If they cannot be fetched.
    """
    if in_channels != 3:
        raise ValueError(
            f"weights {name!r} of {network} are for images of 3 channels, not {in_channels}; "
            "give encoder_weights=None"
        )
    tensors = torchvision_weights(network, name).values()
    encoder.load_state_dict(dict(zip(encoder.state_dict(), tensors, strict=False)))


def _linknet_efficientnet(
    size: str, in_channels: int, num_classes: int, encoder_weights: str | None
) -> nn.Module:
    encoder = f"efficientnet-{size}"
    model: Any = pretrained_network("Linknet", encoder, in_channels, num_classes, encoder_weights)
    model.UNUSED = (
        "encoder._conv_head.",
        "encoder._bn1.",
    )  # the classifier's, counted all the same
    return model


def _check_before(
    module: nn.Module, inputs: tuple[Float[Tensor, "B C H W"]], *, in_channels: int, multiple: int
) -> None:
    check_input(inputs[0], in_channels=in_channels, multiple=multiple)


def _unreachable(encoder: str, weights: str | None, where: str) -> ConnectionError:
    return ConnectionError(
        f"encoder weights {weights!r} of {encoder} are not in the cache and {where} cannot be "
        "reached; connect once (later runs use the cache), or give encoder_weights=None to start "
        "from random weights"
    )
