"""Replicas: copies of one network on several devices that share each batch.

Every copy gets a piece of the batch, in a thread of its own, and the answers are put together in
order. The devices change the time and not the identity: a run may stop on two and go on with one. A
network may round differently in batches of another size, so with other pieces a stored 8-bit
probability can differ by one.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import nn

from renal_utils.prediction import Images, Predictor, Probabilities, make_predictor
from renal_utils.runtime import pick_device, pick_precision


@dataclass(frozen=True)
class Replicas:
    """Predictors of one network, each on a device of its own; called like one ``Predictor``.

    Attributes:
        predictors: Of the same weights and precision.
    """

    predictors: tuple[Predictor, ...]
    _pool: ThreadPoolExecutor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pool = ThreadPoolExecutor(len(self.predictors), thread_name_prefix="replica")
        object.__setattr__(self, "_pool", pool)

    @property
    def identity(self) -> str:
        """That of each of them, however many there are."""
        return self.predictors[0].identity

    def __call__(self, images: Images) -> Probabilities:
        """Return what one predictor would; an error of any of them is raised."""
        pieces = images.tensor_split(max(1, min(len(self.predictors), len(images))))
        running = [
            self._pool.submit(predictor, piece)
            for predictor, piece in zip(self.predictors, pieces, strict=False)
        ]
        return torch.cat([one.result() for one in running])


def make_replicas(
    model: nn.Module, *, devices: Sequence[str], precision: str = "auto"
) -> Predictor | Replicas:
    """Make a predictor of copies of ``model`` on all of ``devices``; on one, a plain predictor.

    Args:
        model: See ``make_predictor``.
        devices: As ``devices.list_devices`` returns them; one may stand there twice.
        precision: See ``make_predictor``. ``auto`` is bfloat16 only if all devices gain by it.

    Raises:
        ValueError: If there is no device, one is not here, or the precision is unknown.
    """
    if not devices:
        raise ValueError("no device was given; expected one or more, such as 'cuda:0', 'cuda:1'")
    chosen = {pick_precision(precision, pick_device(device)) for device in devices}
    exact = chosen.pop() if len(chosen) == 1 else "32-true"
    copies = tuple(make_predictor(model, device=name, precision=exact) for name in devices)
    return copies[0] if len(copies) == 1 else Replicas(copies)
