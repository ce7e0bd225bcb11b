"""Trials: several networks, or several losses, trained alike on the same splits and compared.

Lesson 04 shows every step of a training by itself. Later lessons train many networks, so that here
the steps are one call: what all of them get alike stands in a ``Budget``, the data in ``Splits``,
and what one of them did in a ``Trial``. Thresholds are chosen on validation, scores are the test's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from torch.utils.data import DataLoader

from renal_utils.checkpoints import CheckpointInfo, load_checkpoint
from renal_utils.covering import cover_images
from renal_utils.labels import LabelSet, get_label_set
from renal_utils.loading import PatchDataset, make_loader
from renal_utils.models.blocks import count_parameters
from renal_utils.models.build import build_model
from renal_utils.models.freezing import copy_encoder, freeze_encoder, unfreeze_encoder
from renal_utils.prediction import Predictor, make_predictor
from renal_utils.runtime import resolve_path, seed_everything
from renal_utils.training import fit
from renal_utils.training_plan import History, TrainingPlan
from renal_utils.validation import FlipWatch, evaluate


@dataclass(frozen=True)
class Budget:
    """What every trial of a comparison gets alike.

    Attributes:
        steps: Batches in all; rounded down to a multiple of ``validations``.
        validations: How often validation is scored, at equal distances, the last time at the end.
        batch_size: Patches a step.
        learning_rate: Its peak.
        weight_decay: Of the network's parameters.
        optimizer: One of ``optimisation.OPTIMIZERS``.
        schedule: One of ``optimisation.SCHEDULES``.
        augmentation: One of ``augment.AUGMENTATIONS``.
        jitter_px: By how much crops move at random, pixels at the working scale.
        seed: Of weights, order and augmentation.
        encoder_from: Checkpoint whose encoder the network begins with; None for a new one.
        frozen_steps: So many of the steps come first, with the encoder frozen; see ``freezing``.
        precision: As in ``runtime.pick_precision``.
        watch_flips: Add ``val_flips`` to the history, see ``validation.FlipWatch``.

    Raises:
        ValueError: If there are fewer steps than validations, or none, with and without the frozen.
    """

    steps: int = 100
    validations: int = 2
    batch_size: int = 8
    learning_rate: float | int = 3e-3
    weight_decay: float | int = 1e-2
    optimizer: str = "adamw"
    schedule: str = "one_cycle"
    augmentation: str = "flips"
    jitter_px: int = 32
    seed: int = 0
    encoder_from: str | Path | None = None
    frozen_steps: int = 0
    precision: str = "auto"
    watch_flips: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.validations <= self.steps - self.frozen_steps or self.frozen_steps < 0:
            raise ValueError(
                f"steps {self.steps}, without the {self.frozen_steps} frozen ones, must be at "
                f"least validations {self.validations}, and that at least 1"
            )

    def plan(self, *, binary: bool) -> TrainingPlan:
        """Return the plan of a training; ``binary`` judges epochs at their best threshold."""
        return TrainingPlan(
            epochs=self.validations,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,
            schedule=self.schedule,
            monitor="val_best_dice" if binary else "val_dice",
            seed=self.seed,
            precision=self.precision,
        )


@dataclass(frozen=True)
class Splits:
    """Patches to train on, and squares that cover the images of validation and test once.

    Attributes:
        train: Manifest of the training patches.
        val: Manifest of the validation squares.
        test: Manifest of the test squares.
    """

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame

    @property
    def label_set(self) -> LabelSet:
        return get_label_set(self.train["label_set"].iloc[0])

    @property
    def downsample(self) -> float:
        """Full-resolution pixels per pixel that a network sees."""
        return float(self.train["downsample"].iloc[0])

    @property
    def mpp(self) -> float | None:
        """Microns per pixel that a network sees; None where a slide does not state its scale."""
        seen = float(self.train["mpp"].iloc[0]) * self.downsample
        return None if np.isnan(seen) else seen

    def loader(self, split: str, *, batch_size: int = 1) -> DataLoader:
        """Return the squares of ``val`` or ``test``, or the training patches as they are."""
        return make_loader(PatchDataset(getattr(self, split)), batch_size=batch_size, shuffle=False)


def make_splits(manifest: pd.DataFrame, *, eval_patch_px: int = 512) -> Splits:
    """Take a manifest apart by its column ``split``.

    Args:
        manifest: Patches with the splits ``train``, ``val`` and ``test``.
        eval_patch_px: Side of the squares of validation and test, at the working scale: a multiple
            of what the networks halve (32 suits all in ``MODELS``).

    Raises:
        ValueError: If a split is empty.
    """
    rows = {name: manifest[manifest["split"] == name] for name in ("train", "val", "test")}
    if empty := [name for name, some in rows.items() if some.empty]:
        raise ValueError(f"no patches of split {', '.join(empty)}; see splits.split_by_donor")
    squares = {n: cover_images(rows[n], patch_px=eval_patch_px) for n in ("val", "test")}
    return Splits(rows["train"], **squares)


@dataclass(frozen=True)
class Trial:
    """What one network did within the budget.

    Attributes:
        name: As it was called in the comparison.
        path: Checkpoint of its best epoch.
        parameters: How many it trains.
        history: One row a validation, see ``training_plan.History``.
        threshold: Chosen on validation; None for several classes.
        val_dice: Mean Dice of the foreground on validation, at that threshold.
        scores: Of the test, one row a class and the row ``mean``; see ``validation.evaluate``.
        seconds: Of training alone, without validation.
    """

    name: str
    path: Path
    parameters: int
    history: pd.DataFrame
    threshold: float | None
    val_dice: float
    scores: pd.DataFrame
    seconds: float

    def row(self) -> dict[str, Any]:
        """Return what a table of trials shows of it."""
        mean = self.scores.loc["mean", ["dice", "precision", "recall"]].astype(float)
        row = {"name": self.name, "parameters": self.parameters, "val_dice": self.val_dice}
        row |= {f"test_{score}": value for score, value in mean.items()}
        return row | {"threshold": self.threshold, "seconds": self.seconds}

    def predictor(self) -> Predictor:
        """Return the trained network as a function of images to probabilities."""
        return make_predictor(load_checkpoint(self.path)[0])


def run_trial(
    model_name: str,
    splits: Splits,
    *,
    loss: nn.Module,
    budget: Budget,
    folder: str | Path,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Trial:
    """Train one network within the budget, choose its threshold on validation, score the test.

    Args:
        model_name: A key of ``MODELS``.
        splits: The data.
        loss: What is minimised. A loss that has parameters of its own must be a new one each time.
        budget: What every trial gets alike.
        folder: Parent of the trial's own folder, which is named like the trial.
        options: Of ``build_model``.
        name: Of the trial; None is ``model_name``.

    Raises:
        ValueError: If a name or an option is unknown.
    """
    label_set, options = splits.label_set, dict(options or {})
    seed_everything(budget.seed)
    model = build_model(model_name, num_classes=label_set.num_outputs, **options)
    info = CheckpointInfo(
        model_name,
        options,
        num_classes=label_set.num_outputs,
        label_set=label_set.name,
        downsample=splits.downsample,
        mpp=splits.mpp,
        patch_px=int(splits.train["patch_px"].iloc[0]),
    )
    if budget.encoder_from is not None:
        copy_encoder(load_checkpoint(resolve_path(budget.encoder_from))[0], model)
    folder, seconds = resolve_path(folder) / (name or model_name), 0.0
    if budget.frozen_steps:
        freeze_encoder(model)
        first = replace(budget, steps=budget.frozen_steps, validations=1, frozen_steps=0)
        history = _fit(model, loss, splits, first, info=info, folder=folder / "frozen")
        seconds = float(history.frame()["seconds"].sum())
        unfreeze_encoder(model)
    history = _fit(model, loss, splits, budget, info=info, folder=folder)
    best, info = load_checkpoint(history.best_path)
    rows = history.frame()
    scores = evaluate(best, splits.loader("test"), label_set=label_set, threshold=info.threshold)
    return Trial(
        name or model_name,
        history.best_path,
        count_parameters(model),
        rows,
        info.threshold,
        float(rows.loc[history.best_epoch, _judged(info)]),
        scores,
        seconds + float(rows["seconds"].sum()),
    )


def _fit(
    model: nn.Module,
    loss: nn.Module,
    splits: Splits,
    budget: Budget,
    *,
    info: CheckpointInfo,
    folder: Path,
) -> History:
    return fit(
        model,
        loss,
        _train_loader(splits, budget),
        splits.loader("val"),
        plan=budget.plan(binary=splits.label_set.num_outputs == 1),
        label_set=splits.label_set,
        folder=folder,
        info=info,
        progress=False,
        watch=FlipWatch(splits.loader("val")) if budget.watch_flips else None,
    )


def table_of(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return one row a trial, indexed by name: parameters, Dice, threshold, seconds."""
    return pd.DataFrame([trial.row() for trial in trials]).set_index("name")


def _judged(info: CheckpointInfo) -> str:
    return "val_dice" if info.threshold is None else "val_best_dice"


def _train_loader(splits: Splits, budget: Budget) -> DataLoader:
    data = PatchDataset(
        splits.train,
        augmentation=budget.augmentation,
        seed=budget.seed,
        jitter_px=budget.jitter_px,
        cache="memory",
    )
    return make_loader(
        data,
        batch_size=budget.batch_size,
        shuffle=True,
        seed=budget.seed,
        steps_per_epoch=(budget.steps - budget.frozen_steps) // budget.validations,
    )
