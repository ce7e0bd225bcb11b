"""A notebook that ends in all the ways that a run can end, and workers that pretend to run it."""

from pathlib import Path

import nbformat
from nbformat import v4

from renal_utils.studies.jobs import Job, Outcome

PARAMETERS = 'kind = "ok"\nsize = 1\nrate = 0.5\nmarker = ""'
CODE = """
import multiprocessing
import os
import time
from pathlib import Path

import pandas as pd

from renal_utils.recording import record_curve, record_results

if kind == "raise":
    raise KeyError("glomerulus")
if kind == "die":
    os.kill(os.getpid(), 9)
if kind == "hang":
    time.sleep(300)
if kind == "kill worker" and not Path(marker).exists() or kind == "always kill worker":
    Path(marker).write_text(str(os.getpid()))
    parent = multiprocessing.parent_process()
    os.kill(parent.pid if parent else os.getppid(), 9)
    time.sleep(300)
record_results(f1=size * rate, pid=os.getpid())
record_curve(pd.DataFrame({"val_dice": [0.1, 0.2 * size]}, index=[1, 2]))
"""


def write_case(folder: Path, *more: str) -> Path:
    """Write the notebook; cells in ``more`` come last."""
    cells = [v4.new_code_cell(text, id=f"c{n}") for n, text in enumerate((PARAMETERS, CODE, *more))]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "case.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


class PretendedWorkers:
    """Do runs at once, in this process: F1 is size times rate, kind "raise" fails."""

    done: list[str] = []  # noqa: RUF012  names of all runs, over all studies of a test
    stop_after: int | None = None

    def __init__(self, count: int | None = None, *, most: int = 1, log: Path | None = None) -> None:
        self.slots, self._jobs, self.closed = count or 2, [], False

    def submit(self, job: Job) -> None:
        assert len(self._jobs) < self.slots
        self._jobs.append(job)

    def wait(self) -> list[Outcome]:
        job = self._jobs.pop(0)
        if self.stop_after is not None and len(self.done) >= self.stop_after:
            raise KeyboardInterrupt
        self.done.append(job.name)
        values = {"size": 1, "rate": 0.5, "kind": "ok", **job.parameters}
        known = {"device": "none", "versions": {"torch": "2.0"}, "git_commit": "c0ffee"}
        if values["kind"] == "raise":
            return [Outcome(job.key, "KeyError: glomerulus", 1.0, provenance=known)]
        results = {"f1": values["size"] * values["rate"], "seconds": 7}
        curve = ({"epoch": 1, "val_dice": 0.1},)
        return [Outcome(job.key, None, 2.0, results, curve, known)]

    def close(self) -> None:
        self.closed = True
