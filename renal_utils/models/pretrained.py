"""Networks of segmentation-models-pytorch, whose encoders can start from ImageNet's weights.

These are that library's networks (MIT licence), not ours: we only give them names and clear errors.
Weights are fetched from the Hugging Face hub the first time and kept in its cache afterwards.
"""

from torch import nn


def unet_resnet34(
    in_channels: int = 3, num_classes: int = 1, *, encoder_weights: str | None = None
) -> nn.Module:
    """Return ``segmentation_models_pytorch.Unet`` on a ResNet-34 (24,436,369 parameters, 1 class).

    Args:
        in_channels: Channels of the image.
        num_classes: Channels of the logits.
        encoder_weights: None for random weights, or a name such as ``"imagenet"``.

    Raises:
        ValueError: If no such weights exist; the message lists those that do.
        ConnectionError: If the weights are not in the cache and the hub cannot be reached.
    """
    # imported here: it brings torchvision and timm along, several seconds on a cold start
    import segmentation_models_pytorch as smp

    try:
        return smp.Unet(
            "resnet34",
            encoder_weights=encoder_weights,
            in_channels=in_channels,
            classes=num_classes,
        )
    except KeyError as error:
        raise ValueError(f"unet_resnet34: {error.args[0]}") from error
    except OSError as error:
        raise ConnectionError(
            f"encoder weights {encoder_weights!r} of resnet34 are not in the Hugging Face cache "
            "and the hub cannot be reached; connect once (later runs use the cache), or give "
            "encoder_weights=None to start from random weights"
        ) from error
