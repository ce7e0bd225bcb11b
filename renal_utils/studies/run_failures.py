"""Why a notebook's run failed: one error that says in which cell, how, and where it is kept."""

from pathlib import Path

from renal_utils import notebooks
from renal_utils.runtime import display_path


def explain_failure(
    error: Exception, notebook: Path, running: Path, *, limit: str = ""
) -> RuntimeError:
    """Keep the unfinished notebook and return one error that says where and how it ended.

    Args:
        error: What papermill or its client raised.
        notebook: What was run.
        running: The unfinished notebook; renamed to ``<name>.failed.ipynb``.
        limit: How to say what a run that took too long exceeded.
    """
    reason = _explain(error, last_started(running), limit)
    kept = running.with_name(running.name.replace(".running.ipynb", ".failed.ipynb"))
    if not running.is_file():
        return RuntimeError(f"{display_path(notebook)} {reason}")
    running.replace(kept)
    return RuntimeError(f"{display_path(notebook)} {reason}\nkept as {display_path(kept)}")


def last_started(running: Path) -> str | None:
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


def _explain(error: Exception, place: str | None, limit: str) -> str:
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
            return f"was stopped in {place}: {limit}"
        case _:
            return f"could not run: {type(error).__name__}: {error}"
