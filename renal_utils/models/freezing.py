"""Training in two phases: first only the decoder on a frozen encoder, then the whole network.

The HuBMAP thesis trains so (section 5.4: 6 epochs, then 32), with an encoder that knows ImageNet:
the random decoder's first gradients are large and would spoil what the encoder has learnt.
"""

from typing import Any

from torch import nn


def freeze_encoder(model: nn.Module) -> None:
    """Keep ``model.encoder`` as it is until ``unfreeze_encoder``.

    Its parameters get no gradient, and before each forward pass it is put in evaluation mode, so
    that batch normalisation uses the statistics it has and does not move them, whatever
    ``model.train()`` says. Only what lies outside the encoder learns.

    Raises:
        ValueError: If the network has no part called ``encoder``.
    """
    encoder = _encoder_of(model)
    encoder.requires_grad_(False)
    if not encoder_is_frozen(model):
        handle: Any = model.register_forward_pre_hook(_rest)
        model.frozen_encoder_hook = handle
    encoder.eval()


def unfreeze_encoder(model: nn.Module) -> None:
    """Let the whole network learn again; it does nothing to an encoder that is not frozen.

    Raises:
        ValueError: If the network has no part called ``encoder``.
    """
    encoder = _encoder_of(model)
    handle: Any = getattr(model, "frozen_encoder_hook", None)
    if handle is not None:
        handle.remove()
        del model.frozen_encoder_hook
        encoder.requires_grad_(True)
        encoder.train(model.training)


def encoder_is_frozen(model: nn.Module) -> bool:
    """Tell whether ``freeze_encoder`` holds."""
    return hasattr(model, "frozen_encoder_hook")


def copy_encoder(source: nn.Module, target: nn.Module) -> None:
    """Give a network the encoder that another one has learnt, with its normalisation's statistics.

    Decoders and heads may differ; the target's stay as they are.

    Raises:
        ValueError: If one has no part called ``encoder``, or theirs are not of one kind.
    """
    try:
        _encoder_of(target).load_state_dict(_encoder_of(source).state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"the encoder of this {type(source).__name__} does not fit into that of the "
            f"{type(target).__name__}; both must be built by one name with the same options"
        ) from error


def _rest(model: nn.Module, inputs: object) -> None:
    _encoder_of(model).eval()


def _encoder_of(model: nn.Module) -> nn.Module:
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        parts = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"{type(model).__name__} has no encoder to freeze, its parts are: {parts}; "
            "train it whole, or take a network such as linknet_efficientnet_b2"
        )
    return encoder
