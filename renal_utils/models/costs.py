"""What a network costs: parameters, multiplications, memory and time, beside the published figures.

Two ways of counting multiply-accumulate operations (MACs) stand side by side. True MACs are those
of every convolution, transposed convolution and matrix product, by ``torch.utils.flop_counter``.
The LSU-Net paper (table 1, "GFLOPs" at 224 x 224) counts otherwise: convolutions with their bias,
two operations an element of batch normalisation, one of each ReLU and pooling module; and nothing
for transposed convolutions, linear layers and functions that are no modules. Its figures can only
be compared with ``macs_as_lsu_net``. Both are counted on the meta device, without memory or time.
"""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from renal_utils.models.blocks import count_parameters
from renal_utils.models.build import MODELS, build_model
from renal_utils.runtime import peak_memory_bytes


class Published(NamedTuple):
    """What a paper says of a network.

    Attributes:
        parameters_m: Millions of parameters, as printed.
        gmacs: Billions of MACs at 224 x 224 (the paper calls them GFLOPs), or None.
        source: Where it is printed.
    """

    parameters_m: float
    gmacs: float | None
    source: str


_LSU = "LSU-Net paper, table 1"
_ASRMU = "ASRMU-Net paper, table of parameters"

PUBLISHED: Mapping[str, Published] = {
    "unet": Published(34.527236, None, _ASRMU),
    "unetpp": Published(36.629828, None, _ASRMU),
    "cbam_unet": Published(34.571148, None, _ASRMU),
    "mau_net": Published(11.110720, None, _ASRMU),
    "asrmu_net": Published(21.317542, None, _ASRMU),
    "attention_unet": Published(34.88, 51.01, _LSU),
    "res_unet": Published(13.04, 52.13, _LSU),
    "unetpp_small": Published(9.16, 26.50, _LSU),
    "unet_small": Published(7.85, 10.73, _LSU),
    "unext": Published(1.47, 0.39, _LSU),
    "lsu_net": Published(1.08, 1.10, _LSU),
}

NOT_COUNTED: Mapping[str, str] = {
    "mask_rcnn": "no MACs: a detector's work depends on how many objects it proposes",
}

# these papers count with four classes, or with the heads that only training uses
BUILT_AS: Mapping[str, Mapping[str, Any]] = {
    name: {"num_classes": 4} for name in ("unet", "unetpp", "cbam_unet", "mau_net", "asrmu_net")
} | {"lsu_net": {"num_classes": 4, "deep_supervision": True}}


def cost_table(
    names: Iterable[str] | None = None,
    *,
    size_px: int = 224,
    measure: bool = False,
    repeats: int = 10,
) -> pd.DataFrame:
    """Return one row a network, built as published (``BUILT_AS``), else for one class.

    Args:
        names: Keys of ``MODELS``; None takes all.
        size_px: Side of the image that the MACs are counted at.
        measure: Also time it and measure the memory of a training step, on the CPU at 256 pixels;
            some seconds a network.
        repeats: How many forward passes are timed.

    Returns:
        ``parameters``, ``gmacs`` (true), ``gmacs_lsu`` (by the LSU-Net paper's counting),
        ``published_parameters_m``, ``published_gmacs``, ``source`` (of the published figures; for
        those in ``NOT_COUNTED`` why there are no MACs); measured, also ``latency_ms``
        (median), ``latency_spread_ms`` (between the quartiles) and ``training_mb``.

    Raises:
        ValueError: If a name is unknown.
    """
    rows = []
    for name in MODELS if names is None else names:
        rows.append(_counted_row(name, size_px))
        if measure:
            rows[-1] |= measure_latency(name, repeats=repeats)
            rows[-1]["training_mb"] = measure_training_memory(name) / 1e6
    return pd.DataFrame(rows)


def count_macs(model: nn.Module, *, size_px: int = 224, in_channels: int = 3) -> int:
    """Return the true MACs of one image: half of what ``torch.utils.flop_counter`` counts.

    Args:
        model: On the meta device, or any other.
        size_px: Side of the image.
        in_channels: Its channels.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        _look(model, size_px, in_channels)
    return counter.get_total_flops() // 2


def macs_as_lsu_net(model: nn.Module, *, size_px: int = 224, in_channels: int = 3) -> int:
    """Return the MACs of one image as the LSU-Net paper's table counts them.

    Args:
        model: On the meta device, or any other.
        size_px: Side of the image; the paper's is 224.
        in_channels: Its channels.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        total += _module_macs(module, inputs[0], out)

    hooks = [part.register_forward_hook(count) for part in model.modules() if _is_counted(part)]
    try:
        _look(model, size_px, in_channels)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def measure_latency(name: str, *, size_px: int = 256, repeats: int = 10) -> dict[str, float]:
    """Time the forward pass of one image on the CPU, with as many threads as torch has.

    Args:
        name: A key of ``MODELS``.
        size_px: Side of the image.
        repeats: Passes that are timed, after two that are not.

    Returns:
        ``latency_ms``, the median, and ``latency_spread_ms``, between the quartiles.
    """
    model = build_model(name, **BUILT_AS.get(name, {})).eval()
    image = torch.rand(1, 3, size_px, size_px)
    with torch.inference_mode():
        seconds = [_seconds(lambda: model(image)) for _ in range(repeats + 2)][2:]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"latency_ms": middle * 1e3, "latency_spread_ms": (high - low) * 1e3}


def measure_training_memory(name: str, *, size_px: int = 256, batch_size: int = 2) -> int:
    """Measure the memory that training steps add at their peak, in a process of its own, in bytes.

    It holds the weights, gradients, Adam's two moments and the activations; float32, on the CPU.

    Args:
        name: A key of ``MODELS``.
        size_px: Side of the images.
        batch_size: Images at once.

    Raises:
        RuntimeError: On Windows, where it is not measured.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_training_peak, (name, size_px, batch_size))


def _counted_row(name: str, size_px: int) -> dict[str, Any]:
    with torch.device("meta"):
        model = build_model(name, **BUILT_AS.get(name, {}))
    published, countable = PUBLISHED.get(name), name not in NOT_COUNTED
    return {
        "model": name,
        "parameters": count_parameters(model),
        "gmacs": count_macs(model, size_px=size_px) / 1e9 if countable else None,
        "gmacs_lsu": macs_as_lsu_net(model, size_px=size_px) / 1e9 if countable else None,
        "published_parameters_m": published.parameters_m if published else None,
        "published_gmacs": published.gmacs if published else None,
        "source": published.source if published else NOT_COUNTED.get(name, ""),
    }


def _look(model: nn.Module, size_px: int, in_channels: int) -> None:
    """Show one image to the network in evaluation mode, and leave its modes as they were."""
    trained = [part for part in model.modules() if part.training]
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            model(torch.empty(1, in_channels, size_px, size_px, device=device))
    finally:
        for part in trained:
            part.training = True


_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_RELUS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU)


def _is_counted(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.BatchNorm2d, *_POOLS, *_RELUS))


def _module_macs(module: nn.Module, image: Tensor, out: Tensor) -> int:
    match module:
        case nn.Conv2d():
            kernel = module.weight[0].numel()
            return out.numel() * (kernel + (module.bias is not None))
        case nn.BatchNorm2d():
            return 2 * out.numel()
        case _ if isinstance(module, _POOLS):
            return image.numel()
        case _:
            return out.numel()


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _training_peak(name: str, size_px: int, batch_size: int) -> int:
    gc.collect()
    before = peak_memory_bytes()
    model = build_model(name, **BUILT_AS.get(name, {}))
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    for _ in range(2):  # Adam's moments come with the first step
        _any_loss(model, torch.rand(batch_size, 3, size_px, size_px)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return peak_memory_bytes() - before


def _any_loss(model: Any, image: Tensor) -> Tensor:
    """Return a loss that all parameters take part in; what it says does not matter here."""
    if hasattr(model, "losses"):  # learns from objects: a square in each image
        instances = torch.zeros(len(image), *image.shape[2:], dtype=torch.int32)
        instances[:, : image.shape[2] // 2, : image.shape[3] // 2] = 1
        return torch.stack(list(model.losses(image, instances).values())).sum()
    out = model(image)
    maps = [out] if isinstance(out, Tensor) else list(out)
    return torch.stack([m.square().mean() for m in maps]).sum()
