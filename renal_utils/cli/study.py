"""``renal study``: a notebook over a grid of parameters, or a search for the best."""

import argparse
import sys
from pathlib import Path
from typing import Any

from renal_utils.cli.workers import add_workers


def add_study(verbs: Any) -> None:
    """Add the verb ``study``."""
    study = verbs.add_parser(
        "study",
        help="run a notebook over a grid of parameters, or search for the best",
        description="Do the runs that have not been done and write their table. Stopped and "
        "started again, it goes on where it was. See docs/studies.md.",
    )
    study.add_argument("study", type=Path, metavar="STUDY.yaml")
    add_workers(study, processes="processes (default: GPUs or cores)")
    study.add_argument("--only", nargs="+", metavar="NAME", help="do these runs, leave the others")
    study.add_argument("--retry-failed", action="store_true", help="do failed runs once more")
    study.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a changed notebook, data or library: all runs anew beside the old ones",
    )
    study.add_argument("--cold", action="store_true", help="start each kernel from scratch")
    study.add_argument("--list", action="store_true", help="name the runs and do none")
    study.set_defaults(verb=_study)


def _study(options: argparse.Namespace) -> int:
    from renal_utils.runtime import display_path
    from renal_utils.studies import read_study, run_study

    plan = read_study(options.study)
    if options.list:
        print("\n".join(run.name for run in plan.runs()))
        return 0
    table = run_study(
        plan,
        workers=options.workers,
        dask=options.dask,
        only=options.only,
        retry_failed=options.retry_failed,
        accept_changes=options.accept_changes,
        warm=not options.cold,
    )
    failed = table[table["status"] == "failed"]
    for row in failed.to_dict("records"):
        print(f"{row['name']}: {row['error']}", file=sys.stderr)
    print(f"{len(table) - len(failed)} runs finished, {len(failed)} failed")
    print(f"written: {display_path(plan.folder)}")
    return int(len(failed) > 0)
