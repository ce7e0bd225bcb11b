"""The state of a training between two epochs: everything needed to go on to the same numbers.

It is one safetensors file, ``resume.safetensors``: weights, optimiser tensors, and the rest as JSON
in its header. One file is replaced in one step, so a kill at any moment leaves a whole state, that
of the last finished epoch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from renal_utils.checkpoints import explain_failed_write, load_weights, write_tensors
from renal_utils.optimisation import pack_optimizer, unpack_optimizer
from renal_utils.runtime import atomic_path

RESUME_NAME = "resume.safetensors"


@dataclass(frozen=True)
class RunState:
    """Where a training stands.

    Attributes:
        identity: What makes it this training: plan, network, label set, data, loss. A run is only
            continued by one with the same identity.
        rows: The history so far, one mapping an epoch.
        best_epoch: Epoch (from 1) of the best monitored score; 0 before the first validation.
        best_score: That score; None before the first validation.
        waited: Validations since then that brought nothing better.
    """

    identity: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    best_epoch: int = 0
    best_score: float | None = None
    waited: int = 0

    @property
    def epochs_done(self) -> int:
        return len(self.rows)


def save_run(
    folder: Path, state: RunState, modules: Mapping[str, nn.Module], optimizer: Optimizer
) -> None:
    """Write ``resume.safetensors``, replacing the one of the epoch before.

    Args:
        folder: The training's folder.
        state: Where it stands.
        modules: The network and, where it learns too, the loss, by name.
        optimizer: Over the parameters of ``modules`` in their order.

    Raises:
        OSError: If the disk is full; the state of the epoch before is intact.
    """
    path = folder / RESUME_NAME
    state_tensors, groups = pack_optimizer(optimizer, trained_names(modules))
    tensors = {f"optimizer/{name}": value for name, value in state_tensors.items()}
    for part, module in modules.items():
        tensors |= {f"{part}/{name}": value for name, value in module.state_dict().items()}
    note = json.dumps({"state": asdict(state), "optimizer": groups})
    with explain_failed_write(path), atomic_path(path) as temporary:
        write_tensors(temporary, tensors, note=note)


def load_run(
    folder: Path,
    identity: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
) -> RunState:
    """Read the state that ``save_run`` wrote into the network and the optimiser.

    Raises:
        ValueError: If the file is broken, or of a training with another ``identity``; the message
            gives both values of what differs.
    """
    path = folder / RESUME_NAME
    note, tensors = _read(path)
    state = RunState(**note["state"])
    check_identity(state.identity, identity, path)
    for part, module in modules.items():
        load_weights(module, _under(part, tensors), source=str(path))
    names = trained_names(modules)
    unpack_optimizer(optimizer, names, _under("optimizer", tensors), note["optimizer"])
    return RunState(**{**note["state"], "identity": dict(identity)})


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue one training as another.

    Only ``epochs`` may differ, upwards and with the constant schedule: every other schedule is
    stretched over the epochs, so with more of them the steps already taken would have been others.

    Raises:
        ValueError: Naming ``path``, and both values of each setting that differs.
    """
    old, new = _flat(found), _flat(wanted)
    differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    stretched = new.get("plan.schedule") != "constant"
    if differing == ["plan.epochs"] and not stretched and new["plan.epochs"] > old["plan.epochs"]:
        return
    if differing:
        told = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differing)
        raise ValueError(
            f"{path} is of another training ({told}). Resume it with its own settings, or train "
            "in another folder, or start afresh with resume=False"
        )


def describe_data(loader: Any) -> dict[str, Any]:
    """Return what tells one loader's data from another's: sizes, seeds, and a manifest's hash.

    Folders do not count, so that a training may move to another machine with its data.
    """
    dataset = getattr(loader, "dataset", None)
    described: dict[str, Any] = {
        "batches": len(loader),
        "batch_size": getattr(loader, "batch_size", None),
        "dataset": plain_settings(dataset),
        "sampler": plain_settings(getattr(loader, "sampler", None)),
        "augmentation": getattr(getattr(dataset, "augmentation", None), "name", None),
    }
    manifest = getattr(dataset, "manifest", None)
    if manifest is not None:
        kept = manifest[[c for c in manifest.columns if not c.endswith("_path")]]
        text = kept.to_csv(index=False, float_format="%.9g")
        described["manifest"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return described


def plain_settings(thing: Any) -> dict[str, Any]:
    """Return the numbers and words among an object's public attributes, such as its seed."""
    passing = ("epoch", "training")  # these change while it is used
    return {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if isinstance(value, (bool, int, float, str))
        and not name.startswith("_")
        and name not in passing
    }


def describe_loss(loss: nn.Module) -> dict[str, Any]:
    """Return what tells one loss from another: class, numbers, words and weights, also of parts."""
    described: dict[str, Any] = {}
    for name, part in loss.named_modules():
        weights = {k: v for k, v in vars(part).items() if isinstance(v, tuple)}
        described[name] = {"name": type(part).__name__, **plain_settings(part), **weights}
    return {**described.pop(""), **described}


def trained_names(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the parameters that are trained, in the optimiser's order."""
    return [
        f"{part}.{name}"
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            note = json.loads(file.metadata()["note"])
        return note, load_file(path)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a whole training state ({error}); delete it and start afresh"
        ) from error


def _under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(f"{part}/"): v for k, v in tensors.items() if k.startswith(f"{part}/")}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
