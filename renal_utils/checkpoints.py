"""Checkpoints: a network's weights as safetensors, and beside them a JSON of how they came to be.

Nothing is pickled: a checkpoint from a stranger cannot run code. The JSON holds the SHA-256 of the
weights, so a pair that was torn apart, cut off or mixed up is noticed when it is loaded.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from renal_utils.models.build import build_model
from renal_utils.runtime import atomic_path, file_hash, read_json, write_json

FORMAT = 1
_OWN_KEYS = ("format", "weights_sha256", "weights_bytes")


@dataclass(frozen=True)
class CheckpointInfo:
    """What one must know to use the weights again, and how they came to be.

    Attributes:
        model: Name for ``build_model``.
        options: Further keyword arguments of ``build_model``; plain JSON values.
        in_channels: Channels of the input.
        num_classes: Channels of the logits: 1 for sigmoid, else one a class (softmax).
        label_set: Name of the label set that the outputs follow.
        downsample: Level-0 pixels per pixel that the network sees.
        mpp: Microns per pixel that the network sees; None when the data does not state it.
        patch_px: Side of the training patches, in pixels at that scale.
        threshold: Probability above which a binary network's pixel is foreground, chosen on
            validation; None for several classes, or when not chosen yet.
        metrics: Scores on validation of exactly these weights.
        provenance: Versions, commit, device, time and the training plan.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    in_channels: int = 3
    num_classes: int = 1
    label_set: str = "glomeruli"
    downsample: float | int = 1.0
    mpp: float | int | None = None
    patch_px: int = 256
    threshold: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(path: str | Path, model: nn.Module, info: CheckpointInfo) -> None:
    """Write the weights to ``path`` and ``info`` to the JSON beside it; both or neither.

    Args:
        path: File to write; it ends in ``.safetensors``.
        model: Network whose state is saved, in the layout and on the device it has.
        info: What the weights are.

    Raises:
        ValueError: If ``path`` has another suffix.
        OSError: If the disk is full; what stood at ``path`` before is intact.
    """
    path = _checked_suffix(path)
    with (
        explain_failed_write(path),
        atomic_path(path) as weights,
        atomic_path(json_path(path)) as beside,
    ):
        write_tensors(weights, model.state_dict())
        own = (FORMAT, file_hash(weights), weights.stat().st_size)
        write_json(beside, {**asdict(info), **dict(zip(_OWN_KEYS, own, strict=True))})


def load_checkpoint(
    path: str | Path, *, expect_model: str | None = None
) -> tuple[nn.Module, CheckpointInfo]:
    """Build the network that a checkpoint describes and give it the weights, on the CPU.

    Args:
        path: The ``.safetensors`` file; its JSON lies beside it.
        expect_model: Name of the network that must be in it; None takes any.

    Returns:
        The network in evaluation mode, and what the checkpoint says of itself.

    Raises:
        FileNotFoundError: If either file is missing.
        ValueError: If the files do not belong together, are cut off, or hold another network.
    """
    path = _checked_suffix(path)
    info = read_checkpoint_info(path)
    if expect_model is not None and info.model != expect_model:
        raise ValueError(f"{path} holds the network {info.model!r}, expected {expect_model!r}")
    model = _build(info)
    load_weights(model, load_file(path), source=str(path))
    return model.eval(), info


def read_checkpoint_info(path: str | Path) -> CheckpointInfo:
    """Read the JSON of a checkpoint after checking that it belongs to the weights beside it.

    Raises:
        FileNotFoundError: If either file is missing.
        ValueError: If the weights are cut off or not those that the JSON was written for.
    """
    path = _checked_suffix(path)
    for part in (path, json_path(path)):
        if not part.is_file():
            raise FileNotFoundError(
                f"{part} is missing; a checkpoint is a .safetensors and the .json beside it, "
                "copy both"
            )
    content = read_json(json_path(path))
    _check_fields(content, json_path(path))
    _check_pair(content, path)
    return CheckpointInfo(**{k: v for k, v in content.items() if k not in _OWN_KEYS})


def json_path(path: str | Path) -> Path:
    """Return where the JSON of a checkpoint lies: beside it, with the suffix ``.json``."""
    return Path(path).with_suffix(".json")


@contextmanager
def explain_failed_write(path: Path) -> Iterator[None]:
    """Turn what a full disk raises inside the block into an error that names ``path``.

    Raises:
        OSError: With the reason and the remedy.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write {path}: {error}. What stood there before is intact; "
            "free some disk space and start again"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, note: str | None = None) -> None:
    """Write tensors as safetensors and force them to the disk.

    Args:
        path: File to write, usually a temporary one.
        tensors: Any device and memory layout; stored on the CPU, contiguous.
        note: Text kept in the file's header.
    """
    plain = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    # One entry only: several would come out in any order, and the bytes would differ.
    save_file(plain, path, metadata=None if note is None else {"note": note})
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Give ``model`` the weights ``tensors``; names and shapes must be the same.

    Args:
        model: Keeps its device and memory layout.
        tensors: By the names of its state.
        source: Where they come from, for the message.

    Raises:
        ValueError: Naming ``source`` and the first few differences.
    """
    _check_tensors(model, tensors, source)
    model.load_state_dict(dict(tensors))


def check_rebuildable(model: nn.Module, info: CheckpointInfo) -> None:
    """Refuse an ``info`` by which ``model`` could not be built again, before time is spent on it.

    Raises:
        ValueError: If the network that ``info`` describes has other tensors.
    """
    with torch.device("meta"):
        described = _build(info)
    _check_tensors(model, described.state_dict(), f"info ({info.model} {dict(info.options)})")


def _build(info: CheckpointInfo) -> nn.Module:
    options = dict(info.options)
    if "encoder_weights" in options:
        options["encoder_weights"] = None  # where training started; the file has what it ended with
    return build_model(
        info.model, in_channels=info.in_channels, num_classes=info.num_classes, **options
    )


def _check_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    own = model.state_dict()
    differences = [f"{name}: missing there" for name in own if name not in tensors]
    differences += [f"{name}: not in the network" for name in tensors if name not in own]
    differences += [
        f"{name}: {tuple(tensors[name].shape)} there, {tuple(own[name].shape)} in the network"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if differences:
        raise ValueError(
            f"{source} does not fit the network {type(model).__name__}, {len(differences)} tensors "
            f"differ: {'; '.join(differences[:3])}; build the network it was trained as"
        )


def _checked_suffix(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint's name ends in .safetensors, given {path.name!r}")
    return path


def _check_fields(content: Mapping[str, Any], path: Path) -> None:
    known = {f.name for f in fields(CheckpointInfo)} | set(_OWN_KEYS)
    missing, unknown = sorted(known - set(content)), sorted(set(content) - known)
    if missing or unknown:
        raise ValueError(
            f"{path} is not the JSON of a checkpoint: fields {missing} are missing, "
            f"{unknown} are not known"
        )
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has the format {content['format']!r}, this library reads {FORMAT}; "
            "use the version of renal-utils that wrote it"
        )


def _check_pair(content: Mapping[str, Any], path: Path) -> None:
    size, expected = path.stat().st_size, content["weights_bytes"]
    if size != expected:
        raise ValueError(
            f"{path} has {size} bytes, {json_path(path).name} says {expected}; it was cut off or "
            "replaced: copy both files again"
        )
    found = file_hash(path)
    if found != content["weights_sha256"]:
        raise ValueError(
            f"{path} has the SHA-256 {found[:12]}..., {json_path(path).name} says "
            f"{str(content['weights_sha256'])[:12]}...; they are not of one checkpoint: "
            "copy both files again"
        )
