import json

import numpy as np
import pytest

from renal_utils.bands import check_bands, read_bands


@pytest.fixture
def band_file(tmp_path):
    path = tmp_path / "04.json"
    path.write_text(json.dumps({"dice": [0.7, 1], "steps": [10, 20]}))
    return path


@pytest.mark.parametrize(
    ("dice", "inside"),
    [(0.7, True), (1.0, True), (0.85, True), (0.699, False), (1.01, False), (float("nan"), False)],
)
def test_values_are_held_against_their_bands_ends_included(band_file, capsys, dice, inside):
    assert check_bands(band_file, steps=15, dice=dice) == {"dice": inside, "steps": True}
    assert capsys.readouterr().out == (
        f"dice within its band [0.7, 1]: {inside}\nsteps within its band [10, 20]: True\n"
    )


def test_the_scalars_of_numpy_are_values_too(band_file):
    assert check_bands(band_file, steps=int(np.int64(12)), dice=np.float64(0.8)) == {
        "dice": True,
        "steps": True,
    }


def test_missing_and_unknown_names_are_both_told(band_file):
    with pytest.raises(ValueError, match=r"04\.json.*missing values: steps.*without a band: loss"):
        check_bands(band_file, dice=0.8, loss=0.1)


def test_relative_paths_start_at_the_project(band_file, monkeypatch, tmp_path):
    monkeypatch.setenv("RENAL_HOME", str(band_file.parent))
    monkeypatch.chdir(tmp_path.parent)
    assert check_bands("04.json", dice=0.8, steps=11)["dice"]


@pytest.mark.parametrize(
    "content",
    ['{"dice": [1, 0]}', '{"dice": 0.5}', '{"dice": [0.1]}', '{"dice": ["a", "b"]}', "{}"],
)
def test_a_file_without_proper_bands_is_named(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_bands(path)


def test_the_exact_values_go_to_the_launchers_ledger(band_file, monkeypatch, tmp_path):
    monkeypatch.setenv("RENAL_BANDS_LEDGER", str(tmp_path / "bands.jsonl"))
    check_bands(band_file, dice=1 / 3, steps=15)
    rows = [json.loads(line) for line in (tmp_path / "bands.jsonl").read_text().splitlines()]
    assert [(r["bands"], r["name"], r["value"], r["low"], r["high"]) for r in rows] == [
        ("04.json", "dice", 1 / 3, 0.7, 1.0),
        ("04.json", "steps", 15.0, 10.0, 20.0),
    ]


def test_a_run_without_bands_tells_its_numbers_and_hands_them_on(monkeypatch, tmp_path, capsys):
    ledger = tmp_path / "bands.jsonl"
    monkeypatch.setenv("RENAL_BANDS_LEDGER", str(ledger))
    assert check_bands(tmp_path / "04_full.json", dice=2 / 3, steps=15) == {}
    assert capsys.readouterr().out == (
        "no band for this run, since there is no 04_full.json; its numbers:\n"
        "dice = 0.6667\nsteps = 15\n"
    )
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert rows[0] == {
        "bands": "04_full.json", "name": "dice", "value": 2 / 3, "low": None, "high": None,
    }  # fmt: skip
    assert [row["name"] for row in rows] == ["dice", "steps"]


def test_a_file_may_say_what_its_bands_rest_on(tmp_path, capsys):
    path = tmp_path / "04.json"
    path.write_text('{"rests_on": "seeds 0, 1 and 2", "dice": [0.7, 1]}')
    assert read_bands(path) == {"dice": (0.7, 1.0)}
    assert check_bands(path, dice=0.8) == {"dice": True}
    assert "seeds" not in capsys.readouterr().out
    for wrong in ('{"rests_on": "seeds 0, 1 and 2"}', '{"rests_on": [0, 1], "dice": [0.7, 1]}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"04\.json"):
            read_bands(path)
