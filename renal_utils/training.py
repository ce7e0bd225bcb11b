"""Training: one explicit loop over epochs and steps, on Lightning Fabric.

Fabric moves tensors, sets the precision and averages gradients between processes; everything else
is written out here, in the order in which it happens. After each epoch the folder holds

- ``best.safetensors`` and ``.json``: the weights of the best validation so far, with the threshold
  chosen on that validation;
- ``last.safetensors`` and ``.json``: the weights of the last finished epoch;
- ``resume.safetensors``: what is needed to go on after a kill (``run_state``);
- ``history.csv``: one row an epoch.

Each epoch seeds the global generators anew, from the plan's seed and its own number. So a resumed
training, which starts again after the last finished epoch, draws what the uninterrupted one drew.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from renal_utils.checkpoints import (
    CheckpointInfo,
    check_rebuildable,
    explain_failed_write,
    json_path,
    save_checkpoint,
)
from renal_utils.distributed import deal_batches, share_buffers
from renal_utils.labels import LabelSet
from renal_utils.progress import progress_bar
from renal_utils.result_folder import hold_folder
from renal_utils.run_state import (
    RESUME_NAME,
    RunState,
    describe_data,
    describe_loss,
    load_run,
    save_run,
)
from renal_utils.runtime import atomic_path, provenance
from renal_utils.training_plan import HISTORY_NAME, History, TrainingPlan, read_history
from renal_utils.training_step import (
    Loader,
    NonFiniteLossError,
    Trainee,
    begin_epoch,
    prepare,
    train_epoch,
)
from renal_utils.validation import MONITORS, evaluate, validate

__all__ = ["History", "NonFiniteLossError", "TrainingPlan", "evaluate", "fit", "read_history"]


def fit(
    model: nn.Module,
    loss: nn.Module,
    train_loader: Loader,
    val_loader: Loader,
    *,
    plan: TrainingPlan,
    label_set: LabelSet,
    folder: str | Path,
    info: CheckpointInfo,
    resume: bool = False,
    progress: bool = True,
    watch: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> History:
    """Train ``model`` in place; afterwards it holds the weights of the last epoch.

    The best ones are read back by ``load_checkpoint(history.best_path)``. Batches are mappings with
    ``image`` (float, B C H W), ``target`` (int64 class ids, B H W, 255 is ignored) and, for error
    messages, ``index`` (B). Loaders need a length; ``set_epoch`` of their data set and sampler is
    called where there is one.

    Parameters of ``loss``, such as the learned weights of ``MultiScaleDeepLoss``, are trained too:
    by the same optimiser and learning rate, without weight decay. They are part of the training's
    state, so a resumed training has them back, and of its history, column ``loss_<name>``; the
    network's checkpoints are without them.

    While it trains a network may give several outputs, as with ``deep_supervision=True``. The loss
    gets them as they come, in float32; validation gets what the network gives in evaluation mode,
    which must be one tensor. Of a target of several layers (mask, contour) the first is scored.

    Under ``torchrun`` each rank works on its part of each batch: a loss that pools pixels of the
    batch, such as Dice, pools those of its rank only, and BatchNorm normalises by them.

    Args:
        model: Returns logits, or a result that has ``logits``; in training mode, what the loss
            takes.
        loss: ``loss(output, target)`` gives a scalar.
        train_loader: Gives the batches of an epoch.
        val_loader: Gives the validation set, in the same order each time.
        plan: How to train.
        label_set: Classes of the targets.
        folder: Where checkpoints, state and history go; what an earlier training left there is
            replaced, unless resumed.
        info: What the checkpoints say of the network; scores, threshold and provenance are added.
        resume: Go on where a training of the same plan, network and data in ``folder`` stopped,
            from its last finished epoch; start it if there is none.
        progress: Show one bar an epoch.
        watch: Called after each validation with the network in evaluation mode; what it returns
            joins the history, say ``validation.FlipWatch``. Under ``torchrun`` on rank 0 only.

    Raises:
        ValueError: If arguments contradict each other, or ``folder`` holds another training's
            state and ``resume`` is set.
        NonFiniteLossError: If the loss or a gradient is NaN or infinite.
        BlockingIOError: If another process is training in ``folder``.
        OSError: If the disk is full.
    """
    folder = Path(folder)
    loaders = {"train_loader": train_loader, "val_loader": val_loader}
    _check_arguments(model, loaders, label_set, info)
    trainee = prepare(model, loss, plan)
    identity = _identity(trainee, info, train_loader, val_loader)
    train_part = deal_batches(train_loader, trainee.fabric, even=True)
    val_part = deal_batches(val_loader, trainee.fabric, even=False)
    rank_zero = trainee.fabric.is_global_zero
    with hold_folder(folder) if rank_zero else nullcontext():
        state = _start(trainee, folder, identity, resume=resume)
        while state.epochs_done < plan.epochs and not _stops(state, plan):
            epoch = state.epochs_done + 1
            begin_epoch(plan.seed, epoch, train_loader)
            with _bar(f"epoch {epoch}/{plan.epochs}", train_part, progress and rank_zero) as bar:
                row = train_epoch(trainee, train_part, epoch, bar)
                if epoch % plan.validate_every == 0 or epoch == plan.epochs:
                    row |= _validate(trainee, val_part, label_set)
                    row |= watch(trainee.bare["model"]) if watch and rank_zero else {}
                    bar.set_postfix(loss=row["train_loss"], **{plan.monitor: row[plan.monitor]})
            state = _judge(state, row, plan)
            if rank_zero:
                _write(folder, trainee, state, info)
            trainee.fabric.barrier()
    return History(folder, state.rows, state.best_epoch, _stops(state, plan))


def _validate(trainee: Trainee, loader: Loader, label_set: LabelSet) -> dict[str, float]:
    """Score the bare network; wrapped, ranks would wait for each other at every batch."""
    start = time.perf_counter()
    for module in trainee.bare.values():
        share_buffers(module, trainee.fabric)
    row = validate(
        trainee.bare["model"],
        loader,
        label_set=label_set,
        loss=trainee.bare["loss"],
        precision=trainee.precision,
    )
    if math.isnan(row[trainee.plan.monitor]):
        raise ValueError(
            f"{trainee.plan.monitor} is not defined: the validation set holds none of the classes "
            f"of {label_set.name!r}; choose validation patches that do, or monitor='val_loss'"
        )
    return row | {"val_seconds": round(time.perf_counter() - start, 3)}


def _judge(state: RunState, row: dict[str, Any], plan: TrainingPlan) -> RunState:
    """Return the state after an epoch: whether it was the best, and for how long none was."""
    state = replace(state, rows=(*state.rows, row))
    if plan.monitor not in row:
        return state
    score, best = row[plan.monitor], state.best_score
    lower_wins = MONITORS[plan.monitor] == "min"
    if best is None or (score < best if lower_wins else score > best):
        return replace(state, best_epoch=row["epoch"], best_score=score, waited=0)
    return replace(state, waited=state.waited + 1)


def _stops(state: RunState, plan: TrainingPlan) -> bool:
    """Say whether patience or the time is out."""
    used = sum(row["seconds"] + row.get("val_seconds", 0.0) for row in state.rows)
    impatient = plan.patience is not None and state.waited >= plan.patience
    return impatient or (plan.max_minutes is not None and used >= 60 * plan.max_minutes)


def _write(folder: Path, trainee: Trainee, state: RunState, info: CheckpointInfo) -> None:
    """Write what the epoch left. The state comes last: with it the epoch counts as finished."""
    row, model = state.rows[-1], trainee.bare["model"]
    known = provenance(plan=asdict(trainee.plan), precision=trainee.precision, epoch=row["epoch"])
    passing = ("val_seconds", "val_threshold")  # a clock, and what has a place of its own
    scores = {
        k: v
        for k, v in row.items()
        if k.startswith("val_") and k not in passing and math.isfinite(v)
    }
    named = replace(
        info,
        threshold=row.get("val_threshold"),
        metrics=scores,
        provenance={**info.provenance, **known},
    )
    if state.best_epoch == row["epoch"]:
        save_checkpoint(folder / "best.safetensors", model, named)
    save_checkpoint(folder / "last.safetensors", model, named)
    with explain_failed_write(folder / HISTORY_NAME), atomic_path(folder / HISTORY_NAME) as path:
        pd.DataFrame(list(state.rows)).to_csv(path, index=False)
    save_run(folder, state, trainee.bare, trainee.optimizer)


def _start(
    trainee: Trainee, folder: Path, identity: Mapping[str, Any], *, resume: bool
) -> RunState:
    """Return the state to begin with, and clear away what an earlier training left."""
    if resume and (folder / RESUME_NAME).is_file():
        return load_run(folder, identity, trainee.bare, trainee.optimizer)
    if trainee.fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESUME_NAME).unlink(missing_ok=True)
        (folder / HISTORY_NAME).unlink(missing_ok=True)
        for name in ("best.safetensors", "last.safetensors"):
            (folder / name).unlink(missing_ok=True)
            json_path(folder / name).unlink(missing_ok=True)
    trainee.fabric.barrier()
    return RunState(identity)


def _identity(
    trainee: Trainee, info: CheckpointInfo, train_loader: Any, val_loader: Any
) -> dict[str, Any]:
    """Return what makes this training this one and no other, as plain values."""
    kept = ("model", "options", "in_channels", "num_classes", "label_set", "downsample", "patch_px")
    passing = ("device", "precision", "max_minutes")
    return {
        "plan": {k: v for k, v in asdict(trainee.plan).items() if k not in passing},
        "precision": trainee.precision,
        "network": {name: getattr(info, name) for name in kept},
        "loss": describe_loss(trainee.bare["loss"]),
        "train_data": describe_data(train_loader),
        "val_data": describe_data(val_loader),
    }


def _check_arguments(
    model: nn.Module, loaders: Mapping[str, Any], label_set: LabelSet, info: CheckpointInfo
) -> None:
    if (info.label_set, info.num_classes) != (label_set.name, label_set.num_outputs):
        raise ValueError(
            f"info is for label set {info.label_set!r} with {info.num_classes} outputs, given "
            f"{label_set.name!r} with {label_set.num_outputs}; describe the network as it is"
        )
    for name, loader in loaders.items():
        if len(loader) == 0:
            raise ValueError(f"{name} gives no batches; give it patches, or a smaller batch_size")
    check_rebuildable(model, info)


def _bar(title: str, loader: Any, shown: bool) -> Any:
    return progress_bar(desc=title, total=len(loader), unit="step", disable=not shown)
