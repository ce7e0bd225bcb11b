"""Workers on this machine: spawned processes that do one run after the other.

A worker that is killed, by the system when memory runs out or by hand, is replaced, and its run is
done again by another; after three workers were lost to it, the run counts as failed.
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from renal_utils.process_ties import end_with_parent
from renal_utils.runtime import count_cores
from renal_utils.studies.jobs import Job, Outcome, execute_job, sign

MAX_LOST = 3
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Worker:
    number: int
    process: Any
    connection: Connection
    job: Job | None = None


class LocalWorkers:
    """Spawned processes; each has its share of the cores, and a GPU of its own where there are.

    Args:
        count: How many; None is one for each GPU, or else for each core, up to ``most``.
        most: More are of no use.
        log: File that gets what workers and kernels print, such as Jupyter's own words on a kernel
            that was stopped; None prints it here.

    Raises:
        ValueError: If ``count`` is below 1.
    """

    def __init__(
        self, count: int | None = None, *, most: int = 1, log: str | Path | None = None
    ) -> None:
        if count is not None and count < 1:
            raise ValueError(f"workers must be 1 or more, given {count}")
        gpus = visible_gpus()
        self.slots = min(count or len(gpus) or count_cores(), max(most, 1))
        self._environments = [_environment(n, self.slots, gpus) for n in range(self.slots)]
        self._log = None if log is None else Path(log).resolve()
        self._lost: dict[str, int] = {}
        self._workers = [self._start(number) for number in range(self.slots)]

    def close(self) -> None:
        """End the workers, and the runs that they are at."""
        for worker in self._workers:
            if worker.job is None:
                worker.connection.close()  # it ends by itself
            else:
                worker.process.terminate()  # and its kernel with it
        for worker in self._workers:
            worker.process.join()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, job: Job) -> None:
        """Give a run to a worker that has none; there must be one."""
        worker = next(worker for worker in self._workers if worker.job is None)
        if not worker.process.is_alive():
            worker = self._replace(worker)
        worker.job = job
        with suppress(OSError):  # it has just died; wait() will notice
            worker.connection.send(job)

    def wait(self) -> list[Outcome]:
        """Wait until at least one run has ended; return those that have."""
        ended: list[Outcome] = []
        while not ended:
            busy = [worker for worker in self._workers if worker.job is not None]
            ready = wait([w.connection for w in busy] + [w.process.sentinel for w in busy])
            for worker in busy:
                if worker.connection in ready or worker.process.sentinel in ready:
                    ended += self._collect(worker)
        return ended

    def _collect(self, worker: _Worker) -> list[Outcome]:
        """Return the outcome a worker has sent; if it died instead, give its run to another."""
        try:
            outcome = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, OSError):
            outcome = None
        job, worker.job = worker.job, None
        if outcome is not None:
            return [sign(outcome, threads=int(self._environments[worker.number][_THREADS[0]]))]
        self._replace(worker)
        self._lost[job.key] = self._lost.get(job.key, 0) + 1
        if self._lost[job.key] < MAX_LOST:
            self.submit(job)
            return []
        reason = f"lost its worker {MAX_LOST} times, most likely out of memory"
        return [sign(Outcome(job.key, reason))]

    def _replace(self, worker: _Worker) -> _Worker:
        worker.connection.close()
        worker.process.join()
        self._workers[worker.number] = self._start(worker.number)
        return self._workers[worker.number]

    def _start(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self._environments[number], self._log)
        process = context.Process(target=_serve, args=arguments, name=f"study worker {number}")
        process.start()
        theirs.close()
        return _Worker(number, process, ours)


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, by the names it knows them by."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:  # spares most machines without one the import of torch
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _environment(number: int, workers: int, gpus: Sequence[str]) -> dict[str, str]:
    threads = str(max(1, count_cores() // workers))
    environment = dict.fromkeys(_THREADS, threads)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return environment


def _serve(connection: Connection, environment: Mapping[str, str], log: Path | None) -> None:
    """Do runs until the connection is closed."""
    if log is not None:
        _print_to(log)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the study itself heeds it
    end_with_parent()
    os.environ.update(environment)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(execute_job(job))


def _print_to(log: Path) -> None:
    """Append what this process, and those that it starts, print to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
