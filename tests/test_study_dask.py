"""Studies on Dask clusters of this machine, over the loopback interface."""

import json
import subprocess
import sys
import threading
import time

import pytest

from renal_utils.studies import StudyPlan, run_study
from tests.study_cases import write_case

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


@pytest.fixture
def programs():
    """Give a function that starts a program of Dask, and end them all."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", *arguments]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for program in started:
        program.kill()
        program.wait()


def wait_for(path):
    ends = time.monotonic() + 60
    while not path.exists() and time.monotonic() < ends:
        time.sleep(0.1)
    return str(path)


def test_a_local_cluster_does_a_study_and_replaces_a_killed_worker(tmp_path):
    from distributed import LocalCluster

    grid = {"kind": ["raise", "kill worker"]}
    plan = StudyPlan(write_case(tmp_path), tmp_path / "study", grid=grid,
                     parameters={"marker": str(tmp_path / "marker")})  # fmt: skip
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        table = run_study(plan, dask=cluster.scheduler_address).set_index("kind")
    assert table["status"].to_list() == ["failed", "finished"]
    assert "KeyError" in table.loc["raise", "error"]
    assert (tmp_path / "marker").exists()
    assert table["device"].notna().all()


def test_scheduler_and_worker_do_a_study_and_a_lost_scheduler_loses_no_finished_run(
    tmp_path, programs
):
    address = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--no-dashboard"]
    scheduler = programs(
        "distributed.cli.dask_scheduler", *options, "--port", "0", "--scheduler-file", str(address)
    )
    file = wait_for(address)
    worker = ["--scheduler-file", file, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    programs("distributed.cli.dask_worker", *worker)
    place = json.loads(address.read_text())["address"]
    case = write_case(tmp_path)
    kinds = {"kind": ["ok"], "size": [1, 2]}
    plan = StudyPlan(case, tmp_path / "study", grid=kinds)
    ends = time.monotonic() + 60
    while True:
        try:
            table = run_study(plan, dask=place)
            break
        except ConnectionError as error:  # the worker is still on its way
            assert "has no worker" in str(error) and time.monotonic() < ends
            time.sleep(0.2)
    assert table["status"].tolist() == ["finished", "finished"]

    more = StudyPlan(case, tmp_path / "study", grid={"kind": ["ok", "hang"], "size": [1, 2]})
    threading.Timer(3, scheduler.kill).start()
    with pytest.raises(ConnectionError, match="is gone; the runs that had finished are in the"):
        run_study(more, dask=place)
    local = run_study(more, workers=1, only=["kind=ok_size=1"])
    assert local["status"].tolist() == ["finished", "finished"]


def test_no_scheduler_is_a_clear_message(tmp_path, monkeypatch):
    monkeypatch.setattr("renal_utils.dask_clusters._SECONDS", 0.5)
    plan = StudyPlan(write_case(tmp_path), tmp_path / "study", grid={"size": [1]})
    with pytest.raises(ConnectionError, match="no Dask scheduler answers at tcp"):
        run_study(plan, dask="tcp://127.0.0.1:9")
