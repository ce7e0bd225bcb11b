"""Layer 3: each notebook runs with other parameters than its own, and gives the same twice.

The parameters stand in tests/notebook_parameters/NN.yaml. Also: the parameters of other scales fit.
"""

import pytest
from conftest import LESSONS, PROJECT, run_nbval

from renal_utils.notebooks import check_parameters, read_defaults, read_parameters
from renal_utils.studies import run_notebook


def other_parameters(path):
    return read_parameters(PROJECT / "tests" / "notebook_parameters" / f"{path.name[:2]}.yaml")


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_other_parameters_differ_from_the_defaults(path):
    given, defaults = check_parameters(path, other_parameters(path)), read_defaults(path)
    assert given, "give at least one parameter"
    assert "output_folder" not in given, "the test sets it"
    assert all(value != defaults[name] for name, value in given.items())


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_full_scale_parameters_fit_the_notebook(path):
    file = path.parent / "params" / f"{path.name[:2]}_full.yaml"
    given, defaults = check_parameters(path, read_parameters(file)), read_defaults(path)
    assert any(value != defaults[name] for name, value in given.items())


@pytest.mark.parametrize(
    "file", sorted((PROJECT / "notebooks" / "params").glob("*.yaml")), ids=lambda path: path.stem
)
def test_no_other_scale_is_held_against_the_bands_of_the_small_one(file):
    (lesson,) = (path for path in LESSONS if path.name[:2] == file.name[:2])
    given = check_parameters(lesson, read_parameters(file))
    if "bands_file" in read_defaults(lesson):
        assert given["bands_file"] == f"notebooks/bands/{file.stem}.json"


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_notebook_runs_with_other_parameters_and_repeats(path, tmp_path, monkeypatch):
    parameters = other_parameters(path)
    if "output_folder" in read_defaults(path):
        parameters["output_folder"] = str(tmp_path / "output")
    made = run_notebook(path, parameters=parameters, output=tmp_path / path.name, timeout=300)
    assert all(name in made.output.read_text() for name in parameters)
    monkeypatch.setenv("RENAL_HOME", str(PROJECT))
    done = run_nbval(made.output)
    assert done.returncode == 0, done.stdout + done.stderr
