import math

import numpy as np
import pandas as pd
import pytest

from renal_utils.recording import (
    RESULTS_VARIABLE,
    read_recorded,
    record_curve,
    record_results,
)


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    monkeypatch.setenv(RESULTS_VARIABLE, str(path))
    return path


def test_what_is_recorded_is_read_again(ledger):
    record_results(f1=0.5, name="unet")
    record_results(f1=0.75, count=3, nothing=None)
    history = pd.DataFrame({"val_dice": [0.1, np.nan]}, index=pd.Index([1, 2], name="epoch"))
    record_curve(history)
    found = read_recorded(ledger)
    assert found.results == {"f1": 0.75, "name": "unet", "count": 3, "nothing": None}
    assert found.curve == ({"epoch": 1, "val_dice": 0.1}, {"epoch": 2, "val_dice": None})


def test_a_number_that_is_not_finite_becomes_none(ledger):
    record_results(f1=math.nan, worst=-math.inf)
    assert read_recorded(ledger).results == {"f1": None, "worst": None}


def test_outside_a_run_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv(RESULTS_VARIABLE, raising=False)
    record_results(f1=1.0)
    assert read_recorded(tmp_path / "absent.jsonl").results == {}
