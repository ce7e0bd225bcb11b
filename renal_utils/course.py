"""The whole course in one go: every notebook run, readable pages, one table of checked numbers.

A notebook that fails does not stop the others; the table says so.
"""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from renal_utils.notebooks import read_notebook
from renal_utils.progress import progress_bar
from renal_utils.runtime import atomic_path, count_cores
from renal_utils.studies.notebook_runs import run_notebook

COLUMNS = ("notebook", "status", "seconds", "number", "value", "low", "high", "inside", "error")

# Jupyter's page without the scripts that it loads from servers, and with the figures' own texts.
# The script for formulas stays, but nothing waits for it.
_PAGE = """
{%- extends "lab/index.html.j2" -%}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_js_mathjax %}{{ super() | replace("<script src=", "<script async src=") }}
{% endblock %}
{% block data_png %}
<div class="jp-RenderedImage jp-OutputArea-output">
<img alt="{{ (output | get_metadata("alt", "image/png") or "Figure") | escape_html }}"
 src="data:image/png;base64,{{ output.data["image/png"] | escape_html }}">
</div>
{% endblock %}
"""
_LESSON = re.compile(r"\d\d_\w+\.ipynb")


def find_lessons(folder: str | Path) -> list[Path]:
    """Return the notebooks ``NN_verb_noun.ipynb`` of a folder, in order.

    Raises:
        ValueError: If the folder holds none.
    """
    found = sorted(path for path in Path(folder).glob("*.ipynb") if _LESSON.fullmatch(path.name))
    if not found:
        raise ValueError(f"{folder} holds no notebook named like 01_explore_slides.ipynb")
    return found


def run_course(
    notebooks: Sequence[str | Path],
    folder: str | Path,
    *,
    jobs: int = 1,
    timeout: float | int | None = None,
) -> pd.DataFrame:
    """Run notebooks by their defaults; write them executed, as HTML, and a table of results.

    Args:
        notebooks: The notebooks; their file names must differ.
        folder: Gets ``NN_verb_noun.ipynb``, the same as ``.html``, and ``results.csv``.
        jobs: How many run at once, each in a process with its share of the cores.
        timeout: Seconds that one cell may take; None for no limit.

    Returns:
        The table: one row for each checked number (at least one a notebook) with columns
        ``COLUMNS``. Status is ``ok`` or ``failed``; seconds are those of the notebook.
    """
    folder = Path(folder)
    run = partial(_run_one, folder=folder, timeout=timeout)
    if jobs < 2:
        rows = [run(Path(n)) for n in progress_bar(notebooks, unit="notebook", disable=None)]
    else:
        rows = _in_processes(run, [Path(notebook) for notebook in notebooks], jobs)
    table = pd.DataFrame([row for part in rows for row in part], columns=list(COLUMNS))
    table = table.sort_values("notebook", kind="stable", ignore_index=True)
    with atomic_path(folder / "results.csv") as temporary:
        table.to_csv(temporary, index=False)
    return table


def write_html(notebook: str | Path, path: str | Path) -> None:
    """Write a notebook as one HTML page that can be read without a network.

    Figures are embedded, with their alternative texts. Only formulas call on a server (MathJax)
    where one is reached; without it they stand as TeX.
    """
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="lab",
        template_file="course.html.j2",
        extra_loaders=[DictLoader({"course.html.j2": _PAGE})],
        embed_images=True,
    )
    resources = {"metadata": {"name": Path(notebook).stem, "path": str(Path(notebook).parent)}}
    page, _ = exporter.from_notebook_node(read_notebook(notebook), resources)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _in_processes(run: partial, notebooks: Sequence[Path], jobs: int) -> list[list[dict]]:
    threads = max(1, count_cores() // jobs)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_limit_threads, initargs=(threads,)
    ) as pool:
        futures = [pool.submit(run, notebook) for notebook in notebooks]
        bar = progress_bar(as_completed(futures), total=len(futures), unit="notebook", disable=None)
        return [future.result() for future in bar]


def _limit_threads(threads: int) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def _run_one(notebook: Path, *, folder: Path, timeout: float | int | None) -> list[dict[str, Any]]:
    """Return a notebook's rows of the table; an error becomes one row."""
    row: dict[str, Any] = {"notebook": notebook.stem}
    output = folder / notebook.name
    try:
        run = run_notebook(notebook, output=output, timeout=timeout)
        write_html(output, output.with_suffix(".html"))
    except (OSError, RuntimeError, ValueError) as error:
        return [{**row, "status": "failed", "error": str(error)}]
    row |= {"status": "ok", "seconds": round(run.seconds, 1)}
    return [{**row, **_checked(band)} for band in run.bands] or [row]


def _checked(band: Mapping[str, Any]) -> dict[str, Any]:
    no_band = band["low"] is None
    inside = None if no_band else band["low"] <= band["value"] <= band["high"]
    number = {key: band[key] for key in ("value", "low", "high")}
    return {"number": band["name"], **number, "inside": inside}
