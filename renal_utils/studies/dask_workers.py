"""Workers of a Dask cluster, wherever they run; ``docs/studies.md`` says how to start some.

They must have this library, and see the notebook, the data and the study's folder at the same
paths. Dask itself gives the run of a lost worker to another one.
"""

import os
import time
from typing import Any

from renal_utils.dask_clusters import connect, count_workers
from renal_utils.studies.jobs import Job, Outcome, execute_job, sign

_LOOK_AGAIN = 0.1  # seconds between looks at whether the scheduler is still there
_GIVE_UP = 10.0  # seconds without it after which it counts as gone


class DaskWorkers:
    """The workers of a cluster, one run at a time on each.

    Args:
        address: Of its scheduler, such as ``tcp://10.0.0.1:8786``.

    Raises:
        RuntimeError: If Dask is not installed.
        ConnectionError: If there is no scheduler, or it has no worker.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = connect(address)
        self._jobs: dict[Any, Job] = {}
        self._silent_since: float | None = None

    def close(self) -> None:
        """Give up the runs that are going on, and leave the cluster as it is."""
        if self._jobs and self._client.status == "running":
            self._client.cancel(list(self._jobs))
        self._client.close(timeout=2)

    @property
    def slots(self) -> int:
        """How many runs can go on at once now: clusters grow and shrink."""
        return max(1, count_workers(self._client))

    def submit(self, job: Job) -> None:
        """Hand a run to the cluster.

        Raises:
            ConnectionError: If the scheduler is gone.
        """
        name = f"{job.name}-{job.key[:8]}-{os.urandom(4).hex()}"  # never the result of an old run
        self._check_there()
        self._jobs[self._client.submit(_execute_signed, job, key=name, pure=False)] = job

    def wait(self) -> list[Outcome]:
        """Wait until at least one run has ended; return those that have.

        Raises:
            ConnectionError: If the scheduler is gone; runs that were going on are not recorded.
        """
        while not (done := [future for future in self._jobs if future.done()]):
            self._check_there()
            time.sleep(_LOOK_AGAIN)
        return [self._outcome(future) for future in done]

    def _outcome(self, future: Any) -> Outcome:
        from distributed import CancelledError, KilledWorker

        job = self._jobs.pop(future)
        try:
            return future.result(timeout=30)
        except KilledWorker:
            reason = "lost its worker again and again, most likely out of memory"
            return sign(Outcome(job.key, reason))
        except (CancelledError, OSError) as error:
            raise self._gone() from error

    def _check_there(self) -> None:
        """Raise if the scheduler has been away for longer than a hiccup of the network."""
        if self._client.status == "running":
            self._silent_since = None
            return
        self._silent_since = self._silent_since or time.monotonic()
        closed = self._client.status in ("closed", "closing")
        if closed or time.monotonic() - self._silent_since > _GIVE_UP:
            raise self._gone()

    def _gone(self) -> ConnectionError:
        return ConnectionError(
            f"the Dask scheduler at {self._address} is gone; the runs that had finished are in the "
            "ledger: start the study again, with another scheduler or without, and it goes on"
        )


def _execute_signed(job: Job) -> Outcome:
    return sign(execute_job(job))
