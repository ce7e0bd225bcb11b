"""Fixtures that several test files share; threads, seeds and the plot backend of every test."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[1]
LESSONS = sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((PROJECT / "notebooks" / "solutions").glob("*.ipynb"))

# Before anything imports torch or matplotlib: figures need no screen, and the workers of
# pytest-xdist do not fight over the cores. Kernels and processes started by tests inherit both.
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal tests out by file, for shared fixtures, but long runs of notebooks one by one.

    Heeded by ``pytest -n 2 --dist loadgroup``.
    """
    for item in items:
        alone = item.get_closest_marker("slow") and item.path.name.startswith("test_notebooks_")
        item.add_marker(pytest.mark.xdist_group(item.name if alone else item.path.stem))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start each test from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries under test use the global generator
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images beside the project (data/README.md), or a skip that says why."""
    named = os.environ.get("RENAL_SHARED_DATA")
    folder = Path(named) if named else PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real images: set RENAL_SHARED_DATA or lay them out at ../shared/data")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Give a function that mounts an empty file system of so many megabytes, or skips."""
    mounted: list[Path] = []

    def mount(megabytes: int = 4) -> Path:
        folder = tmp_path / f"small_disk_{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=10)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"cannot mount a small file system here: {error}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True, timeout=10)


def run_nbval(notebook: Path) -> subprocess.CompletedProcess[str]:
    """Run a notebook by nbval, which compares it with its outputs, in a process of its own.

    The project's pytest settings (warnings as errors, type checks) are for the library's tests.
    """
    options = ["--nbval", "-p", "no:python", "-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
    options += ["-o", "addopts=", "-o", "filterwarnings=", "--nbval-current-env", "--color=no"]
    options += ["--nbval-cell-timeout", "300"]
    options += ["--nbval-sanitize-with", str(PROJECT / "tests" / "nbval_sanitize.cfg")]
    left_out = ("MPLBACKEND", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(notebook)],
        cwd=PROJECT,
        env={**environment, "TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture
def small_notebook(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that writes a notebook of code cells; the first is tagged parameters."""
    import nbformat
    from nbformat import v4

    def write(*sources: str, name: str = "00_test_small.ipynb") -> Path:
        cells = [v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
        if cells:
            cells[0].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = tmp_path / name
        nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        return path

    return write
