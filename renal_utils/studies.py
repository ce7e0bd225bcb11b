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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from renal_utils import notebooks
from renal_utils.runtime import display_path


@dataclass(frozen=True)
class NotebookRun:
    """What came of one run: the executed notebook, how long it took, the numbers it checked.

    ``bands`` holds a mapping for each number given to ``check_bands``: bands (file), name, value,
    low, high.
    """

    output: Path
    seconds: float
    bands: tuple[Mapping[str, Any], ...]


def run_notebook(
    notebook: str | Path,
    *,
    output: str | Path,
    parameters: Mapping[str, Any] | None = None,
    timeout: float | int | None = None,
    show_output: bool = False,
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
        show_output: Pass on what the cells print, while they run.

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
        ledger = Path(folder) / "bands.jsonl"
        try:
            with _kernel_environment(ledger):
                _execute(notebook, running, checked, timeout, show_output)
            content = _without_paths(notebooks.read_notebook(running))
            notebooks.write_notebook(output, content)
        finally:
            running.unlink(missing_ok=True)
        return NotebookRun(output, time.perf_counter() - started, _read_ledger(ledger))


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
    timeout: float | int | None,
    show_output: bool,
) -> None:
    """Run by papermill; a failure keeps the notebook and says in which cell it was."""
    import papermill

    options = {
        "parameters": dict(parameters),
        "progress_bar": sys.stderr.isatty(),
        "execution_timeout": timeout,
        "stdout_file": sys.stdout if show_output else None,
        "stderr_file": sys.stderr if show_output else None,
        "resources": {"metadata": {"path": str(notebook.parent)}},
        "extra_arguments": ["--log-level=ERROR"],
    }
    try:
        try:
            papermill.execute_notebook(notebook, running, **options)
        except RuntimeError:  # jupyter_client: the kernel did not start; often it does now
            if _last_started(running) is not None:
                raise
            papermill.execute_notebook(notebook, running, **options)
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            raise
        raise _failure(error, notebook, running, timeout) from error


def _failure(
    error: Exception, notebook: Path, running: Path, timeout: float | int | None
) -> RuntimeError:
    """Keep the unfinished notebook and return one error that says where and how it ended."""
    reason = _explain(error, _last_started(running), timeout)
    kept = running.with_name(running.name.replace(".running.ipynb", ".failed.ipynb"))
    running.replace(kept)
    return RuntimeError(f"{display_path(notebook)} {reason}\nkept as {display_path(kept)}")


def _explain(error: Exception, place: str | None, timeout: float | int | None) -> str:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import PapermillExecutionError

    match error:
        case PapermillExecutionError():
            lines = "\n".join(error.traceback).splitlines()[-6:]
            return f"failed in {place} with {error.ename}: {error.evalue}\n" + "\n".join(lines)
        case DeadKernelError() if place is not None:
            return (
                f"lost its kernel in {place}, most likely because memory ran out; "
                "try a smaller batch or patch"
            )
        case CellTimeoutError():
            return f"was stopped in {place}: it ran longer than {timeout} s"
        case _:
            return f"could not run: {type(error).__name__}: {error}"


def _last_started(running: Path) -> str | None:
    """Name the last code cell that began to run, by number and first line; None if none did."""
    if not running.is_file():
        return None
    code = [c for c in notebooks.read_notebook(running).cells if c.cell_type == "code"]
    started = [
        f"code cell {number} `{cell.source.strip().splitlines()[0]}`"
        for number, cell in enumerate(code, 1)
        if cell.metadata.get("papermill", {}).get("start_time") and cell.source.strip()
    ]
    return started[-1] if started else None


@contextmanager
def _kernel_environment(ledger: Path) -> Iterator[None]:
    """Set what a kernel inherits: no progress bars, figures in the notebook, bands' ledger."""
    changes = {
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLBACKEND": None,
        "RENAL_BANDS_LEDGER": str(ledger),
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
