"""Devices for one piece of work: which there are by name, and which of them a worker takes."""

import os
from collections.abc import Sequence

from renal_utils.runtime import pick_device


def list_devices(name: str = "auto") -> tuple[str, ...]:
    """Return the devices that ``name`` stands for, as torch calls them.

    Args:
        name: ``auto`` (all CUDA devices where there are several, else as ``pick_device``), one
            device, or several with commas between (``cuda:0,cuda:1``). One that stands there twice
            gets two copies of a network.

    Raises:
        ValueError: If a device is not known or not on this machine.
    """
    if name == "auto":
        return _cuda_devices() or (str(pick_device()),)
    names = [part.strip() for part in name.split(",")]
    if "" in names or "auto" in names:
        raise ValueError(
            f"devices {name!r}: expected 'auto', one device, or several with commas between, such "
            "as 'cuda:0,cuda:1'"
        )
    return tuple(str(pick_device(part)) for part in names)


def share_devices(devices: Sequence[str], worker: int, workers: int) -> tuple[str, ...]:
    """Return the devices of one of several workers of a machine.

    Worker i takes device i, counted round; where there are more devices than workers, the rest are
    dealt out too, so that none lies idle.

    Args:
        devices: What ``list_devices`` returned.
        worker: Number of the worker, from 0.
        workers: How many there are.
    """
    return tuple(devices[worker::workers]) or (devices[worker % len(devices)],)


def _cuda_devices() -> tuple[str, ...]:
    """Return all CUDA devices if there are several, else nothing.

    They stand in the order of their names in ``CUDA_VISIBLE_DEVICES``: workers of one machine may
    see them in different orders (dask-cuda starts them so), and must agree which is whose.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return ()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = seen if len(seen) == count else [f"{number:04d}" for number in range(count)]
    return tuple(f"cuda:{number}" for number in sorted(range(count), key=names.__getitem__))
