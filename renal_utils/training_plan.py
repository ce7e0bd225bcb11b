"""The plan of a training and what it did: settings in, history out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from renal_utils.optimisation import OPTIMIZERS, SCHEDULES
from renal_utils.runtime import PRECISIONS
from renal_utils.tables import read_results
from renal_utils.validation import MONITORS

HISTORY_NAME = "history.csv"


@dataclass(frozen=True)
class TrainingPlan:
    """How to train: everything but the network, the loss and the data.

    Attributes:
        epochs: Passes over the training loader.
        learning_rate: Its peak.
        weight_decay: Of the network's parameters.
        optimizer: One of ``optimisation.OPTIMIZERS``.
        schedule: One of ``optimisation.SCHEDULES``; a function of the step.
        patience: Validations without a better score after which training stops; None never stops.
        precision: As in ``runtime.pick_precision``.
        clip_norm: Gradients of a larger joint norm are scaled down to it; None leaves them.
        monitor: Score of the history that decides which epoch is best, one of
            ``validation.MONITORS``.
        max_minutes: Training stops after the epoch in which this time, validation included and
            counted over resumed runs, is used up; None never stops. Schedules do not know of it.
        validate_every: Epochs from one validation to the next; the last epoch always has one.
        seed: Of the generators, anew in each epoch.
        device: As in ``runtime.pick_device``.

    Raises:
        ValueError: If a name is unknown or a number out of its range.
    """

    epochs: int = 10
    learning_rate: float | int = 1e-3
    weight_decay: float | int = 1e-4
    optimizer: str = "adamw"
    schedule: str = "one_cycle"
    patience: int | None = None
    precision: str = "auto"
    clip_norm: float | int | None = None
    monitor: str = "val_dice"
    max_minutes: float | int | None = None
    validate_every: int = 1
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        known = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS}
        for name, choices in {**known, "monitor": MONITORS}.items():
            if getattr(self, name) not in choices:
                given = getattr(self, name)
                raise ValueError(f"{name} {given!r} is not known; choose {', '.join(choices)}")
        positive = {n: getattr(self, n) for n in ("epochs", "learning_rate", "validate_every")}
        optional = {n: getattr(self, n) for n in ("patience", "clip_norm", "max_minutes")}
        positive |= {n: v for n, v in optional.items() if v is not None}
        for name, value in positive.items():
            if not value > 0 or math.isinf(value):
                raise ValueError(f"{name} must be positive, given {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, given {self.weight_decay}")


@dataclass(frozen=True)
class History:
    """What a training did: one row an epoch, and where its checkpoints lie.

    Attributes:
        folder: The training's folder.
        rows: One mapping an epoch: ``epoch`` (from 1), ``train_loss``, ``learning_rate`` (of the
            last step), ``gradient_norm`` (mean before clipping), ``seconds``, ``loss_<name>`` of
            what the loss has learned, and the scores of ``validation.validate`` in epochs that had
            one.
        best_epoch: Epoch whose weights are in ``best_path``.
        stopped_early: Whether patience or the time ran out.
    """

    folder: Path
    rows: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    best_epoch: int = 0
    stopped_early: bool = False

    @property
    def best_path(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def last_path(self) -> Path:
        return self.folder / "last.safetensors"

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table indexed by epoch; scores not computed are NaN."""
        return pd.DataFrame(list(self.rows)).set_index("epoch")


def read_history(folder: str | Path) -> pd.DataFrame:
    """Return the history of a training, finished or not, indexed by epoch.

    Raises:
        FileNotFoundError: If no epoch was finished there.
        ValueError: If the file is no such table; the message names it.
    """
    path = Path(folder) / HISTORY_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: no training finished an epoch in this folder")
    return read_results(path, ["epoch"]).set_index("epoch")
