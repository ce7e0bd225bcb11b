"""Prediction: a trained network as a function from images to probabilities.

Whatever stitches, scores or draws calls this function and knows nothing of devices, precisions or
sigmoids. What a network gives back is checked once, in words that say what to do about it.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from renal_utils.runtime import pick_device, pick_precision

Images = Float[Tensor, "B 3 H W"]
Probabilities = Float32[Tensor, "B C H W"]
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Predictor:
    """A network in evaluation mode: normalised images in, probabilities out.

    Attributes:
        model: The network, on ``device``, returning logits ``B C H W``.
        device: Where it runs.
        precision: ``bf16-mixed`` or ``32-true``.
        identity: Hash of the weights, with the precision: results of two predictors of one
            identity may be mixed on one slide.
    """

    model: nn.Module
    device: torch.device
    precision: str
    identity: str

    def __call__(self, images: Images) -> Probabilities:
        """Return the probability of each class at each pixel, on the CPU.

        One channel is a sigmoid's, several a softmax's.

        Args:
            images: As ``augment.to_tensor`` makes them, on any device.
        """
        bf16 = self.precision == "bf16-mixed"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            images = images.to(self.device).contiguous(memory_format=torch.channels_last)
            logits = self.model(images).float()
            one = logits.shape[1] == 1
            probabilities = logits.sigmoid() if one else logits.softmax(dim=1)
            return probabilities.contiguous().cpu()


def make_predictor(model: nn.Module, *, device: str = "auto", precision: str = "auto") -> Predictor:
    """Make a predictor of a copy of ``model``; the model itself stays as and where it is.

    Args:
        model: Network that maps ``B 3 H W`` to logits ``B C H W``.
        device: ``auto`` or a torch device.
        precision: ``auto`` (bfloat16 where this device gains by it), ``bf16-mixed``, ``32-true``.

    Raises:
        ValueError: If the device is not here, or the precision unknown.
    """
    chosen = pick_device(device)
    exact = pick_precision(precision, chosen)
    own = copy.deepcopy(model).eval().requires_grad_(False)
    identity = f"{weights_hash(own)} {exact}"
    own = own.to(chosen).to(memory_format=torch.channels_last)
    if exact == "bf16-mixed":
        _round_weights(own)
    return Predictor(own, chosen, exact, identity)


def identity_of(predict: Predict) -> str:
    """Return the identity of a predictor; "unnamed" for a function that has none."""
    return str(getattr(predict, "identity", "unnamed"))


def gives_spread(predict: Predict) -> bool:
    """Say whether the last channel that a predictor gives is a spread, as ``views`` may add one."""
    return getattr(predict, "has_spread", False)


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a network's class and state (names, shapes, values), as hex."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_probabilities(
    probabilities: Tensor, *, expected: tuple[int, int, int, int], source: str
) -> Float32[Tensor, "B C H W"]:
    """Return what a network gave for a batch of windows, if it can be stitched.

    Args:
        probabilities: The network's answer.
        expected: (batch, channels, height, width) that it must have.
        source: What was looked at, for messages.

    Raises:
        ValueError: If the shape differs, or a value is NaN, or not within 0 to 1.
    """
    found = tuple(probabilities.shape)
    if found != expected:
        raise ValueError(f"{source}: {_explain_shape(found, expected)}")
    low, high = (float(v) for v in torch.aminmax(probabilities.detach()))
    if not (low == low and high == high):
        raise ValueError(
            f"{source}: the network gave NaN; try precision='32-true', and if that does not help, "
            "an earlier checkpoint: its weights have diverged"
        )
    if low < 0 or high > 1:
        raise ValueError(
            f"{source}: probabilities must lie within 0 to 1, but reach from {low:.4g} to "
            f"{high:.4g}; were these logits? make_predictor(model) turns them into probabilities"
        )
    return probabilities.detach().float().cpu()


def _round_weights(model: nn.Module) -> None:
    """Store the weights that autocast would round to bfloat16 anyway, at each call, rounded."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.to(torch.bfloat16)


def _explain_shape(found: tuple[int, ...], expected: tuple[int, int, int, int]) -> str:
    text = f"the network gave the shape {found}, expected {expected}"
    if len(found) == 4 and found[2:] != expected[2:]:
        return f"{text}; choose a patch size that it returns unchanged (a multiple of 32, often)"
    if len(found) == 4 and found[1] != expected[1]:
        return f"{text}; the label set needs {expected[1]} channels: give the network's own set"
    return f"{text} (batch, channels, height, width)"
