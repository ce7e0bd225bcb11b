"""Runs start real kernels, a second or two each."""

import os

import pytest

from renal_utils.notebooks import read_notebook
from renal_utils.studies.notebook_runs import refresh_notebook, run_notebook

pytestmark = pytest.mark.slow

PARAMETERS = 'epochs = 3\nname = "unet"'


def _texts(path):
    cells = [c for c in read_notebook(path).cells if c.cell_type == "code"]
    return ["".join(o.get("text", "") for o in c.outputs) for c in cells]


def test_a_run_uses_the_given_parameters_and_leaves_the_notebook_alone(small_notebook, tmp_path):
    (tmp_path / "03.json").write_text('{"dice": [0, 1]}')
    check = "from renal_utils.bands import check_bands\n_ = check_bands('03.json', dice=1 / 3)"
    path = small_notebook(PARAMETERS, "print(epochs, name)", check)
    before = path.read_bytes()
    run = run_notebook(path, parameters={"epochs": 5}, output=tmp_path / "out" / "made.ipynb")
    assert _texts(run.output)[-2] == "5 unet\n"
    row = {"bands": "03.json", "name": "dice", "value": 1 / 3, "low": 0.0, "high": 1.0}
    assert run.bands == (row,)
    assert run.seconds > 0
    assert path.read_bytes() == before
    assert [p.name for p in run.output.parent.iterdir()] == ["made.ipynb"]
    assert str(tmp_path) not in run.output.read_text()


def test_the_kernel_works_in_the_notebooks_folder(small_notebook, tmp_path, monkeypatch):
    path = small_notebook(
        PARAMETERS, "from pathlib import Path\nprint(Path('x').resolve().parent.name)"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = run_notebook(path, output=tmp_path / "out.ipynb")
    assert _texts(run.output)[-1] == f"{tmp_path.name}\n"


def test_wrong_parameters_are_refused_before_anything_runs(small_notebook, tmp_path):
    path = small_notebook(PARAMETERS, "print(epochs)")
    for wrong in ({"epoch": 3}, {"epochs": "3"}):
        with pytest.raises(ValueError, match="epoch"):
            run_notebook(path, parameters=wrong, output=tmp_path / "out" / "made.ipynb")
    assert not (tmp_path / "out").exists()


def test_a_missing_notebook_and_an_output_over_the_input_are_refused(small_notebook, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.ipynb"):
        run_notebook(tmp_path / "absent.ipynb", output=tmp_path / "out.ipynb")
    path = small_notebook(PARAMETERS)
    with pytest.raises(ValueError, match="overwrite"):
        run_notebook(path, output=path)


def test_a_failing_cell_is_named_and_the_notebook_kept_aside(small_notebook, tmp_path):
    path = small_notebook(PARAMETERS, "print('before')", "value = 1\nraise KeyError('glomerulus')")
    with pytest.raises(
        RuntimeError, match=r"code cell 3 `value = 1` with KeyError: 'glomerulus'"
    ) as caught:
        run_notebook(path, output=tmp_path / "out.ipynb")
    assert "out.failed.ipynb" in str(caught.value)
    assert not (tmp_path / "out.ipynb").exists()
    assert not (tmp_path / "out.running.ipynb").exists()
    assert "before\n" in _texts(tmp_path / "out.failed.ipynb")


def test_a_dead_kernel_is_reported_as_out_of_memory(small_notebook, tmp_path):
    path = small_notebook(PARAMETERS, "import os", "os.kill(os.getpid(), 9)")
    with pytest.raises(RuntimeError, match=r"lost its kernel in code cell 3 .*memory ran out"):
        run_notebook(path, output=tmp_path / "out.ipynb")
    assert (tmp_path / "out.failed.ipynb").exists()


def test_a_cell_that_takes_too_long_is_stopped(small_notebook, tmp_path):
    path = small_notebook(PARAMETERS, "import time\ntime.sleep(60)")
    with pytest.raises(RuntimeError, match=r"stopped in code cell 2 .* longer than 1 s"):
        run_notebook(path, output=tmp_path / "out.ipynb", timeout=1)


def test_a_kernel_that_does_not_start_is_tried_once_more(small_notebook, tmp_path, monkeypatch):
    import papermill

    real, calls = papermill.execute_notebook, []

    def flaky(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return real(*args, **options)

    monkeypatch.setattr(papermill, "execute_notebook", flaky)
    run = run_notebook(small_notebook(PARAMETERS, "print(1)"), output=tmp_path / "out.ipynb")
    assert len(calls) == 2
    assert _texts(run.output)[-1] == "1\n"


def test_progress_bars_and_figures_come_out_as_files_can_hold_them(small_notebook, tmp_path):
    source = "from renal_utils.progress import progress_bar\nfor _ in progress_bar(range(3)): pass"
    figure = "import matplotlib.pyplot as plt\n_ = plt.plot([0, 1])\nplt.show()"
    path = small_notebook(PARAMETERS, source, figure)
    before = dict(os.environ)
    refresh_notebook(path)
    assert dict(os.environ) == before
    bar, plot = (c.outputs for c in read_notebook(path).cells[1:])
    assert bar == []
    assert "image/png" in plot[0].data


def test_a_refreshed_notebook_is_clean_and_refreshing_it_again_changes_nothing(small_notebook):
    path = small_notebook(PARAMETERS, "print(epochs)", "epochs + 1")
    refresh_notebook(path)
    first = path.read_bytes()
    content = read_notebook(path)
    assert [c.execution_count for c in content.cells] == [1, 2, 3]
    assert [c.id for c in content.cells] == ["cell-0", "cell-1", "cell-2"]
    assert all(set(c.metadata) <= {"tags"} for c in content.cells)
    assert set(content.metadata) == {"kernelspec", "language_info"}
    refresh_notebook(path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_refresh_that_fails_leaves_the_notebook_as_it_was(small_notebook):
    path = small_notebook(PARAMETERS, "1 / 0")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        refresh_notebook(path)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_no_notebook_that_looks_whole(small_notebook, small_disk):
    disk = small_disk(1)
    path = small_notebook(PARAMETERS, "print('x' * 3_000_000)")
    with pytest.raises(OSError, match="space"):
        run_notebook(path, output=disk / "out.ipynb")
    assert not (disk / "out.ipynb").exists()


def test_what_cells_print_can_be_followed(small_notebook, tmp_path, capsys):
    path = small_notebook(PARAMETERS, "print('epoch 1 of 3')")
    run_notebook(path, output=tmp_path / "out.ipynb", show_output=True)
    assert "epoch 1 of 3" in capsys.readouterr().out
