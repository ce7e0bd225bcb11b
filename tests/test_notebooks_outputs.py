"""Layer 2: each notebook runs again and gives its committed outputs, as nbval sees it."""

import nbformat
import pytest
from conftest import LESSONS, SOLUTIONS, run_nbval
from nbformat import v4

from renal_utils.notebooks import read_notebook
from renal_utils.studies import refresh_notebook

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", [*LESSONS, *SOLUTIONS], ids=lambda path: path.stem)
def test_a_notebook_gives_its_committed_outputs(path):
    done = run_nbval(path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_outputs_that_differ_only_by_time_and_address_pass(small_notebook):
    path = small_notebook(
        "steps = 3",
        "import time\n\nprint(object(), time.strftime('%H:%M:%S'), 12 / (time.time() % 7), 'it/s')",
        "from renal_utils.progress import progress_bar\n\nassert len(list(progress_bar(range(3))))",
    )
    refresh_notebook(path)
    done = run_nbval(path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_number_and_a_new_warning_fail(small_notebook):
    path = small_notebook("steps = 3", "print(f'{steps / 7:.3f}')", "print('quiet')")
    refresh_notebook(path)
    content = read_notebook(path)
    content.cells[1].outputs[0].text = "0.430\n"
    warning = "import warnings\n\nprint('quiet')\nwarnings.warn('loud', stacklevel=1)"
    content.cells[2].source = warning
    nbformat.write(content, path)
    done = run_nbval(path)
    assert "2 failed, 1 passed" in done.stdout, done.stdout


def test_an_ignored_cell_is_run_but_not_compared(small_notebook):
    path = small_notebook("steps = 3", "print('trained')", "print(steps)")
    refresh_notebook(path)
    content = read_notebook(path)
    content.cells[1].metadata["tags"] = ["nbval-ignore-output"]
    content.cells[1].source = "steps = 4"
    content.cells[1].outputs = [v4.new_output("stream", name="stdout", text="1.5 s\n")]
    nbformat.write(content, path)
    done = run_nbval(path)
    assert "1 failed, 2 passed" in done.stdout, "the ignored cell changes what the next one prints"
