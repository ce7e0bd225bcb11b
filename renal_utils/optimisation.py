"""Optimisers by name, learning rates as plain functions of the step, optimiser state as tensors.

A schedule is a function of the step alone. It keeps no state, so a resumed run needs none back, and
a lesson can plot it without training.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def one_cycle(step: int, total_steps: int) -> float:
    """Rise from 1/25 to 1 over the first 30 % of the steps, fall to 1/250,000; cosine both ways.

    Smith & Topin, "Super-convergence" (2019), in the two-phase cosine form of PyTorch's
    ``OneCycleLR``; the momentum is left alone.
    """
    start, end = 1 / 25, 1 / 25 / 1e4
    turn = max(0.3 * total_steps - 1, 0.0)
    if step < turn:
        return _cosine_between(start, 1.0, step / turn)
    return _cosine_between(1.0, end, (step - turn) / max(total_steps - 1 - turn, 1.0))


def cosine(step: int, total_steps: int) -> float:
    """Fall from 1 towards 0 along half a cosine (Loshchilov & Hutter 2017, without restarts)."""
    return _cosine_between(1.0, 0.0, step / total_steps)


def cosine_to_hundredth(step: int, total_steps: int) -> float:
    """Fall from 1 towards 1/100 along half a cosine: 1e-3 to 1e-5, as LSU-Net is trained."""
    return _cosine_between(1.0, 0.01, step / total_steps)


def constant(step: int, total_steps: int) -> float:
    """Stay at 1."""
    return 1.0


SCHEDULES: Mapping[str, Callable[[int, int], float]] = {
    "one_cycle": one_cycle,
    "cosine": cosine,
    "constant": constant,
    "cosine_to_hundredth": cosine_to_hundredth,
}


def learning_rate_at(step: int, total_steps: int, *, schedule: str, peak: float | int) -> float:
    """Return the learning rate of a step.

    Args:
        step: Steps taken before, 0 to ``total_steps - 1``.
        total_steps: Steps of the whole training.
        schedule: One of ``SCHEDULES``.
        peak: The highest learning rate.

    Raises:
        ValueError: If the schedule is unknown or the step lies outside the training.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is not within 0..{total_steps - 1}")
    return peak * SCHEDULES[schedule](step, total_steps)


def build_optimizer(
    name: str, parameters: Iterable[Any], *, learning_rate: float | int, weight_decay: float | int
) -> Optimizer:
    """Return the optimiser called ``name`` over tensors or groups of them (as PyTorch's own take).

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](parameters, lr=learning_rate, weight_decay=weight_decay)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | int | None) -> float:
    """Scale the gradients down to a joint norm of ``max_norm``; None leaves them as they are.

    Returns:
        The norm before clipping; NaN or infinite when any gradient is.
    """
    parameters = list(parameters)
    if max_norm is None:
        return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    return float(nn.utils.clip_grad_norm_(parameters, max_norm))


def pack_optimizer(
    optimizer: Optimizer, names: Sequence[str]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Take an optimiser's state apart into named tensors and plain settings, to store unpickled.

    Args:
        optimizer: Any that keeps tensors per parameter.
        names: One name a parameter, in the order of the optimiser's groups.

    Returns:
        Tensors called ``<parameter>/<key>``, and the settings of each group.
    """
    state = optimizer.state_dict()
    tensors = {
        f"{names[index]}/{key}": value
        for index, entries in state["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }
    return tensors, state["param_groups"]


def unpack_optimizer(
    optimizer: Optimizer,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    groups: Sequence[Mapping[str, Any]],
) -> None:
    """Give an optimiser the state that ``pack_optimizer`` took apart.

    Each tensor takes the memory layout of its parameter, which it had before: arithmetic in another
    layout may round in another way.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        index = list(names).index(parameter_name)
        if value.shape == parameters[index].shape:
            value = torch.empty_like(parameters[index], dtype=value.dtype).copy_(value)
        state.setdefault(index, {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": [dict(g) for g in groups]})


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
