"""Replicas: copies of one predictor on several devices, each of which takes whole batches.

A batch goes to one copy as it is, so the answer does not depend on how many there are; a network
may round differently in batches of another size. The devices change the time and not the identity:
a run may stop on two and go on with one. Devices of different kinds may round differently too, so
that among those a stored 8-bit probability can differ by one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

from renal_utils.prediction import Images, Predict, Probabilities, gives_spread, identity_of
from renal_utils.runtime import pick_device, pick_precision

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Replicas:
    """Predictors alike, each on a device of its own; called like one, by several threads at once.

    Attributes:
        predictors: Of the same weights and precision.
    """

    predictors: tuple[Predict, ...]
    _free: SimpleQueue = field(default_factory=SimpleQueue, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for predictor in self.predictors:
            self._free.put(predictor)

    @property
    def identity(self) -> str:
        """That of each of them, however many there are."""
        return identity_of(self.predictors[0])

    @property
    def has_spread(self) -> bool:
        return gives_spread(self.predictors[0])

    @property
    def at_once(self) -> int:
        """How many threads can call it without one waiting for another."""
        return len(self.predictors)

    def __call__(self, images: Images) -> Probabilities:
        """Return what a predictor that is free gives; wait for one where none is."""
        predictor = self._free.get()
        try:
            return predictor(images)
        finally:
            self._free.put(predictor)


def make_replicas(
    make: Callable[..., Predict], *, devices: Sequence[str], precision: str = "auto"
) -> Predict:
    """Make a predictor of copies on all of ``devices``; on one, a plain predictor.

    Args:
        make: Makes one of them; is called with ``device`` and ``precision``, as ``make_predictor``.
        devices: As ``devices.list_devices`` returns them; one may stand there twice.
        precision: See ``make_predictor``. ``auto`` is bfloat16 only if all devices gain by it.

    Raises:
        ValueError: If there is no device, one is not here, or the precision is unknown.
    """
    if not devices:
        raise ValueError("no device was given; expected one or more, such as 'cuda:0', 'cuda:1'")
    chosen = {pick_precision(precision, pick_device(device)) for device in devices}
    exact = chosen.pop() if len(chosen) == 1 else "32-true"
    copies = tuple(make(device=name, precision=exact) for name in devices)
    return copies[0] if len(copies) == 1 else Replicas(copies)


def work_in_order(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    take: Callable[[Result], None],
    *,
    at_once: int = 1,
) -> None:
    """Give ``take`` what ``work`` makes of each item, in the order of the items.

    An error of any of them is raised, and no further item is begun.

    Args:
        items: Asked for one more only when there is room.
        work: Called in as many threads as work at once; of one, in this thread.
        take: Called in this thread, so that it need not be thread-safe.
        at_once: Items worked on at the same time; one more waits, so that no thread does.
    """
    if at_once == 1:
        for item in items:
            take(work(item))
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="replica") as pool:
        begun = deque[Future[Result]]()
        try:
            for item in items:
                if len(begun) > at_once:
                    take(begun.popleft().result())
                begun.append(pool.submit(work, item))
            while begun:
                take(begun.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)
