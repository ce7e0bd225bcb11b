"""Scoring a network on a set of patches: after each epoch of a training, and on held-out data.

Counts are gathered over the whole set and divided once; nothing is averaged over patches, so a
patch without a glomerulus cannot distort a score.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from renal_utils.labels import LabelSet
from renal_utils.metrics.flips import FlipCounter
from renal_utils.metrics.pixel import (
    PixelConfusion,
    ThresholdCounts,
    best_threshold,
    class_ids,
    probabilities_of,
    scores,
)
from renal_utils.runtime import pick_device, pick_precision

# Scores that can decide which epoch is best, and whether the lower or the higher is better.
MONITORS: Mapping[str, str] = {
    "val_loss": "min",
    "val_dice": "max",
    "val_iou": "max",
    "val_precision": "max",
    "val_recall": "max",
    "val_best_dice": "max",
}
Images = Float[Tensor, "B C H W"]


def forward_logits(model: nn.Module, images: Images, precision: str) -> Any:
    """Return what the network gives for images on its own device, without Fabric around it.

    Args:
        model: A network.
        images: On the network's device.
        precision: ``bf16-mixed`` or ``32-true``.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        return model(images)


def logits_of(output: Any) -> Float[Tensor, "B C H W"]:
    """Return the logits that count, in float32, where a network gives several (deep supervision).

    Args:
        output: The logits, or a result that names them ``logits``.
    """
    return (output if isinstance(output, Tensor) else output.logits).float()


@torch.no_grad()
def validate(
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    *,
    label_set: LabelSet,
    loss: nn.Module,
    precision: str,
) -> dict[str, float]:
    """Score a network on the validation set; counts of all processes are added up.

    Args:
        model: On the device it shall run on. It is left in evaluation mode.
        loader: Batches as ``training.fit`` takes them.
        label_set: Classes of the targets.
        loss: The training's loss.
        precision: ``bf16-mixed`` or ``32-true``.

    Returns:
        ``val_loss``; ``val_dice``, ``val_iou``, ``val_precision`` and ``val_recall``, means of the
        foreground classes (one class: at the threshold 0.5). With one class also ``val_threshold``,
        the threshold of the highest Dice on this set, and ``val_best_dice``, that Dice. With more,
        ``val_dice_<class>`` of each.

    Raises:
        ValueError: If the network gives NaN.
    """
    counts = _make_counts(label_set, _device_of(model))
    # NaN stays NaN. (nan_strategy="disable" of torchmetrics 1.9 would drop the weights.)
    counts["loss"] = MeanMetric(nan_strategy=float("nan")).to(_device_of(model))
    model.eval()
    for images, target in _on_device(loader, _device_of(model)):
        output = forward_logits(model, images, precision)
        _count(counts, output, target, threshold=0.5)
        counts["loss"].update(loss(output, target), weight=len(images))
    return {"val_loss": float(counts["loss"].compute()), **_summarise(counts, label_set)}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    *,
    label_set: LabelSet,
    threshold: float | None = None,
    precision: str = "auto",
    device: str = "auto",
) -> pd.DataFrame:
    """Score a trained network on data that took no part in its training; choose nothing there.

    Args:
        model: Moved to the device, and left there as it was otherwise.
        loader: Batches as ``training.fit`` takes them.
        label_set: Classes of the targets.
        threshold: Of a network with one output, as chosen on validation
            (``CheckpointInfo.threshold``); None is 0.5.
        precision: As in ``runtime.pick_precision``.
        device: As in ``runtime.pick_device``.

    Returns:
        One row a class and the row ``mean``, of the foreground classes; columns ``dice``, ``iou``,
        ``precision``, ``recall``, ``f1``, ``accuracy``. NaN where a class is neither there nor
        predicted.

    Raises:
        ValueError: If the network gives NaN.
    """
    chosen = pick_device(device)
    was_training = model.training
    model.to(chosen).eval()
    counts = _make_counts(label_set, chosen)
    for images, target in _on_device(loader, chosen):
        output = forward_logits(model, images, pick_precision(precision, chosen))
        _count(counts, output, target, threshold=0.5 if threshold is None else threshold)
    model.train(was_training)
    return _table(_matrix(counts), label_set)


class FlipWatch:
    """Watches a training for labels that flip from one validation to the next.

    Given to ``training.fit`` it adds ``val_flips`` to the history from the second validation on:
    the share of the validation's pixels whose label is another than at the last one. It goes over
    the set once more, and keeps a byte a pixel.

    Args:
        loader: The validation set, in the same order each time.
        threshold: Of a network with one output.
        precision: ``bf16-mixed`` or ``32-true``.
    """

    def __init__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        threshold: float = 0.5,
        precision: str = "32-true",
    ) -> None:
        self._loader, self._threshold, self._precision = loader, threshold, precision
        self._counter = FlipCounter()

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return ``{"val_flips": share}``, the first time nothing."""
        for images, target in _on_device(self._loader, _device_of(model)):
            output = forward_logits(model, images, self._precision)
            ids = class_ids(probabilities_of(logits_of(output)), threshold=self._threshold)
            self._counter.update(ids, target[:, 0] if target.ndim == 4 else target)
        share = self._counter.finish()
        return {} if share is None else {"val_flips": share}


def _make_counts(label_set: LabelSet, device: torch.device) -> dict[str, Metric]:
    counts: dict[str, Metric] = {"confusion": PixelConfusion(len(label_set.classes)).to(device)}
    if label_set.num_outputs == 1:
        counts["thresholds"] = ThresholdCounts().to(device)
    return counts


def _count(counts: Mapping[str, Metric], output: Any, target: Tensor, *, threshold: float) -> None:
    logits = logits_of(output)
    if target.ndim == 4:  # mask and contour: the mask is scored
        target = target[:, 0]
        logits = logits[:, :1] if "thresholds" in counts else logits
    probabilities = probabilities_of(logits)
    if probabilities.isnan().any():
        raise ValueError(
            "the network gives NaN for these patches: its weights have diverged, or the precision "
            "is too low for it; use an earlier checkpoint, or precision='32-true'"
        )
    counts["confusion"].update(class_ids(probabilities, threshold=threshold), target)
    if "thresholds" in counts:
        counts["thresholds"].update(probabilities[:, 0], target)


def _summarise(counts: Mapping[str, Metric], label_set: LabelSet) -> dict[str, float]:
    found = scores(_matrix(counts), has_background=label_set.has_background)
    foreground = [c.id for c in label_set.foreground]
    by_class = found.by_class()
    row = {
        f"val_{name}": _mean(by_class[name][foreground])
        for name in ("dice", "iou", "precision", "recall")
    }
    if "thresholds" in counts:
        threshold, dice = best_threshold(counts["thresholds"].compute())
        return {**row, "val_best_dice": dice, "val_threshold": threshold}
    return row | {f"val_dice_{c.name}": float(found.dice[c.id]) for c in label_set.foreground}


def _table(matrix: np.ndarray, label_set: LabelSet) -> pd.DataFrame:
    found = scores(matrix, has_background=label_set.has_background)
    table = pd.DataFrame(dict(found.by_class()), index=list(label_set.names))
    table.loc["mean"] = table.loc[[c.name for c in label_set.foreground]].mean()
    table.index.name = "class"
    return table


def _matrix(counts: Mapping[str, Metric]) -> np.ndarray:
    return counts["confusion"].compute().cpu().numpy()


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _on_device(loader: Iterable[Mapping[str, Any]], device: torch.device) -> Iterable[Any]:
    for batch in loader:
        yield tuple(batch[key].to(device, non_blocking=True) for key in ("image", "target"))
