"""Losses by name: one table, one function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from renal_utils.labels import IGNORE_ID
from renal_utils.losses.cross_entropy import Bce, CrossEntropy, Focal
from renal_utils.losses.lovasz import LovaszHinge, LovaszSoftmax
from renal_utils.losses.mixtures import BceDice, CrossEntropyDice, WeightedSum
from renal_utils.losses.outputs import DeepSupervision, MultiScaleDeepLoss, TwoBranch
from renal_utils.losses.overlap import Dice, GeneralisedDice, Tversky
from renal_utils.losses.pixels import check_share

Options = Mapping[str, Any]
Weights = Sequence[float | int]


def build_loss(name: str, **options: Any) -> nn.Module:
    """Return the loss called ``name``.

    Args:
        name: A key of ``LOSSES``.
        **options: What this loss takes, see its class or, where it has other losses as parts, the
            function of this module that makes it.

    Raises:
        ValueError: If the name or an option is unknown; the message lists the known ones.
    """
    if name not in LOSSES:
        raise ValueError(f"no loss {name!r}; known: {', '.join(LOSSES)}")
    known = inspect.signature(LOSSES[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        takes = ", ".join(f"{p.name}={p.default}" for p in known.values())
        raise ValueError(f"loss {name!r} has no option {', '.join(unknown)}; it takes: {takes}")
    return LOSSES[name](**options)


def make_sum(
    *,
    parts: Sequence[str] = ("bce", "dice"),
    weights: Weights | None = None,
    part_options: Sequence[Options] | None = None,
) -> WeightedSum:
    """Return a ``WeightedSum`` of losses by name.

    Args:
        parts: Names of losses.
        weights: One each; None weighs all by 1.
        part_options: Options of each; None leaves the defaults.

    Raises:
        ValueError: If names, weights and options differ in number, or one is unknown.
    """
    return WeightedSum(_build_all(parts, part_options), weights=weights)


def make_ce_generalised_dice(
    *,
    weight: float | int = 0.5,
    class_weights: Weights | None = None,
    smooth: float | int = 1e-6,
    ignore_index: int = IGNORE_ID,
) -> WeightedSum:
    """Return cross-entropy plus generalised Dice, for two or more classes of unequal frequency.

    Args:
        weight: Share of the cross-entropy, 0 to 1.
        class_weights: Of both terms, for instance of ``class_weights``. None leaves the
            cross-entropy unweighted, and generalised Dice takes its own from each batch.
        smooth: Of the Dice term.
        ignore_index: Id of the pixels that do not count.

    Raises:
        ValueError: If an option is out of its range.
    """
    check_share(weight)
    pixels = CrossEntropy(class_weights=class_weights, ignore_index=ignore_index)
    overlap = GeneralisedDice(class_weights=class_weights, smooth=smooth, ignore_index=ignore_index)
    return WeightedSum([pixels, overlap], weights=[weight, 1 - weight])


def make_asrmu(
    *,
    pixels: str = "focal",
    overlap: str = "generalised_dice",
    weight: float | int = 0.5,
    class_weights: Weights | None = None,
) -> WeightedSum:
    """Return our reading of the ASRMU-Net paper's "improved loss", for two or more classes.

    The paper says of it only that it lessens the effect of class imbalance; neither formula nor
    code is to be had. We read a pixel loss plus an overlap loss, each of a kind made for imbalance,
    and leave the choice open. No figure of the paper confirms it.

    Args:
        pixels: ``focal`` or ``cross_entropy``.
        overlap: ``generalised_dice``, ``dice`` or ``tversky``.
        weight: Share of the pixel loss, 0 to 1.
        class_weights: Of the pixel loss and of generalised Dice, where it is chosen.

    Raises:
        ValueError: If an option is unknown or out of its range.
    """
    for name, known in (
        (pixels, ("focal", "cross_entropy")),
        (overlap, ("generalised_dice", "dice", "tversky")),
    ):
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}")
    check_share(weight)
    weighted = {"class_weights": class_weights}
    terms = [
        build_loss(pixels, **weighted),
        build_loss(overlap, **(weighted if overlap == "generalised_dice" else {})),
    ]
    return WeightedSum(terms, weights=[weight, 1 - weight])


def make_deep_supervision(
    *, part: str = "bce", part_options: Options | None = None, weights: Weights | None = None
) -> DeepSupervision:
    """Return a ``DeepSupervision``; its defaults are U2-Net's loss.

    Args:
        part: Name of the loss of one output.
        part_options: Its options.
        weights: One an output, the main one first; None weighs all by 1.

    Raises:
        ValueError: If a name or an option is unknown.
    """
    return DeepSupervision(build_loss(part, **(part_options or {})), weights=weights)


def make_multi_scale(
    *,
    levels: int = 6,
    parts: str | Sequence[str] = "ce_dice",
    part_options: Sequence[Options] | None = None,
) -> MultiScaleDeepLoss:
    """Return a ``MultiScaleDeepLoss``.

    Args:
        levels: Outputs of the network; LSU-Net's has six.
        parts: Name of the loss of every level, or one name a level, the main output's first.
        part_options: Options of each level; None leaves the defaults.

    Raises:
        ValueError: If names, options and levels differ in number, or one is unknown.
    """
    names = [parts] * levels if isinstance(parts, str) else list(parts)
    if len(names) != levels:
        raise ValueError(f"{len(names)} parts for {levels} levels; give one a level, or one name")
    return MultiScaleDeepLoss(_build_all(names, part_options))


def make_two_branch(
    *,
    part: str = "sum",
    part_options: Options | None = None,
    mask_weight: float | int = 1.0,
    contour_weight: float | int = 1.0,
    side_weights: Weights | None = None,
) -> TwoBranch:
    """Return a ``TwoBranch``; its defaults are HARU-Net's loss of one class (eq. 3 to 6).

    That is mean binary cross-entropy (the paper's sum would depend on the patch size, and the
    authors' code takes the mean too) plus Dice with squares, as a quotient of sums.

    Args:
        part: Name of the loss of one output.
        part_options: Its options. None with the default part is HARU-Net's.
        mask_weight: Of the fused mask.
        contour_weight: Of the fused contour.
        side_weights: One a side; None weighs all by 1.

    Raises:
        ValueError: If a name or an option is unknown.
    """
    if part == "sum" and part_options is None:
        part_options = {"parts": ("bce", "dice"), "part_options": ({}, {"squared": True})}
    return TwoBranch(
        build_loss(part, **(part_options or {})),
        mask_weight=mask_weight,
        contour_weight=contour_weight,
        side_weights=side_weights,
    )


LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "bce_dice": BceDice,
    "ce_dice": CrossEntropyDice,
    "bce": Bce,
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "dice": Dice,
    "tversky": Tversky,
    "focal_tversky": partial(Tversky, exponent=0.75),
    "generalised_dice": GeneralisedDice,
    "ce_generalised_dice": make_ce_generalised_dice,
    "lovasz_hinge": LovaszHinge,
    "symmetric_lovasz": partial(LovaszHinge, activation="elu", symmetric=True),
    "lovasz_softmax": LovaszSoftmax,
    "asrmu": make_asrmu,
    "sum": make_sum,
    "deep_supervision": make_deep_supervision,
    "multi_scale": make_multi_scale,
    "two_branch": make_two_branch,
}


def _build_all(names: Sequence[str], options: Sequence[Options] | None) -> list[nn.Module]:
    options = [{}] * len(names) if options is None else options
    if len(options) != len(names):
        raise ValueError(f"{len(options)} part_options for {len(names)} parts; give one each")
    return [build_loss(name, **given) for name, given in zip(names, options, strict=True)]
