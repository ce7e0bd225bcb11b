"""``renal run``: a notebook, or a folder of them, in batch."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_run(verbs: Any) -> None:
    """Add the verb ``run``."""
    run = verbs.add_parser(
        "run",
        help="run a notebook, or a folder of them, in batch",
        description="Run a notebook with checked parameters; it is not changed itself. Given a "
        "folder, run each lesson in it by its defaults and write HTML and results.csv too. "
        "Relative paths among the parameters start at the project's folder.",
    )
    run.add_argument("notebook", type=Path, help="a notebook, or a folder of notebooks")
    run.add_argument("--output", type=Path, help="notebook or folder to write (default: in build/)")
    run.add_argument("--parameters-file", type=Path, metavar="YAML", help="names and values")
    run.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="one parameter, over those of the file; may be repeated",
    )
    run.add_argument("--timeout", type=float, metavar="S", help="seconds that one cell may take")
    run.add_argument("--show-output", action="store_true", help="show what cells print as they run")
    run.add_argument("--html", action="store_true", help="write it as a page too (one notebook)")
    run.add_argument("--jobs", type=int, default=1, help="notebooks at once (a folder)")
    run.add_argument(
        "--in-place",
        action="store_true",
        help="for authors: run by the defaults and save the notebook itself, cleaned",
    )
    run.set_defaults(verb=_run)


def _run(options: argparse.Namespace) -> int:
    if options.notebook.is_dir():
        return _run_folder(options)
    if options.in_place:
        return _refresh(options)
    from renal_utils.runtime import project_root
    from renal_utils.studies import run_notebook

    output = options.output or project_root() / "build" / "runs" / options.notebook.name
    run = run_notebook(
        options.notebook,
        parameters=gather_parameters(options),
        output=output,
        timeout=options.timeout,
        show_output=options.show_output,
    )
    if options.html:
        from renal_utils.course import write_html

        write_html(run.output, run.output.with_suffix(".html"))
    for band in run.bands:
        no_band = band["low"] is None
        held = "no band" if no_band else f"band [{band['low']:g}, {band['high']:g}]"
        print(f"{band['name']} = {band['value']:.4g}, {held}")
    print(f"ran in {run.seconds:.0f} s: {run.output}")
    return 0


def gather_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of a file, then those of the command line over them."""
    from renal_utils.notebooks import parse_value, read_defaults, read_parameters

    file = options.parameters_file
    parameters = read_parameters(file) if file else {}
    defaults = read_defaults(options.notebook) if options.parameter else {}
    typed = {name: parse_value(text, defaults.get(name)) for name, text in options.parameter}
    return parameters | typed


def _refresh(options: argparse.Namespace) -> int:
    from renal_utils.studies import refresh_notebook

    if options.parameter or options.parameters_file or options.output:
        raise ValueError("--in-place runs by the defaults and takes no parameters and no --output")
    run = refresh_notebook(options.notebook, timeout=options.timeout)
    print(f"ran in {run.seconds:.0f} s and saved: {options.notebook}")
    return 0


def _run_folder(options: argparse.Namespace) -> int:
    from renal_utils.course import find_lessons, run_course
    from renal_utils.runtime import project_root

    if options.parameter or options.parameters_file:
        raise ValueError("parameters belong to one notebook; name it instead of its folder")
    lessons = find_lessons(options.notebook)
    if options.in_place:
        for lesson in lessons:
            _refresh(argparse.Namespace(**{**vars(options), "notebook": lesson}))
        return 0
    folder = (options.output or project_root() / "build" / "course").resolve()
    table = run_course(lessons, folder, jobs=options.jobs, timeout=options.timeout)
    print(table.drop(columns="error").to_string(index=False, na_rep="-"))
    for row in table[table["status"] == "failed"].to_dict("records"):
        print(f"\n{row['notebook']}: {row['error']}", file=sys.stderr)
    print(f"written: {folder}")
    return int(any(table["status"] == "failed") or any(table["inside"].eq(False)))
