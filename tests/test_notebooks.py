import nbformat
import pytest

from renal_utils.notebooks import (
    check_parameters,
    clean_notebook,
    parse_value,
    read_defaults,
    read_notebook,
    read_parameters,
    write_notebook,
)

DEFAULTS = """
# how long to train
epochs = 3
learning_rate = 1e-3
model = "unet"
augment = True
limit = None
depths = [1, 2]
names = []
offset = -1
"""


@pytest.fixture
def notebook(small_notebook):
    return small_notebook(DEFAULTS, "print(epochs)")


def test_defaults_are_read_as_written(notebook):
    assert read_defaults(notebook) == {
        "epochs": 3,
        "learning_rate": 1e-3,
        "model": "unet",
        "augment": True,
        "limit": None,
        "depths": [1, 2],
        "names": [],
        "offset": -1,
    }


@pytest.mark.parametrize(
    "source",
    ["a = 1\nb = a * 2", "import os", "a: int = 1", "a = b = 1", "a = {'x': 1}", "a = [[1]]"],
)
def test_a_parameters_cell_holds_only_plain_literals(small_notebook, source):
    with pytest.raises(ValueError, match=r"derive values in the next cell"):
        read_defaults(small_notebook(source))


def test_exactly_one_parameters_cell_is_wanted(small_notebook):
    path = small_notebook("a = 1", "b = 2")
    content = read_notebook(path)
    for tagged, tags in enumerate(([[], []], [["parameters"], ["parameters"]])):
        for cell, cell_tags in zip(content.cells, tags, strict=True):
            cell.metadata["tags"] = cell_tags
        write_notebook(path, content)
        with pytest.raises(ValueError, match=rf"has {2 * tagged} cells tagged 'parameters'"):
            read_defaults(path)


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("epochs", 8, 8),
        ("learning_rate", 0.5, 0.5),
        ("learning_rate", 1, 1.0),
        ("model", "unet_pp", "unet_pp"),
        ("augment", False, False),
        ("limit", None, None),
        ("limit", 5, 5),
        ("limit", ["a"], ["a"]),
        ("depths", [], []),
        ("depths", [5, 6, 7], [5, 6, 7]),
        ("names", ["a", 1], ["a", 1]),
    ],
)
def test_a_fitting_value_is_accepted_in_the_kind_of_its_default(notebook, name, given, wanted):
    (value,) = check_parameters(notebook, {name: given}).values()
    assert value == wanted
    assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("epochs", True, r"'epochs' takes a whole number like 3, not True \(a truth value\)"),
        ("epochs", 10.0, r"not 10.0 \(decimal number\); write 10"),
        ("epochs", "3", r"not '3' \(text\); write 3 without quotes$"),
        ("epochs", "1e3", r"not '1e3' \(text\); write 1000 without quotes$"),
        ("epochs", "3.5", r"not '3.5' \(text\)$"),
        ("epochs", "three", r"not 'three' \(text\)$"),
        ("epochs", None, r"takes a whole number like 3, not None"),
        ("learning_rate", "1e-4", r"YAML reads 1e-4 as text: .* like 1.0e-4"),
        ("learning_rate", "1.0e4", r"YAML reads 1.0e4 as text: .* or 1.0e\+4"),
        ("learning_rate", "3", r"not '3' \(text\); write 3 without quotes$"),
        ("learning_rate", "0.5", r"write 0.5 without quotes$"),
        ("learning_rate", "fast", r"not 'fast' \(text\)$"),
        ("learning_rate", True, r"takes a number like 0.001, not True"),
        ("model", 5, r"like 'unet', not 5 \(whole number\); put it in quotes: \"5\"$"),
        ("model", True, r'not True \(a truth value\); put it in quotes: "True"$'),
        ("augment", "false", r"takes True or False like True, not 'false' \(text\)"),
        ("augment", 0, r"not 0 \(whole number\)"),
        ("depths", 2, r"takes a list like \[1, 2\], not 2"),
        ("depths", [1, "2"], r"'depths', element 1 takes .*; write 2 without quotes$"),
        ("limit", {"a": 1}, r"not \{'a': 1\} \(dict\)"),
    ],
)
def test_a_value_of_another_type_is_refused_with_both_named(notebook, name, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_parameters(notebook, {name: given})
    assert notebook.name in str(caught.value)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(notebook):
    with pytest.raises(ValueError, match=r"no parameter 'epoch'; did you mean 'epochs'\? It has: "):
        check_parameters(notebook, {"epoch": 3})


@pytest.mark.parametrize(
    ("text", "default", "wanted"),
    [
        ("1e-4", 0.1, 1e-4),
        ("12", 3, 12),
        ("1e1", 3, "1e1"),
        ("false", True, False),
        ("false", "no", "false"),
        ("12", "no", "12"),
        ("[1, 2]", [0], [1, 2]),
        ("null", None, None),
        ("much", 0.1, "much"),
        ("[1", [0], "[1"),
    ],
)
def test_command_line_text_is_read_as_the_kind_of_the_default(text, default, wanted):
    value = parse_value(text, default)
    assert value == wanted
    assert type(value) is type(wanted)


def test_a_parameters_file_must_be_a_mapping(tmp_path):
    path = tmp_path / "01_full.yaml"
    path.write_text("epochs: 10\nrate: 1.0e-4\n")
    assert read_parameters(path) == {"epochs": 10, "rate": 1e-4}
    path.write_text("")
    assert read_parameters(path) == {}
    for broken in ("- epochs\n", "epochs: [1\n", "1: 2\n"):
        path.write_text(broken)
        with pytest.raises(ValueError, match="01_full"):
            read_parameters(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nbformat": 4, "nbformat_minor": 5}', "\x00"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, text):
    path = tmp_path / "05_broken.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"05_broken.ipynb is not a Jupyter notebook"):
        read_notebook(path)


def test_cleaning_drops_what_differs_between_machines(notebook):
    content = read_notebook(notebook)
    content.metadata["widgets"] = {"state": {}}
    content.metadata["papermill"] = {"input_path": "x"}
    content.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    injected = {"tags": ["injected-parameters"]}
    content.cells.insert(1, nbformat.v4.new_code_cell("epochs = 5", metadata=injected))
    cell = content.cells[2]
    cell.metadata.update({"execution": {"iopub.status.busy": "now"}, "tags": ["a"]})
    cell.execution_count = 17
    view = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"}
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="1\n"),
        nbformat.v4.new_output("display_data", data=view),
        nbformat.v4.new_output("stream", name="stdout", text="2\n"),
        nbformat.v4.new_output("execute_result", data={"text/plain": "3"}, execution_count=17),
    ]
    cleaned = clean_notebook(content)
    nbformat.validate(cleaned)
    assert set(cleaned.metadata) == {"kernelspec", "language_info"}
    assert "version" not in cleaned.metadata.language_info
    assert [c.id for c in cleaned.cells] == ["cell-0", "cell-1"]
    assert [c.execution_count for c in cleaned.cells] == [1, 2]
    assert cleaned.cells[1].metadata == {"tags": ["a"]}
    assert [o.get("text") for o in cleaned.cells[1].outputs] == ["1\n2\n", None]
    assert cleaned.cells[1].outputs[1].execution_count == 2
    assert cell.execution_count == 17, "the given notebook is left as it was"
