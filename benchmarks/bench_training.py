"""What bfloat16 with channels_last gains over plain float32, per training step.

The task is that of lesson 04: a U-Net with a ResNet-34 encoder, batches of 8 patches of 256 pixels,
BCE+Dice, AdamW. The step of the library (Fabric, gradient norm, checks and all) is timed beside a
bare one in float32 with the usual memory layout, in turns; the medians are compared. A second ratio
says what the library's step costs beyond a bare one of its own precision.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from renal_utils.losses import build_loss
from renal_utils.models.build import build_model
from renal_utils.runtime import pick_precision
from renal_utils.training import TrainingPlan
from renal_utils.training_step import prepare, take_step

WARM_UP, RUNS = 2, 8
PLAN = TrainingPlan(device="cpu")


def make_batch() -> dict[str, torch.Tensor]:
    """Return random patches with a tenth of foreground."""
    torch.manual_seed(0)
    images = torch.randn(8, 3, 256, 256)
    return {"image": images, "target": (torch.rand(8, 256, 256) < 0.1).long()}


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("unet_resnet34")


def make_library_step(batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Return the step that ``training.fit`` takes, at the precision it picks here."""
    trainee = prepare(make_network(), build_loss("bce_dice"), PLAN)
    trainee.model.train()
    print(f"  the library's precision here: {trainee.precision}")
    return lambda: take_step(trainee, batch, where="benchmark", of=None)


def make_bare_step(
    batch: dict[str, torch.Tensor], *, bf16: bool, layout: torch.memory_format
) -> Callable[[], object]:
    """Return the shortest loop that trains: nothing checked, nothing kept."""
    model = make_network().to(memory_format=layout).train()
    loss = build_loss("bce_dice")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = batch["image"].contiguous(memory_format=layout)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss(logits.float(), batch["target"]).backward()
        optimizer.step()

    return step


def time_in_turns(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each step, measured in turns that start with another each."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for run in range(WARM_UP + RUNS):
        first = run % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            steps[name]()
            if run >= WARM_UP:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> int:
    batch = make_batch()
    last = torch.channels_last
    library = make_library_step(batch)
    bf16 = pick_precision("auto", torch.device("cpu")) == "bf16-mixed"
    median = time_in_turns(
        {
            "library": library,
            "bare, same precision": make_bare_step(batch, bf16=bf16, layout=last),
            "float32, channels_last": make_bare_step(batch, bf16=False, layout=last),
            "float32, plain": make_bare_step(batch, bf16=False, layout=torch.contiguous_format),
        }
    )
    for name, seconds in median.items():
        print(f"  {name}: {seconds:.2f} s a step, median of {RUNS}")
    print(f"  plain float32 / library: {median['float32, plain'] / median['library']:.2f}")
    print(f"  library / bare: {median['library'] / median['bare, same precision']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
