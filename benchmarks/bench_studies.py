"""What a study costs besides its runs, and what a second worker brings.

Trivial runs import torch and the library, as every lesson does, and then count for a second on one
thread. First one run each in a cold and in a warm kernel. Then 16 runs on two workers whose kernels
are warm: their wall time over the sum of the runs' own times divided by two, target at most 1.3;
a run's own time is what the study's table gives, from the kernel's start to its end, and the ratio
to what the cells alone took is printed beside it. Then two workers against one in runs per minute,
target at least 1.7.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from nbformat import v4

from renal_utils.notebooks import read_notebook, write_notebook
from renal_utils.studies.jobs import Job
from renal_utils.studies.local_workers import LocalWorkers
from renal_utils.studies.notebook_runs import run_notebook

RUNS, WORK_SECONDS = 16, 1.0
MOST_OVERHEAD, LEAST_GAIN = 1.3, 1.7
CELLS = (
    "number = 0",
    "import time\n\nimport torch\n\nimport renal_utils.plots\nimport renal_utils.trials",
    f"ends = time.thread_time() + {WORK_SECONDS}\n"
    "while time.thread_time() < ends:\n    sum(range(1000))",
)


def write_trivial(folder: Path) -> Path:
    """Write the notebook of the runs."""
    cells = [v4.new_code_cell(source) for source in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "trivial.ipynb"
    write_notebook(path, v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}))
    return path


def cell_seconds(notebook: Path) -> float:
    """Return what the cells of an executed notebook took."""
    return sum(cell.metadata.papermill.duration for cell in read_notebook(notebook).cells)


def measure_kernels(notebook: Path, folder: Path) -> None:
    """Print what a run takes that has nothing to do, in a cold and in a warm kernel."""
    for warm, name in ((False, "cold"), (True, "warm, the first"), (True, "warm")):
        run = run_notebook(notebook, output=folder / "kernel.ipynb", warm=warm)
        print(f"  {name} kernel: {run.seconds - WORK_SECONDS:.2f} s besides its work")


def measure_study(notebook: Path, folder: Path, workers: int) -> tuple[float, float, float]:
    """Return the wall time of the runs, the sum of their own times, and that of their cells."""
    jobs = [
        Job(f"{n}", f"run{n}", notebook, folder / f"{workers}_{n}.ipynb", {"number": n})
        for n in range(-workers, RUNS)
    ]
    pool = LocalWorkers(workers, most=workers)
    try:
        outcomes = work(pool, jobs[:workers])
        started = time.perf_counter()
        outcomes = work(pool, jobs[workers:])
        wall = time.perf_counter() - started
    finally:
        pool.close()
    assert not [outcome.error for outcome in outcomes if outcome.error]
    own = sum(outcome.seconds for outcome in outcomes)
    return wall, own, sum(cell_seconds(job.output) for job in jobs[workers:])


def work(pool: LocalWorkers, jobs: list[Job]) -> list:
    """Do all jobs, as ``studies.run_study`` does."""
    waiting, going, outcomes = list(jobs), 0, []
    while waiting or going:
        while waiting and going < pool.slots:
            pool.submit(waiting.pop(0))
            going += 1
        done = pool.wait()
        going -= len(done)
        outcomes += done
    return outcomes


def main() -> int:
    """Return 0 if both ratios meet their targets."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notebook = write_trivial(folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        measure_kernels(notebook, folder)
        one, _, _ = measure_study(notebook, folder, 1)
        two, own, cells = measure_study(notebook, folder, 2)
    ratio, gain = two / (own / 2), one / two
    print(f"  {RUNS} runs on 2 workers: {two:.1f} s; own times {own:.1f} s, cells {cells:.1f} s")
    print(f"  wall over own times / 2: {ratio:.2f} (at most {MOST_OVERHEAD})")
    print(f"  wall over the cells' times / 2: {two / (cells / 2):.2f} (no target)")
    print(f"  2 workers over 1, runs a minute: {gain:.2f} (at least {LEAST_GAIN})")
    return int(ratio > MOST_OVERHEAD or gain < LEAST_GAIN)


if __name__ == "__main__":
    sys.exit(main())
