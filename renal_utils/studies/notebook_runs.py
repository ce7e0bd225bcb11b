"""Run notebooks in batch: checked parameters, one kernel a run, nothing half-written.

The kernel starts in the notebook's folder, as in JupyterLab, so that relative paths mean the same
everywhere (``runtime.resolve_path``). Progress bars inside notebooks are switched off
(``TQDM_DISABLE``), since a saved one would be a dead widget.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from renal_utils import notebooks
from renal_utils.recording import RESULTS_VARIABLE, Recorded, read_recorded
from renal_utils.runtime import display_path
from renal_utils.studies.run_failures import explain_failure, last_started
from renal_utils.studies.warm_kernels import warm_kernels


@dataclass(frozen=True)
class NotebookRun:
    """What came of one run: the executed notebook, how long it took, the numbers it checked.

    ``bands`` holds a mapping for each number given to ``check_bands``: bands (file), name, value,
    low, high (None where it has no bands). ``recorded`` is what it handed over, see ``recording``.
    """

    output: Path
    seconds: float
    bands: tuple[Mapping[str, Any], ...]
    recorded: Recorded = field(default_factory=Recorded)


def run_notebook(
    notebook: str | Path,
    *,
    output: str | Path,
    parameters: Mapping[str, Any] | None = None,
    timeout: float | int | None = None,
    time_limit: float | int | None = None,
    show_output: bool = False,
    warm: bool = False,
) -> NotebookRun:
    """Execute a notebook in a kernel of its own and write it, with outputs, to ``output``.

    While it runs, ``<output>.running.ipynb`` grows beside ``output``. A failed one is kept as
    ``<output>.failed.ipynb``; ``output`` itself appears only when the last cell has run.

    Args:
        notebook: The notebook to run; it is not changed.
        output: Where the executed notebook goes.
        parameters: Values in place of the notebook's defaults, see
            ``notebooks.check_parameters``.
        timeout: Seconds that one cell may take; None for no limit.
        time_limit: Seconds that all cells together may take; None for no limit.
        show_output: Pass on what the cells print, while they run.
        warm: Fork the kernel from a process that has imported what the notebook imports, see
            ``warm_kernels``. The first run starts that process.

    Raises:
        ValueError: If a parameter is unknown or of the wrong type; nothing has run then.
        FileNotFoundError: If there is no such notebook.
        RuntimeError: If a cell fails, runs too long, or the kernel dies; it names the cell.
    """
    notebook, output = Path(notebook).resolve(), Path(output).resolve()
    checked = notebooks.check_parameters(notebook, parameters or {})
    if output == notebook:
        raise ValueError(f"{display_path(notebook)}: the output would overwrite the notebook")
    output.parent.mkdir(parents=True, exist_ok=True)
    running = output.with_suffix(".running.ipynb")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bands, results = Path(folder) / "bands.jsonl", Path(folder) / "results.jsonl"
        try:
            with _kernel_environment(bands, results), warm_kernels(notebook, enabled=warm):
                _execute(notebook, running, checked, Limits(timeout, time_limit), show_output)
            content = _without_paths(notebooks.read_notebook(running))
            notebooks.write_notebook(output, content)
        finally:
            running.unlink(missing_ok=True)
        seconds = time.perf_counter() - started
        return NotebookRun(output, seconds, _read_ledger(bands), read_recorded(results))


@dataclass(frozen=True)
class Limits:
    """How long a cell and a run may take, in seconds; None for no limit."""

    cell: float | int | None = None
    run: float | int | None = None

    def countdown(self) -> Callable[[NotebookNode], float | None]:
        """Return a function that gives what a cell that begins now may take.

        The clock of the run starts with its first cell, so that a slow kernel costs nothing.
        """
        ends: list[float] = []

        def left(_: NotebookNode) -> float | None:
            if self.run is None:
                return None if self.cell is None else float(self.cell)
            now = time.monotonic()
            ends.append(now + self.run)
            return min(max(ends[0] - now, 0.01), float(self.cell or "inf"))

        return left

    def say(self, seconds: float) -> str:
        """Say which of the two a run exceeded that took so many seconds."""
        if self.run is not None and seconds >= self.run:
            return f"the run took longer than its limit of {self.run:g} s"
        return f"it ran longer than {self.cell} s"


def refresh_notebook(notebook: str | Path, *, timeout: float | int | None = None) -> NotebookRun:
    """Run a notebook by its defaults and save it in place, cleaned as it is to be committed."""
    notebook = Path(notebook).resolve()
    made = notebook.with_suffix(".refreshed.ipynb")
    try:
        run = run_notebook(notebook, output=made, timeout=timeout)
        content = notebooks.clean_notebook(notebooks.read_notebook(made))
        notebooks.write_notebook(notebook, content)
    finally:
        made.unlink(missing_ok=True)
    return NotebookRun(notebook, run.seconds, run.bands)


def _execute(
    notebook: Path,
    running: Path,
    parameters: Mapping[str, Any],
    limits: Limits,
    show_output: bool,
) -> None:
    """Run by papermill; a failure keeps the notebook and says in which cell it was."""
    import papermill

    started = time.monotonic()
    options = {
        "parameters": dict(parameters),
        "progress_bar": sys.stderr.isatty(),
        "timeout_func": limits.countdown(),
        "stdout_file": sys.stdout if show_output else None,
        "stderr_file": sys.stderr if show_output else None,
        "resources": {"metadata": {"path": str(notebook.parent)}},
        "extra_arguments": ["--log-level=ERROR"],
    }
    try:
        try:
            papermill.execute_notebook(notebook, running, **options)
        except RuntimeError:  # jupyter_client: the kernel did not start; often it does now
            if last_started(running) is not None:
                raise
            papermill.execute_notebook(notebook, running, **options)
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            raise
        limit = limits.say(time.monotonic() - started)
        raise explain_failure(error, notebook, running, limit=limit) from error


@contextmanager
def _kernel_environment(bands: Path, results: Path) -> Iterator[None]:
    """Set what a kernel inherits: no progress bars, figures in the notebook, where numbers go."""
    changes = {
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asks for GPUs without touching them
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as ipykernel would
        "RENAL_BANDS_LEDGER": str(bands),
        RESULTS_VARIABLE: str(results),
    }
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_ledger(path: Path) -> tuple[dict[str, Any], ...]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return tuple(json.loads(line) for line in lines)


def _without_paths(content: NotebookNode) -> NotebookNode:
    """Drop widgets and this machine's paths from the metadata; outputs and timings stay."""
    content.metadata.pop("widgets", None)
    for key in ("input_path", "output_path"):
        content.metadata.papermill.pop(key, None)
    return content
