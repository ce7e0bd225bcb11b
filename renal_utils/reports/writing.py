"""The report on segmented slides: a page to read, a JSON to compute with, lists to look through.

``report.html`` stands alone and opens in any browser, ``report.json`` holds every number of it,
and ``review/SLIDE.geojson`` the objects most worth a look, for QuPath. How each number is computed,
and what it is not, stands in docs/report.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from renal_utils.findings import SlideCounts, count_slide, find_findings, size_table
from renal_utils.intervals import LEVEL
from renal_utils.reports.layout import REVIEW_FOLDER, SETTINGS, make_page
from renal_utils.reports.words import NOT_FOR_DIAGNOSIS
from renal_utils.review import choose_review, write_review
from renal_utils.runtime import provenance, write_json
from renal_utils.segmented import SegmentedSlide, read_segmented_all

JSON_NAME, HTML_NAME = "report.json", "report.html"


@dataclass(frozen=True)
class SlideReport:
    """A report's files, and its numbers.

    Attributes:
        folder: Where it lies.
        findings: See ``findings.find_findings``.
        sizes: See ``findings.size_table``.
        reviews: For each slide, the rows of ``review.choose_review``.
        remarks: What a reader must know of these slides: settings that differ, scales not known.
    """

    folder: Path
    findings: pd.DataFrame
    sizes: pd.DataFrame
    reviews: Mapping[str, pd.DataFrame]
    remarks: tuple[str, ...]

    @property
    def html_path(self) -> Path:
        return self.folder / HTML_NAME

    @property
    def json_path(self) -> Path:
        return self.folder / JSON_NAME

    def review_path(self, slide: str) -> Path:
        """Return where the list of one slide lies, by its name."""
        return self.folder / REVIEW_FOLDER / f"{slide}.geojson"


def write_report(
    folders: Iterable[str | Path],
    out: str | Path,
    *,
    table: str | Path | None = None,
    limit: int = 25,
    level: float | int = LEVEL,
    seed: int = 0,
) -> SlideReport:
    """Write the report on folders that ``renal segment`` wrote.

    Args:
        folders: One for each slide, or folders that hold those.
        out: Folder for the report; made if absent, an earlier report in it is replaced, but lists
            of slides that are no longer given stay in ``review``.
        table: Csv with donor, group, image and cortex of each slide, see
            ``segmented.read_segmented_all``. Without it each slide is a donor of its own.
        limit: Objects a slide on the list to look through, at most.
        level: Confidence of the intervals.
        seed: Of the bootstrap.

    Raises:
        ValueError: If a folder or the table is broken, the labels have no glomeruli, ``limit`` is
            negative, or ``level`` not between 0 and 1.
    """
    slides = read_segmented_all(folders, table=table)
    counts = [count_slide(slide) for slide in slides]
    findings = find_findings(counts, level=level, seed=seed)
    reviews = {slide.name: choose_review(slide, limit=limit) for slide in slides}
    found = findings, size_table(counts), reviews, tuple(_remarks(slides))
    report = SlideReport(Path(out), *found)
    for slide in slides:
        write_review(report.review_path(slide.name), slide, reviews[slide.name])
    write_json(report.json_path, _json(report, counts, level))
    page = make_page(findings, counts, reviews=reviews, remarks=report.remarks, level=level)
    page.write(report.html_path)
    return report


def _remarks(slides: Sequence[SegmentedSlide]) -> list[str]:
    remarks = []
    for key in SETTINGS:
        values = {str(slide.summary["made_from"].get(key)) for slide in slides}
        if len(values) > 1:
            remarks.append(
                f"The slides were segmented with different settings ({key}): their numbers cannot "
                "be compared as they are."
            )
    unscaled = [slide.name for slide in slides if slide.mpp_l0 is None]
    if unscaled:
        remarks.append(f"No areas or sizes, since the scale is not known: {', '.join(unscaled)}.")
    whole = [slide.name for slide in slides if slide.cortex is None]
    if whole:
        remarks.append(
            f"Counted on all tissue, medulla too, since no cortex is outlined: {', '.join(whole)}."
        )
    damaged = [s.name for s in slides if s.summary.get("run", {}).get("damaged_tiles")]
    if damaged:
        remarks.append(f"Damaged parts were left out as if they were glass: {', '.join(damaged)}.")
    if len(slides) > 1 and all(slide.donor == slide.name for slide in slides):
        remarks.append("Each slide is taken as a donor of its own.")
    return remarks


def _json(report: SlideReport, counts: Sequence[SlideCounts], level: float | int) -> dict[str, Any]:
    slides = [
        {
            "name": c.slide.name,
            "donor": c.slide.donor,
            "group": c.slide.group,
            "counted_on": "tissue" if c.slide.cortex is None else "cortex",
            "made_from": dict(c.slide.summary["made_from"]),
            "review": _records(report.reviews[c.slide.name]),
        }
        for c in counts
    ]
    return {
        "warning": NOT_FOR_DIAGNOSIS,
        "level": level,
        "remarks": list(report.remarks),
        "findings": _records(report.findings),
        "diameter_quantiles_um": _records(report.sizes.reset_index(names="name")),
        "slides": slides,
        "provenance": provenance(),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows as plain values; NaN, which JSON lacks, becomes None."""
    plain = table.astype(object).where(table.notna(), None)
    return [
        {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
        for row in plain.to_dict("records")
    ]
