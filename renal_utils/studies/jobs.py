"""One run of a study as it travels to a worker, and what comes back."""

import functools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from renal_utils.runtime import provenance
from renal_utils.studies.notebook_runs import run_notebook

_ALONE = threading.Lock()  # a run sets environment variables of its process


@dataclass(frozen=True)
class Job:
    """What a worker needs to do a run.

    Attributes:
        key: See ``plan.run_key``.
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
        provenance: Versions, commit, device, time; see ``sign``.
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
            return Outcome(job.key, f"{error}", time.perf_counter() - started)
        results = {band["name"]: band["value"] for band in run.bands} | dict(run.recorded.results)
        return Outcome(job.key, None, run.seconds, results, run.recorded.curve)


def sign(outcome: Outcome, **more: Any) -> Outcome:
    """Return an outcome with ``runtime.provenance`` of this process, as of now.

    Args:
        outcome: Of a run that this machine did.
        **more: What is known better.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(outcome, provenance={**_provenance_once(), "time_utc": now, **more})


@functools.cache
def _provenance_once() -> dict[str, Any]:
    return provenance()
