"""One epoch of training, step by step: forward, loss, backward, clip, check, change the weights."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm as Bar

from renal_utils.distributed import make_fabric
from renal_utils.optimisation import build_optimizer, clip_gradients, learning_rate_at
from renal_utils.runtime import pick_precision, seed_everything
from renal_utils.training_plan import TrainingPlan

Loader = Iterable[Mapping[str, Any]]


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient became NaN or infinite; the weights on disk are the last good ones."""


@dataclass
class Trainee:
    """What a step works on: network, loss and optimiser, on their device and under Fabric.

    Attributes:
        fabric: Moves tensors, sets the precision, speaks with the other ranks.
        plan: How to train.
        bare: ``model`` and ``loss`` as they were given.
        model: The network as Fabric wraps it.
        loss: The loss, wrapped too where it has parameters to learn.
        optimizer: Over the trained parameters of network, then loss.
        precision: ``bf16-mixed`` or ``32-true``.
    """

    fabric: Fabric
    plan: TrainingPlan
    bare: Mapping[str, nn.Module]
    model: nn.Module
    loss: nn.Module
    optimizer: Optimizer
    precision: str

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def prepare(model: nn.Module, loss: nn.Module, plan: TrainingPlan) -> Trainee:
    """Bring network, loss and optimiser to the device and under Fabric."""
    fabric = make_fabric(plan.device, plan.precision)
    model.to(fabric.device).to(memory_format=torch.channels_last)
    loss.to(fabric.device)
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if learned := [p for p in loss.parameters() if p.requires_grad]:
        groups.append({"params": learned, "weight_decay": 0.0})
    optimizer = build_optimizer(
        plan.optimizer, groups, learning_rate=plan.learning_rate, weight_decay=plan.weight_decay
    )
    return Trainee(
        fabric=fabric,
        plan=plan,
        bare={"model": model, "loss": loss},
        model=fabric.setup_module(model),
        loss=fabric.setup_module(loss) if learned else loss,
        optimizer=optimizer,
        precision=pick_precision(plan.precision, fabric.device),
    )


def begin_epoch(seed: int, epoch: int, loader: Any) -> None:
    """Seed every generator for this epoch, and tell the loader its number.

    All ranks get the same seed: a loader that shuffles by the global generator must shuffle alike.
    """
    epoch_seed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    seed_everything(epoch_seed)
    if getattr(loader, "generator", None) is not None:
        loader.generator.manual_seed(epoch_seed)
    for part in ("dataset", "sampler", "batch_sampler"):
        if hasattr(getattr(loader, part, None), "set_epoch"):
            getattr(loader, part).set_epoch(epoch)


def train_epoch(trainee: Trainee, loader: Any, epoch: int, bar: Bar) -> dict[str, Any]:
    """Take one step a batch and return the epoch's row of the history."""
    start, losses, norms, plan = time.perf_counter(), [], [], trainee.plan
    trainee.model.train()
    for step, batch in enumerate(loader):
        rate = _set_learning_rate(
            trainee, (epoch - 1) * len(loader) + step, plan.epochs * len(loader)
        )
        value, norm = take_step(trainee, batch, where=f"epoch {epoch}, step {step + 1}", of=loader)
        losses.append(value)
        norms.append(norm)
        bar.update()
        bar.set_postfix(loss=value, refresh=False)
    return {
        "epoch": epoch,
        "train_loss": float(np.mean(losses)),
        "learning_rate": rate,
        "gradient_norm": float(np.mean(norms)),
        "seconds": round(time.perf_counter() - start, 3),
        **learned_values(trainee.bare["loss"]),
    }


def learned_values(loss: nn.Module) -> dict[str, float]:
    """Return what a loss has learned, by name: ``loss_<parameter>``, with ``_0``, ``_1``, ..."""
    values: dict[str, float] = {}
    for name, parameter in loss.named_parameters():
        numbers = parameter.detach().flatten().tolist()
        names = (
            [f"loss_{name}_{i}" for i in range(len(numbers))]
            if parameter.ndim
            else [f"loss_{name}"]
        )
        values |= dict(zip(names, numbers, strict=True))
    return values


def take_step(
    trainee: Trainee, batch: Mapping[str, Any], *, where: str, of: Any
) -> tuple[float, float]:
    """Change the weights once and return the loss and the gradients' norm, of all ranks together.

    Raises:
        NonFiniteLossError: Before the weights are touched.
    """
    fabric = trainee.fabric
    images, target = fabric.to_device((batch["image"], batch["target"]))
    trainee.optimizer.zero_grad()
    output = trainee.model(images.contiguous(memory_format=torch.channels_last))
    loss = trainee.loss(output, target)
    fabric.backward(loss)
    norm = clip_gradients(trainee.parameters, trainee.plan.clip_norm)
    # The mean over ranks: NaN on one is NaN on all, so that all of them stop.
    mean_loss = torch.as_tensor(fabric.all_reduce(loss.detach())).item()
    if not (math.isfinite(mean_loss) and math.isfinite(norm)):
        raise NonFiniteLossError(_explain(loss.item(), norm, where, batch, of))
    trainee.optimizer.step()
    return mean_loss, norm


def _explain(own_loss: float, norm: float, where: str, batch: Mapping[str, Any], of: Any) -> str:
    indices = [int(i) for i in batch.get("index", ())]
    manifest = getattr(getattr(of, "dataset", None), "manifest", None)
    if manifest is not None and "patch_id" in manifest:
        named = f"patches {manifest['patch_id'].iloc[indices].tolist()} (indices {indices})"
    else:
        named = f"indices {indices or 'unknown: the batch has no index'}"
    image_ok = bool(torch.isfinite(batch["image"]).all())
    cause = "lower learning_rate, set clip_norm=1.0, or use precision='32-true'"
    return (
        f"{where}: the loss is {own_loss}, the gradients' norm {norm}; batch of {named}. "
        + (f"Try: {cause}. " if image_ok else "Its images hold NaN or infinity: look at them. ")
        + "The checkpoints in the folder are those of the last finished epoch"
    )


def _set_learning_rate(trainee: Trainee, step: int, total_steps: int) -> float:
    plan = trainee.plan
    rate = learning_rate_at(step, total_steps, schedule=plan.schedule, peak=plan.learning_rate)
    for group in trainee.optimizer.param_groups:
        group["lr"] = rate
    return rate
