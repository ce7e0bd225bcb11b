"""A task that a tiny network learns in seconds: bright squares. Also run as processes of their own.

``python -m tests.training_cases kill FOLDER`` trains and kills itself in the middle of epoch 3;
``torchrun ... -m tests.training_cases ddp FOLDER`` trains on several processes.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from renal_utils.checkpoints import CheckpointInfo
from renal_utils.labels import GLOMERULI, IGNORE_ID
from renal_utils.models import build
from renal_utils.training import History, TrainingPlan, fit


class TinyNet(nn.Module):
    """Two convolutions and dropout, no batch normalisation; a layer that is not used."""

    def __init__(self, in_channels: int = 3, num_classes: int = 1, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(8, num_classes, 3, padding=1),
        )
        self.spare = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Squares(Dataset):
    """Noise with one bright square; its truth, with a border of unlabelled pixels."""

    def __init__(self, count: int = 16, *, seed: int = 0, side: int = 16) -> None:
        self.count, self.seed, self.side = count, seed, side
        self.epoch, self.epochs_seen, self.kill_at = 0, [], None

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.epochs_seen.append(epoch)

    def __getitem__(self, index: int) -> dict:
        if self.kill_at == (self.epoch, index):
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        image = torch.randn(3, self.side, self.side, generator=generator) * 0.3
        x, y = torch.randint(2, self.side - 8, (2,), generator=generator).tolist()
        target = torch.zeros(self.side, self.side, dtype=torch.int64)
        target[y : y + 6, x : x + 6] = 1
        image[:, y : y + 6, x : x + 6] += 1.0
        target[0] = IGNORE_ID
        return {"image": image, "target": target, "index": index}


def bce(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    known = target != IGNORE_ID
    return nn.functional.binary_cross_entropy_with_logits(output[:, 0][known], target[known] * 1.0)


class Bce(nn.Module):
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return bce(output, target)


def tiny_info(**options) -> CheckpointInfo:
    build.MODELS["tiny"] = TinyNet
    return CheckpointInfo("tiny", options, patch_px=16)


def train(
    folder: Path,
    *,
    data: Squares | None = None,
    model: nn.Module | None = None,
    loss: nn.Module | None = None,
    info: CheckpointInfo | None = None,
    batch_size: int = 4,
    resume: bool = False,
    progress: bool = False,
    validation: Dataset | None = None,
    label_set=GLOMERULI,
    **plan,
) -> History:
    """Train a TinyNet on squares; every default may be replaced."""
    torch.manual_seed(3)
    train_data = Squares() if data is None else data
    val_data = Squares(6, seed=1) if validation is None else validation
    settings = {"epochs": 4, "learning_rate": 0.02, "precision": "32-true", "device": "cpu"}
    return fit(
        TinyNet() if model is None else model,
        Bce() if loss is None else loss,
        DataLoader(train_data, batch_size=batch_size, shuffle=True),
        DataLoader(val_data, batch_size=4),
        plan=TrainingPlan(**(settings | plan)),
        label_set=label_set,
        folder=folder,
        info=tiny_info() if info is None else info,
        resume=resume,
        progress=progress,
    )


def train_for_comparison(folder: Path) -> History:
    """Train what several processes must be able to: no dropout, and sets that part unevenly.

    The last batch of the validation has one patch, which is nothing for the second process.
    """
    torch.manual_seed(5)
    model = TinyNet(dropout=0.0)
    return train(folder, model=model, batch_size=8, validation=Squares(5, seed=1))


def main(mode: str, folder: str) -> None:
    torch.set_num_threads(1)
    if mode == "kill":
        data = Squares()
        data.kill_at = (3, 7)
        train(Path(folder), data=data)
    elif mode == "ddp":
        train_for_comparison(Path(folder))
    else:
        raise ValueError(f"mode {mode!r} is neither 'kill' nor 'ddp'")


if __name__ == "__main__":
    main(*sys.argv[1:])
