"""One run of a study as it travels to a worker, and what comes back."""

import functools
import multiprocessing
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from renal_utils.notebook_runs import run_notebook
from renal_utils.runtime import provenance
from renal_utils.warm_kernels import can_fork_warm

_ALONE = threading.Lock()  # a run sets environment variables of its process


@dataclass(frozen=True)
class Job:
    """What a worker needs to do a run.

    Attributes:
        key: See ``study_plan.run_key``.
        name: See ``run_names``.
        notebook: What is run, an absolute path that the worker sees too.
        output: Where the executed notebook goes.
        parameters: Checked already.
        time_limit: Seconds; None for no limit.
        warm: See ``run_notebook``.
    """

    key: str
    name: str
    notebook: Path
    output: Path
    parameters: Mapping[str, Any]
    time_limit: float | int | None = None
    warm: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        key: Of the job.
        error: Why it failed; None if it finished.
        seconds: What it took, with the kernel's start and end.
        results: What the notebook recorded, and the numbers it checked against bands.
        curve: See ``recording.record_curve``.
        provenance: Of the worker: versions, commit, device, time.
    """

    key: str
    error: str | None = None
    seconds: float = 0.0
    results: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def execute_job(job: Job) -> Outcome:
    """Do a run, and say how it ended; the run's own failure is an outcome, no exception."""
    with _ALONE:
        started = time.perf_counter()
        try:
            run = run_notebook(
                job.notebook,
                output=job.output,
                parameters=job.parameters,
                time_limit=job.time_limit,
                warm=job.warm,
            )
        except (OSError, RuntimeError, ValueError) as error:
            seconds = time.perf_counter() - started
            return Outcome(job.key, f"{error}", seconds, provenance=worker_provenance())
        results = {band["name"]: band["value"] for band in run.bands} | dict(run.recorded.results)
        curve = run.recorded.curve
        return Outcome(job.key, None, run.seconds, results, curve, worker_provenance())


def worker_provenance() -> dict[str, Any]:
    """Return ``runtime.provenance`` of this worker, as of now.

    It is asked for once, in a process of its own, so that torch does not fill the worker's memory.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    return {**_provenance_once(), "time_utc": now}


@functools.cache
def _provenance_once() -> dict[str, Any]:
    if not can_fork_warm():
        return provenance()
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(provenance).result()
