import json

import pytest

from renal_utils.studies.ledger import Ledger

SOURCE = {"notebook": "n1", "data": "d1", "library": "0.1"}


def record(key="a", status="finished", **changes):
    made = {"key": key, "name": f"bs{key}", "status": status, "parameters": {}, "source": SOURCE}
    return made | changes


def statuses(folder):
    return {key: found["status"] for key, found in Ledger(folder).records.items()}


def test_what_is_added_is_there_when_the_ledger_is_opened_again(tmp_path):
    ledger = Ledger(tmp_path / "new")
    assert ledger.find("a") is None
    ledger.add(record("a"))
    ledger.add(record("b", "failed", error="memory"))
    assert Ledger(tmp_path / "new").records == ledger.records
    assert Ledger(tmp_path / "new").find("b")["error"] == "memory"


def test_a_failed_run_can_be_replaced_and_a_finished_one_cannot(tmp_path):
    ledger = Ledger(tmp_path)
    for status in ("failed", "finished", "failed"):
        ledger.add(record("a", status))
    assert ledger.find("a")["status"] == "finished"
    assert statuses(tmp_path) == {"a": "finished"}


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_last_line_cut_off_by_a_kill_is_dropped_and_no_other(tmp_path, cut):
    ledger = Ledger(tmp_path)
    ledger.add(record("a"))
    whole = ledger.path.read_text()
    line = json.dumps(record("b")) + "\n"
    ledger.path.write_text(whole + line[:cut])
    assert statuses(tmp_path) == {"a": "finished"}
    assert ledger.path.read_text() == whole
    Ledger(tmp_path).add(record("c"))
    assert statuses(tmp_path) == {"a": "finished", "c": "finished"}


@pytest.mark.parametrize("broken", ["{", "[]", "{}", "\xff", ""])
def test_an_unreadable_ledger_is_refused_by_line_and_left_as_it_is(tmp_path, broken):
    ledger = Ledger(tmp_path)
    ledger.add(record("a"))
    with ledger.path.open("a", encoding="latin-1") as file:
        file.write(broken + "\n" + json.dumps(record("b")) + "\n")
    before = ledger.path.read_bytes()
    with pytest.raises(ValueError, match=r"ledger.jsonl, line 2, is no record of a run"):
        Ledger(tmp_path)
    assert ledger.path.read_bytes() == before


def test_a_ledger_of_another_notebook_is_refused_and_says_what_changed(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.check_source(SOURCE)
    ledger.add(record("x", "failed"))
    ledger.check_source({**SOURCE, "notebook": "n2"})  # nothing finished that could be mixed
    ledger.add(record("a"))
    ledger.check_source(SOURCE)
    with pytest.raises(ValueError, match=r"1 finished runs.*the notebook's code changed.*are kept"):
        ledger.check_source({**SOURCE, "notebook": "n2"})
    with pytest.raises(ValueError, match=r"the data and the library changed"):
        ledger.check_source({**SOURCE, "data": "d2", "library": "0.2"})
    ledger.add(record("b", source={**SOURCE, "data": "d2"}))
    ledger.check_source({**SOURCE, "data": "d2"})
