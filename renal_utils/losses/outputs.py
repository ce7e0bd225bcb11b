"""Losses of networks that give several outputs while they train.

Each takes the tuple of a network in training mode and, for validation, the one tensor that the same
network gives in evaluation mode. That one is scored by the part for the main output alone, so the
``val_loss`` of a training is another quantity than its ``train_loss``.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from renal_utils.losses.pixels import ClassIds, Scalar, checked_weights, full_precision

# Outputs may differ in size, not in anything else.
Sides = tuple[Float[Tensor, "B C _ _"], ...]
Output = Float[Tensor, "B C _ _"] | Sides


class DeepSupervision(nn.Module):
    """The same loss of every output, added up, as U2-Net is trained (Qin et al. 2020, eq. 1).

    U2-Net sums binary cross-entropies of its fused map and six sides, all with weight 1. An output
    that is smaller than the target is enlarged to it first (bilinear), as U2-Net does with its
    sides.

    Args:
        part: Loss of one output.
        weights: One an output, the main one first; None weighs all by 1.

    Raises:
        ValueError: If a weight is negative.
    """

    def __init__(self, part: nn.Module, *, weights: Sequence[float | int] | None = None) -> None:
        super().__init__()
        self.part, self.weights = part, checked_weights(weights, "weights")

    def forward(self, outputs: Output, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is not one weight for each output, or as the part does.
        """
        if isinstance(outputs, Tensor):
            return self.part(outputs, target)
        weights = self.weights or (1.0,) * len(outputs)
        return sum_of_outputs(self.part, outputs, target, weights=weights)


class MultiScaleDeepLoss(nn.Module):
    """LSU-Net's Multi-scale Deep Loss: a loss a level, weighted by what is learned (eq. 11).

    ``sum_i L_i / (2 sigma_i^2) + ln(1 + sigma_i^2)`` (after Liebel and Koerner 2018). Each level is
    compared at its own size with the target brought down to it by nearest neighbour. The paper says
    that the levels have distinct losses but not which; here they are what ``parts`` says.

    The sigmas start at 1 and are parameters of this module. ``training.fit`` trains parameters of a
    loss with the network's optimiser and learning rate, without weight decay (which would pull
    every sigma to 0 and with it every weight up), saves them in its state and resumes them; the
    network's checkpoints do not hold them. The history has their value after each epoch.

    For a constant loss ``L`` the best variance is ``(L + sqrt(L^2 + 8 L)) / 4``: the level that is
    hard to get right counts less. A 1e-6 is added to each variance where it divides, so that
    no weight exceeds 500,000.

    Args:
        parts: One loss a level, the main output's first.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise ValueError(
                "a multi-scale loss needs parts, one for each of its levels, given none"
            )
        self.parts, self.sigmas = nn.ModuleList(parts), nn.Parameter(torch.ones(len(parts)))

    @property
    def weights(self) -> Float[Tensor, " L"]:
        """What each level's loss is multiplied by at present."""
        return weights_of(self.sigmas.detach())

    def forward(self, outputs: Output, target: ClassIds) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If there is not one part for each output, or as the parts do.
        """
        if isinstance(outputs, Tensor):
            return self.parts[0](outputs, target)
        _check_count(outputs, len(self.parts), "levels")
        levels = zip(self.parts, outputs, strict=True)
        losses = [part(output, bring_down(target, output.shape[-2:])) for part, output in levels]
        return weigh_automatically(torch.stack(losses), self.sigmas)


class TwoBranch(nn.Module):
    """HARU-Net's loss of two branches, foreground and contour, each with sides (eq. 3).

    In training mode the network gives ``(masks, contours)``, two tuples of logits, the fused map
    first. A contour cannot be found again in a mask whose objects touch, so the target brings both:
    ``B 2 H W``, the mask's class ids, then the contour's. A single tensor, of evaluation mode, is
    the fused mask's logits; it is scored against the mask, and a plain ``B H W`` target will do. A
    tensor of two channels, of a network of one class with ``contours``, is both without sides.

    The authors weigh every term by 1. Smaller sides are enlarged to the target, as in U2-Net.

    Args:
        part: Loss of one output; the paper's is cross-entropy plus Dice (eq. 4 to 6).
        mask_weight: Of the fused mask.
        contour_weight: Of the fused contour.
        side_weights: One a side, for mask and contour alike; None weighs all by 1.

    Raises:
        ValueError: If a weight is negative.
    """

    def __init__(
        self,
        part: nn.Module,
        *,
        mask_weight: float | int = 1.0,
        contour_weight: float | int = 1.0,
        side_weights: Sequence[float | int] | None = None,
    ) -> None:
        super().__init__()
        checked_weights([mask_weight, contour_weight], "mask_weight and contour_weight")
        self.part = part
        self.mask_weight, self.contour_weight = float(mask_weight), float(contour_weight)
        self.side_weights = checked_weights(side_weights, "side_weights")

    def forward(
        self,
        outputs: Float[Tensor, "B C _ _"] | tuple[Sides, Sides],
        target: Integer[Tensor, "B 2 H W"] | Integer[Tensor, "B H W"],
    ) -> Scalar:
        """Return the loss of one batch.

        Raises:
            ValueError: If the target has no contour, a side no weight, or as the part does.
        """
        if isinstance(outputs, Tensor) and target.ndim == 4 and outputs.shape[1] == 2:
            outputs = ((outputs[:, :1],), (outputs[:, 1:],))
        if isinstance(outputs, Tensor):
            return self.part(outputs, target[:, 0] if target.ndim == 4 else target)
        if target.ndim != 4:
            raise ValueError(
                f"the target is {tuple(target.shape)}; two branches want (B, 2, H, W): the ids of "
                "the mask, then those of the contour (1 on the outline of an object)"
            )
        masks, contours = outputs
        return self._branch(masks, target[:, 0], self.mask_weight) + self._branch(
            contours, target[:, 1], self.contour_weight
        )

    def _branch(self, outputs: Sides, target: ClassIds, weight: float) -> Scalar:
        sides = self.side_weights or (1.0,) * (len(outputs) - 1)
        sides = sides if len(outputs) > 1 else ()
        return sum_of_outputs(self.part, outputs, target, weights=(weight, *sides))


def sum_of_outputs(
    part: nn.Module, outputs: Sides, target: ClassIds, *, weights: Sequence[float]
) -> Scalar:
    """Return the weighted sum of one loss over outputs, each enlarged to the target.

    Raises:
        ValueError: If there is not one weight for each output, or as the part does.
    """
    _check_count(outputs, len(weights), "weights")
    terms = [part(enlarge(output, target.shape[-2:]), target) for output in outputs]
    return torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum()


def weigh_automatically(losses: Float[Tensor, " L"], sigmas: Float[Tensor, " L"]) -> Scalar:
    """Return ``sum_i L_i / (2 sigma_i^2) + ln(1 + sigma_i^2)``.

    Args:
        losses: Of each level.
        sigmas: Learned; only their squares matter.
    """
    return (losses * weights_of(sigmas) + sigmas.square().log1p()).sum()


def weights_of(sigmas: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Return the weights that sigmas stand for, ``1 / (2 sigma^2)``, kept finite at 0."""
    return 1 / (2 * (sigmas.square() + 1e-6))


def bring_down(target: ClassIds, size: Sequence[int]) -> Integer[Tensor, "b _ _"]:
    """Return class ids at another size: of each new pixel's centre, the id that lies there."""
    if tuple(target.shape[-2:]) == tuple(size):
        return target
    # float32 holds every id exactly
    shrunk = functional.interpolate(target[:, None].float(), size=tuple(size), mode="nearest-exact")
    return shrunk[:, 0].to(target.dtype)


def enlarge(logits: Float[Tensor, "B C _ _"], size: Sequence[int]) -> Float[Tensor, "B C _ _"]:
    """Return logits at another size, bilinear, in full precision."""
    logits = full_precision(logits)
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _check_count(outputs: Sides, expected: int, what: str) -> None:
    if len(outputs) != expected:
        raise ValueError(
            f"the network gives {len(outputs)} outputs, the loss has {expected} {what}; build it "
            f"with {len(outputs)}"
        )
