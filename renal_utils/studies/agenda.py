"""The agenda of a study: which runs are still to do, and what to write of those that end."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from renal_utils.studies.jobs import Job, Outcome
from renal_utils.studies.ledger import FAILED, FINISHED, Ledger
from renal_utils.studies.plan import PlannedRun, StudyPlan, run_key
from renal_utils.studies.search import Search

_MOST_REPEATED = 50


class Agenda:
    """The runs of one study, those done and those to do.

    Args:
        plan: The study.
        ledger: Of its folder.
        source: See ``plan.source_of``.
        retry_failed: Whether failed runs are to be done again.
        warm: Whether kernels are to be warm.
    """

    def __init__(
        self,
        plan: StudyPlan,
        ledger: Ledger,
        source: Mapping[str, str],
        *,
        retry_failed: bool,
        warm: bool,
    ) -> None:
        self.plan, self.ledger, self.source = plan, ledger, dict(source)
        self._retry_failed, self._warm = retry_failed, warm
        self._search = Search(plan.search) if plan.search else None
        self._going: dict[str, tuple[PlannedRun, int | None]] = {}

    def jobs(self, only: Sequence[str] | None) -> tuple[Iterator[Job], int]:
        """Return the runs to do, made when they are taken, and how many there are."""
        if self._search:
            if only or self._retry_failed:
                raise ValueError("a search chooses its runs itself; single ones cannot be named")
            left = self.plan.search.trials - self._search.remember(self._earlier_trials())
            return self._trials(left), max(0, left)
        runs = self.plan.runs()
        if unknown := sorted(set(only or ()) - {run.name for run in runs}):
            raise ValueError(
                f"no run {', '.join(unknown)} in this study; it has {runs[0].name} and "
                f"{len(runs) - 1} more"
            )
        chosen = [run for run in runs if only is None or run.name in only]
        left = [run for run in chosen if self._is_open(run)]
        return (self._begin(run) for run in left), len(left)

    def end(self, outcome: Outcome) -> bool:
        """Write down how a run ended; say whether it finished."""
        run, trial = self._going.pop(outcome.key)
        record = {
            "key": outcome.key,
            "name": run.name,
            "status": FAILED if outcome.error else FINISHED,
            "parameters": dict(run.parameters),
            "results": dict(outcome.results),
            "curve": list(outcome.curve),
            "seconds": round(outcome.seconds, 3),
            "error": outcome.error,
            "source": self.source,
            "provenance": dict(outcome.provenance),
        }
        self.ledger.add(record)
        if self._search and trial is not None:
            self._search.tell(trial, self._value(record))
        return not outcome.error

    def records(self) -> list[dict[str, Any]]:
        """Return the ledger's runs of the present source, those of the grid first, in its order."""
        runs = enumerate(self.plan.runs())
        place = {run_key(self.plan, run, self.source): number for number, run in runs}
        current = [r for r in self.ledger.records.values() if r["source"] == self.source]
        return sorted(current, key=lambda record: place.get(record["key"], len(place)))

    def _is_open(self, run: PlannedRun) -> bool:
        record = self.ledger.find(run_key(self.plan, run, self.source))
        return record is None or (record["status"] == FAILED and self._retry_failed)

    def _begin(self, run: PlannedRun, trial: int | None = None) -> Job:
        key = run_key(self.plan, run, self.source)
        self._going[key] = (run, trial)
        output = Path(self.plan.folder) / "runs" / f"{run.name}.{key[:8]}.ipynb"
        notebook, limit = Path(self.plan.notebook), self.plan.time_limit
        return Job(key, run.name, notebook, output, run.parameters, limit, self._warm)

    def _trials(self, left: int) -> Iterator[Job]:
        """Ask for trials; one that was run already is told at once and does not count.

        A small space may have no new one to offer: after so many old ones in a row it ends.
        """
        repeated = 0
        while self._search is not None and left > 0 and repeated < _MOST_REPEATED:
            number, chosen = self._search.ask()
            run = self.plan.plan_run(chosen)
            key = run_key(self.plan, run, self.source)
            record = self.ledger.find(key)
            if record is None and key not in self._going:
                left, repeated = left - 1, 0
                yield self._begin(run, number)
            else:
                repeated += 1
                self._search.tell(number, None if record is None else self._value(record))

    def _earlier_trials(self) -> Iterator[tuple[Mapping[str, Any], float | None]]:
        """Yield the runs in the ledger that this search could have asked for."""
        varied = self.plan.varied
        for key, record in self.ledger.records.items():
            if not set(varied) <= set(record["parameters"]):
                continue
            run = self.plan.plan_run({name: record["parameters"][name] for name in varied})
            if run_key(self.plan, run, self.source) == key:
                yield run.parameters, self._value(record)

    def _value(self, record: Mapping[str, Any]) -> float | None:
        value = record["results"].get(self.plan.search.result) if self.plan.search else None
        return float(value) if isinstance(value, int | float) else None
