"""Real runs by real processes; each notebook takes a fraction of a second once kernels are warm."""

import os
import time

import psutil
import pytest

from renal_utils.notebooks import read_notebook
from renal_utils.runtime import count_cores
from renal_utils.studies import StudyPlan, local_workers, read_curves, run_study
from renal_utils.studies.jobs import Job
from renal_utils.studies.local_workers import LocalWorkers, visible_gpus
from renal_utils.studies.notebook_runs import run_notebook
from renal_utils.studies.warm_kernels import can_fork_warm
from tests.study_cases import write_case

pytestmark = pytest.mark.slow

warm_only = pytest.mark.skipif(not can_fork_warm(), reason="no fork server on this system")


def is_gone(pid, *, within=10.0):
    ends = time.monotonic() + within
    while time.monotonic() < ends:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_a_study_goes_on_past_runs_that_fail_die_or_hang(tmp_path):
    grid = {"kind": ["ok", "hang", "die", "raise", "kill worker"]}
    marker = tmp_path / "marker"
    plan = StudyPlan(write_case(tmp_path), tmp_path / "study", grid=grid, time_limit=2,
                     parameters={"marker": str(marker)})  # fmt: skip
    table = run_study(plan, workers=2).set_index("kind")
    assert table["status"].to_dict() == {
        "ok": "finished",
        "hang": "failed",
        "die": "failed",
        "raise": "failed",
        "kill worker": "finished",
    }
    errors = table["error"]
    assert "code cell 3" in errors["hang"]
    assert "the run took longer than its limit of 2 s" in errors["hang"]
    assert "most likely because memory ran out" in errors["die"]
    assert "KeyError: 'glomerulus'" in errors["raise"]
    assert is_gone(int(marker.read_text()))  # the kernel of the worker that was killed
    assert table.loc["ok", "f1"] == 0.5
    assert table["threads"].eq(max(1, count_cores() // 2)).all()
    assert read_curves(plan.folder).groupby("name")["val_dice"].max().tolist() == [0.2, 0.2]
    written = sorted(path.name for path in (plan.folder / "runs").iterdir())
    assert len([name for name in written if name.endswith(".failed.ipynb")]) == 3
    assert len(written) == 5


def test_a_run_that_always_takes_its_worker_along_fails_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(local_workers, "MAX_LOST", 2)
    parameters = {"kind": "always kill worker", "marker": str(tmp_path / "marker")}
    job = Job("k", "name", write_case(tmp_path), tmp_path / "out.ipynb", parameters)
    pool = LocalWorkers(1)
    try:
        pool.submit(job)
        (outcome,) = pool.wait()
        assert "lost its worker 2 times" in outcome.error
        pids = pool.pids
    finally:
        pool.close()
    assert all(is_gone(pid) for pid in pids)


def test_closing_ends_the_run_that_is_going_on_and_its_kernel(tmp_path):
    case = write_case(tmp_path)
    parameters = {"kind": "hang"}
    pool = LocalWorkers(1)
    pool.submit(Job("k", "name", case, tmp_path / "out.ipynb", parameters))
    worker, kernels = psutil.Process(pool.pids[0]), []
    ends = time.monotonic() + 60
    while not kernels and time.monotonic() < ends:
        # a kernel is a child of the fork server, which is a child of the worker
        kernels = [c for child in worker.children() for c in child.children()]
        time.sleep(0.1)
    pool.close()
    assert kernels
    assert all(is_gone(process.pid) for process in [worker, *kernels])


@warm_only
def test_a_warm_kernel_is_a_kernel_like_any_other(small_notebook, tmp_path):
    cells = [
        "x = 1",
        "import matplotlib.pyplot as plt\n_ = plt.plot([0, 1])\nplt.show()",
        "import multiprocessing, os, sys\nfrom pathlib import Path\n"
        "print(multiprocessing.get_start_method(), Path('x').resolve().parent.name)\n"
        "print(sys.path[0] == '', os.environ.get('TQDM_DISABLE'), __name__, sys.stdin is None)",
        "leaked = globals().get('mark', 'fresh')\nmark = 'used'\nprint(leaked, x)",
    ]
    path = small_notebook(*cells)

    def texts(warm, **parameters):
        run = run_notebook(
            path, output=tmp_path / "o" / "a.ipynb", warm=warm, parameters=parameters
        )

        cells = [c for c in read_notebook(run.output).cells if c.cell_type == "code"]
        return [[o.get("text", sorted(o.get("data", []))) for o in c.outputs] for c in cells]

    cold = texts(False, x=5)
    assert cold[-1] == ["fresh 5\n"]
    assert cold[2] == [["image/png", "text/plain"]]
    assert texts(True, x=5) == cold
    assert texts(True, x=5) == cold  # nothing of one run is seen by the next


def test_gpus_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers must be 1 or more, given 0"):
        LocalWorkers(0)


def test_processes_here_and_a_cluster_are_not_both_taken(tmp_path):
    with pytest.raises(ValueError, match=r"workers \(2\) .* dask \(tcp://x:1\) .* give one"):
        run_study(tmp_path / "absent.yaml", workers=2, dask="tcp://x:1")


def test_what_workers_and_kernels_print_goes_to_the_studys_log_and_not_here(tmp_path, capfd):
    noise = "import os\n\nos.write(2, b'from the kernel')"
    plan = StudyPlan(write_case(tmp_path, noise), tmp_path / "study", grid={"size": [1]})
    run_study(plan, workers=1)
    assert "from the kernel" in (plan.folder / "workers.log").read_text()
    assert "from the kernel" not in "".join(capfd.readouterr())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_workers_share_the_cores_that_this_process_may_use_not_those_of_the_machine():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert count_cores() == 1
        pool = LocalWorkers(None, most=9)
        pool.close()
    finally:
        os.sched_setaffinity(0, allowed)
    assert pool.slots == max(1, len(visible_gpus()))
    assert count_cores() == len(allowed)
