import numpy as np
import pandas as pd
import pytest

from renal_utils.cli import main
from renal_utils.result_folder import hold_folder
from renal_utils.studies import (
    SearchPlan,
    StudyPlan,
    average_seeds,
    read_curves,
    read_runs,
    run_study,
    running,
)
from tests.study_cases import PretendedWorkers, write_case

GRID = {"kind": ["ok", "raise"], "size": [1, 2]}
NAMES = ["kind=ok_size=1", "kind=ok_size=2", "kind=raise_size=1", "kind=raise_size=2"]


@pytest.fixture
def done(monkeypatch):
    """Names of the runs that the pretended workers did."""
    monkeypatch.setattr(PretendedWorkers, "done", [])
    monkeypatch.setattr(running, "LocalWorkers", PretendedWorkers)
    return PretendedWorkers.done


@pytest.fixture
def plan(tmp_path):
    return StudyPlan(write_case(tmp_path), tmp_path / "study", grid=GRID, parameters={"rate": 0.25})


def test_a_grid_gives_one_tidy_row_a_run_in_its_order_with_provenance(plan, done):
    table = run_study(plan)
    assert sorted(done) == NAMES
    assert table["name"].tolist() == NAMES
    assert table["status"].tolist() == ["finished", "finished", "failed", "failed"]
    assert table["f1"].tolist()[:2] == [0.25, 0.5]
    assert table["f1"].isna().tolist() == [False, False, True, True]
    assert table["error"].tolist()[2:] == ["KeyError: glomerulus"] * 2
    first = table.iloc[0]
    assert (first["rate"], first["device"], first["git_commit"]) == (0.25, "none", "c0ffee")
    assert (first["seconds"], first["result_seconds"]) == (2.0, 7)
    assert first["versions"] == "torch=2.0"
    assert table["data"].nunique() == table["notebook"].nunique() == 1
    assert table["key"].is_unique


def test_the_files_say_what_the_table_says(plan, done):
    table = run_study(plan)
    pd.testing.assert_frame_equal(pd.read_parquet(plan.folder / "runs.parquet"), table)
    from_csv = pd.read_csv(plan.folder / "runs.csv")
    assert from_csv["name"].tolist() == NAMES
    assert from_csv["f1"].tolist()[:2] == [0.25, 0.5]
    assert read_runs(plan.folder).set_index("name")["status"].to_dict() == dict(
        zip(table["name"], table["status"], strict=True)
    )
    curves = read_curves(plan.folder)
    assert curves[["name", "epoch", "val_dice"]].to_numpy().tolist() == [
        [NAMES[0], 1, 0.1],
        [NAMES[1], 1, 0.1],
    ]


def test_what_was_run_is_never_run_again(plan, done):
    first = run_study(plan)
    done.clear()
    pd.testing.assert_frame_equal(run_study(plan), first)
    assert done == []
    wider = StudyPlan(plan.notebook, plan.folder, grid={**GRID, "size": [1, 2, 3]},
                      parameters=plan.parameters)  # fmt: skip
    run_study(wider)
    assert sorted(done) == ["kind=ok_size=3", "kind=raise_size=3"]


def test_failed_runs_are_run_again_on_request_and_alone_by_name(plan, done):
    run_study(plan)
    done.clear()
    run_study(plan, only=[NAMES[2]], retry_failed=True)
    assert done == [NAMES[2]]
    run_study(plan, retry_failed=True)
    assert sorted(done[1:]) == NAMES[2:]
    with pytest.raises(ValueError, match=r"no run kind=no in this study; it has kind=ok_size=1"):
        run_study(plan, only=["kind=no"])


def test_an_interrupted_study_keeps_what_had_ended_and_goes_on_there(plan, done, monkeypatch):
    monkeypatch.setattr(PretendedWorkers, "stop_after", 3)
    with pytest.raises(KeyboardInterrupt):
        run_study(plan)
    assert len(pd.read_csv(plan.folder / "runs.csv")) == 3
    monkeypatch.setattr(PretendedWorkers, "stop_after", None)
    assert run_study(plan)["name"].tolist() == NAMES
    assert len(done) == 4


def test_a_changed_notebook_is_refused_until_accepted_and_loses_nothing(plan, done, tmp_path):
    run_study(plan)
    before = (plan.folder / "ledger.jsonl").read_text()
    write_case(tmp_path, "print('new')")
    with pytest.raises(ValueError, match=r"study/ledger.jsonl|ledger.jsonl holds 2 finished runs"):
        run_study(plan)
    assert (plan.folder / "ledger.jsonl").read_text() == before
    done.clear()
    table = run_study(plan, accept_changes=True)
    assert sorted(done) == NAMES
    assert len(table) == 4
    assert len(read_runs(plan.folder)) == 8
    assert (plan.folder / "ledger.jsonl").read_text().startswith(before)


def test_a_broken_ledger_and_a_study_that_is_running_already_are_refused(plan, done):
    with hold_folder(plan.folder), pytest.raises(BlockingIOError, match="another process"):
        run_study(plan)
    (plan.folder / "ledger.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1, is no record of a run"):
        run_study(plan)
    assert done == []


def test_a_search_finds_the_best_goes_on_and_runs_nothing_twice(tmp_path, done):
    pytest.importorskip("optuna")
    space = {"size": {"low": 0, "high": 30}, "rate": {"choices": [0.0, 0.5]}}

    def plan(trials):
        search = SearchPlan(trials, "f1", space, seed=1)
        return StudyPlan(write_case(tmp_path), tmp_path / "search", search=search)

    run_study(plan(6))
    early = len(done)
    table = run_study(plan(25))
    assert early == 6
    assert len(set(done)) == len(done) == len(table) == 25
    assert table["f1"].max() >= 12
    run_study(plan(25))
    assert len(done) == len(table)


def test_a_search_of_a_space_that_is_used_up_ends(tmp_path, done):
    pytest.importorskip("optuna")
    search = SearchPlan(9, "f1", {"size": {"choices": [1, 2, 3]}})
    assert len(run_study(StudyPlan(write_case(tmp_path), tmp_path / "s", search=search))) == 3


def test_a_search_that_is_to_be_minimised_prefers_the_least(tmp_path, done):
    pytest.importorskip("optuna")
    search = SearchPlan(20, "f1", {"size": {"low": 1, "high": 64, "log": True}}, "minimize")
    table = run_study(StudyPlan(write_case(tmp_path), tmp_path / "s", search=search))
    assert table["f1"].min() == 0.5
    assert table["size"].median() < 32


def test_seeds_give_a_mean_and_a_spread_for_each_cell():
    rows = [("finished", 1, 8, 0.2), ("finished", 1, 8, 0.4), ("finished", 2, 8, 0.5)]
    rows += [("finished", 2, 16, 0.7), ("failed", 2, 16, np.nan), ("finished", 1, 16, np.nan)]
    table = pd.DataFrame(rows, columns=["status", "rate", "size", "f1"])
    mean, spread = average_seeds(table, "f1", rows="rate", columns="size")
    expected = pd.DataFrame([[0.3, np.nan], [0.5, 0.7]], index=[1, 2], columns=[8, 16])
    assert np.allclose(mean, expected, equal_nan=True)
    assert spread.loc[1, 8] == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert spread.loc[2].isna().all()
    with pytest.raises(ValueError, match=r"no column \['recall'\]"):
        average_seeds(table, "recall", rows="rate", columns="size")
    with pytest.raises(ValueError, match=r"no column \['status'\]; the table has \['rate'"):
        average_seeds(table.drop(columns="status"), "f1", rows="rate", columns="size")
    with pytest.raises(ValueError, match="no run finished"):
        average_seeds(table[table["status"] == "failed"], "f1", rows="rate", columns="size")


def test_the_command_line_runs_a_study_and_says_what_failed(tmp_path, done, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(
        f"notebook: {write_case(tmp_path)}\nfolder: {tmp_path / 'out'}\n"
        "grid:\n  kind: [ok, raise]\n  size: [1]\n"
    )
    assert main(["study", str(path), "--list"]) == 0
    assert capsys.readouterr().out.split() == [NAMES[0], NAMES[2]]
    assert done == []
    assert main(["study", str(path)]) == 1
    said = capsys.readouterr()
    assert "1 runs finished, 1 failed" in said.out
    assert f"{NAMES[2]}: KeyError: glomerulus" in said.err
    assert main(["study", str(path), "--only", NAMES[0]]) == 1
    path.write_text("notebook: absent.ipynb\n")
    assert main(["study", str(path)]) == 2
