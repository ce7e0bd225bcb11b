import pytest
import yaml
from conftest import PROJECT

from renal_utils.studies.plan import StudyPlan, read_study, run_key, source_of
from renal_utils.studies.search import SearchPlan

PARAMETERS = 'batch_size = 8\nlearning_rate = 0.1\nname = "unet"'


@pytest.fixture
def notebook(small_notebook):
    return small_notebook(PARAMETERS, "print(batch_size)")


def study_file(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def keys(plan):
    source = source_of(plan)
    return [run_key(plan, run, source) for run in plan.runs()]


def test_a_grid_is_every_combination_with_the_notebooks_types(notebook, tmp_path):
    text = f"notebook: {notebook}\nparameters: {{name: fcn}}\n"
    plan = read_study(
        study_file(tmp_path, text + "grid: {batch_size: [8, 16], learning_rate: [1, 1.0e-4]}\n")
    )
    names = ["bs8_lr1", "bs8_lr0p0001", "bs16_lr1", "bs16_lr0p0001"]
    assert [run.name for run in plan.runs()] == names
    first = plan.runs()[0].parameters
    assert first == {"name": "fcn", "batch_size": 8, "learning_rate": 1.0}
    assert type(first["learning_rate"]) is float
    assert plan.varied == ("batch_size", "learning_rate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {batch: [1]}", "no parameter 'batch'; did you mean 'batch_size'"),
        ("grid: {batch_size: [1.5]}", "takes a whole number like 8"),
        ("grid: {learning_rate: [1e-4]}", "write a point and a sign"),
        ("grid: {batch_size: []}", "the grid is empty: no values for batch_size"),
        ("grid: {batch_size: 8}", r"must be a list like \[1, 2\]"),
        ("parameters: {batch_size: 8}", "needs a grid or a search, and not both"),
        ("grid: {}", "needs a grid or a search"),
        ("grid: {batch_size: [8, 16, 8]}", "runs that are the same: bs8"),
        ("grid: {learning_rate: [1, 1.0]}", "runs that are the same: lr1"),
        ("parameters: {batch_size: 8}\ngrid: {batch_size: [9]}", "given for all runs and varied"),
        ("grid: {batch_size: [8]}\ntime_limit: 0", "seconds above 0, given 0"),
        ("grid: {batch_size: [8]}\ndata: absent_folder", "no such data: absent_folder"),
        ("grids: {batch_size: [8]}", "grids not known; it may have notebook, folder"),
        ("search: {trials: 3, result: f1, space: {}}", "the space is empty"),
        ("search: {trials: 0, result: f1, space: {batch_size: {choices: [8]}}}", "above 0, not 0"),
        (
            "search: {trials: 3, result: f1, space: {batch_size: {low: 1.5, high: 9}}}",
            "takes a whole number like 8",
        ),
        (
            "search: {trials: 3, result: f1, space: {batch_size: {low: 9, high: 2}}}",
            "low < high, given 9 and 2",
        ),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(notebook, tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_study(study_file(tmp_path, f"notebook: {notebook}\n{text}\n"))
    assert "study.yaml" in str(caught.value)


def test_a_file_that_is_no_study_and_an_absent_notebook_are_refused(tmp_path):
    for text in ("- 1\n", "grid: {a: [1]}\n"):
        with pytest.raises(ValueError, match="have 'notebook' among them"):
            read_study(study_file(tmp_path, text))
    with pytest.raises(ValueError, match=r"not valid YAML"):
        read_study(study_file(tmp_path, "a: [1\n"))
    with pytest.raises(FileNotFoundError, match=r"absent.ipynb"):
        read_study(study_file(tmp_path, "notebook: absent.ipynb\ngrid: {a: [1]}\n"))


def test_the_key_follows_code_parameters_and_data_and_nothing_else(small_notebook, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.bin").write_bytes(b"1")
    grid = {"batch_size": [8, 16]}

    def made(parameters=PARAMETERS, code="print(batch_size)", **options):
        path = small_notebook(parameters, code)
        return keys(StudyPlan(path, tmp_path / "s", grid=grid, data=[data], **options))

    first = made()
    assert len(set(first)) == 2
    assert made(time_limit=5) == first
    assert made(parameters=PARAMETERS + "  # a remark") == first
    assert made(parameters=PARAMETERS.replace("= 8", "= 9")) == first  # a default not used
    assert not set(made(code="print(1)")) & set(first)
    assert made(parameters=PARAMETERS.replace("0.1", "0.2")) != first
    (data / "a.bin").write_bytes(b"2")
    assert not set(made()) & set(first)


def test_a_parameter_given_or_left_at_the_same_default_is_the_same_run(notebook, tmp_path):
    plain = StudyPlan(notebook, tmp_path, grid={"batch_size": [1]})
    said = StudyPlan(notebook, tmp_path, grid={"batch_size": [1]}, parameters={"name": "unet"})
    assert keys(plain) == keys(said)


def test_a_search_has_no_runs_of_its_own_but_is_checked(notebook, tmp_path):
    space = {"batch_size": {"choices": [4, 8]}, "learning_rate": {"low": 0.01, "high": 1.0}}
    plan = StudyPlan(notebook, tmp_path, search=SearchPlan(5, "f1", space))
    assert plan.runs() == []
    assert plan.varied == ("batch_size", "learning_rate")
    with pytest.raises(ValueError, match="no parameter 'rate'"):
        StudyPlan(notebook, tmp_path, search=SearchPlan(5, "f1", {"rate": {"choices": [1]}}))


@pytest.mark.parametrize("path", sorted((PROJECT / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_studies_fit_their_notebook(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    assert content.pop("data")  # the real ones are not here
    plan = read_study(study_file(tmp_path, yaml.safe_dump(content)))
    varied = plan.search.corners() if plan.search else plan.runs()
    assert len(varied) > 1
    assert plan.time_limit
