"""``renal report``: count, measure and compare segmented slides."""

import argparse
from pathlib import Path
from typing import Any


def add_report(verbs: Any) -> None:
    """Add the verb ``report``."""
    report = verbs.add_parser(
        "report",
        help="count, measure and compare segmented slides",
        description="Write report.html, report.json and review/SLIDE.geojson (objects most worth a "
        "look) from folders that renal segment wrote. Not for diagnosis.",
    )
    report.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="results, or folders of them"
    )
    report.add_argument("--out", type=Path, required=True, help="folder for the report")
    report.add_argument(
        "--slides",
        type=Path,
        metavar="CSV",
        help="columns slide, and any of donor, group, image, cortex (outlines from QuPath)",
    )
    report.add_argument("--limit", type=int, default=25, help="objects a slide to look at, at most")
    report.add_argument("--level", type=float, default=0.95, help="of the intervals")
    report.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    report.set_defaults(verb=_report)


def _report(options: argparse.Namespace) -> int:
    from renal_utils.reports import write_report
    from renal_utils.reports.words import summarise

    report = write_report(
        options.folders,
        options.out,
        table=options.slides,
        limit=options.limit,
        level=options.level,
        seed=options.seed,
    )
    print("\n".join([*summarise(report.findings, level=options.level), *report.remarks]))
    print(f"written: {report.html_path}\nNot for diagnosis.")
    return 0
