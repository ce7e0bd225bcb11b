"""One process or several: the Fabric that runs a training, and the dealing of batches to ranks.

Started plainly, a training runs in this process on one device. Started by
``torchrun --nproc-per-node 2 script.py``, each process (rank) takes its part of every batch, the
gradients are averaged and the scores added up. ``batch_size`` always means the whole batch, so the
number of ranks changes the speed and not the training.
"""

import atexit
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from renal_utils.runtime import pick_device, pick_precision

_KEPT = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


def make_fabric(device: str = "auto", precision: str = "auto") -> Fabric:
    """Return a launched Fabric for this process, or for all that ``torchrun`` started.

    Args:
        device: As in ``runtime.pick_device``.
        precision: As in ``runtime.pick_precision``.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision
    found = pick_device(device)
    settings: dict[str, Any] = {"accelerator": found.type, "devices": 1}
    settings["precision"] = pick_precision(precision, found)
    if found.index is not None:
        settings["devices"] = [found.index] if found.type == "cuda" else 1
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        settings["devices"], settings["num_nodes"] = local, int(os.environ["WORLD_SIZE"]) // local
        # Encoders of pretrained networks hold layers that a segmentation never uses; DDP allows
        # that where the same ones are used in each step.
        settings["strategy"] = DDPStrategy(static_graph=True)
        atexit.register(leave_group)
    fabric = Fabric(**settings)
    fabric.launch()
    return fabric


def leave_group() -> None:
    """Leave the group of processes before this one ends: its threads must not outlive it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class RankBatches:
    """Each batch's part for one rank: its items ``rank``, ``rank + world_size``, ...

    Args:
        batches: The batch sampler, which gives lists of indices, or of what stands for them.
        rank: Number of this process.
        world_size: Number of processes.
        even: Repeat items of a batch that cannot be dealt evenly, so that no rank waits for
            another for ever; for training. Else ranks may get fewer items or none; for scores.
    """

    def __init__(self, batches: Any, *, rank: int, world_size: int, even: bool) -> None:
        self.batches, self.rank, self.world_size, self.even = batches, rank, world_size, even

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            part = self._part(list(batch))
            if part:
                yield part

    def __len__(self) -> int:
        """Count the batches of the whole; without ``even`` this rank may see fewer."""
        return len(self.batches)

    def _part(self, batch: Sequence[Any]) -> list[Any]:
        if self.even:
            missing = -len(batch) % self.world_size
            batch = [*batch, *islice(cycle(batch), missing)]
        return list(batch[self.rank :: self.world_size])


def deal_batches(loader: Any, fabric: Fabric, *, even: bool) -> Any:
    """Return a loader of this rank's part of each batch; with one process, ``loader`` itself.

    Raises:
        ValueError: If there are several ranks and ``loader`` is no ``DataLoader`` with batches.
    """
    if fabric.world_size == 1:
        return loader
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        raise ValueError(
            f"several processes can share a torch DataLoader that has a batch size, not a "
            f"{type(loader).__name__}; use loading.make_loader"
        )
    part = RankBatches(
        loader.batch_sampler, rank=fabric.global_rank, world_size=fabric.world_size, even=even
    )
    kept = {name: getattr(loader, name) for name in _KEPT}
    return DataLoader(loader.dataset, batch_sampler=part, **kept)


def share_buffers(model: nn.Module, fabric: Fabric) -> None:
    """Give every rank the buffers of rank 0, such as BatchNorm's running averages."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
