"""The runs of a study, from the first to the last."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd

from renal_utils.dask_clusters import check_workers
from renal_utils.progress import progress_bar
from renal_utils.result_folder import hold_folder
from renal_utils.studies.agenda import Agenda
from renal_utils.studies.dask_workers import DaskWorkers
from renal_utils.studies.jobs import Job, Outcome
from renal_utils.studies.ledger import Ledger
from renal_utils.studies.local_workers import LocalWorkers
from renal_utils.studies.plan import StudyPlan, read_study, source_of
from renal_utils.studies.tables import write_tables


@runtime_checkable
class Workers(Protocol):
    """What does the runs: ``LocalWorkers`` or ``DaskWorkers``."""

    @property
    def slots(self) -> int:
        """How many runs can go on at once."""
        ...

    def submit(self, job: Job) -> None:
        """Begin a run."""
        ...

    def wait(self) -> list[Outcome]:
        """Return runs that ended, at least one."""
        ...

    def close(self) -> None:
        """End what is going on."""
        ...


def run_study(
    study: StudyPlan | str | Path,
    *,
    workers: int | None = None,
    dask: str | None = None,
    only: Sequence[str] | None = None,
    retry_failed: bool = False,
    accept_changes: bool = False,
    warm: bool = True,
) -> pd.DataFrame:
    """Do the runs of a study that have not been done, and return the table of all its runs.

    The study's folder gets ``ledger.jsonl``, the tables ``runs.parquet``, ``runs.csv`` and
    ``curves.csv``, and each executed notebook as ``runs/<name>.<key>.ipynb``. A bar shows how many
    runs there are and the time left.

    Args:
        study: The plan, or a YAML file of it.
        workers: Processes on this machine; None is one a GPU, or else one a core.
        dask: Address of a Dask scheduler whose workers are used instead.
        only: Names of runs, the others are left alone.
        retry_failed: Run those that failed once more; else they stay failed.
        accept_changes: Go on although the notebook's code, the data or the library changed since
            the ledger's runs finished; all runs are then new ones, and the old ones stay.
        warm: Fork kernels from a warm process, see ``warm_kernels``.

    Returns:
        As ``tables.study_table``, with the runs of the present notebook, data and library.

    Raises:
        ValueError: If the plan is wrong, the ledger cannot be read or is of another notebook,
            ``only`` names no run of the study, or ``workers`` is below 1 or given beside ``dask``.
        BlockingIOError: If the study is running already.
        ConnectionError: If there is no Dask scheduler, or it goes away. Finished runs are kept.
    """
    check_workers(workers, dask)
    plan = study if isinstance(study, StudyPlan) else read_study(study)
    source = source_of(plan)
    with hold_folder(plan.folder):
        ledger = Ledger(plan.folder)
        if not accept_changes:
            ledger.check_source(source)
        agenda = Agenda(plan, ledger, source, retry_failed=retry_failed, warm=warm)
        todo, left = agenda.jobs(only)
        try:
            if left:
                log = plan.folder / "workers.log"
                pool = DaskWorkers(dask) if dask else LocalWorkers(workers, most=left, log=log)
                with closing(pool):
                    _work(pool, todo, agenda, total=left)
        finally:
            table = write_tables(plan.folder, agenda.records())
    return table


def _work(pool: Workers, todo: Iterator[Job], agenda: Agenda, *, total: int) -> None:
    """Keep the workers busy until nothing is left to do, and write down what ends."""
    going, failed = 0, 0
    with progress_bar(total=total, unit="run", desc="study", disable=None) as bar:
        while True:
            while going < pool.slots and (job := next(todo, None)) is not None:
                pool.submit(job)
                going += 1
            if not going:
                return
            for outcome in pool.wait():
                going, failed = going - 1, failed + (not agenda.end(outcome))
                bar.set_postfix(failed=failed, refresh=False)
                bar.update()
