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

from renal_utils.findings import MEASURES, SlideCounts, count_slide, find_findings, size_table
from renal_utils.intervals import LEVEL
from renal_utils.labels import IGNORE_ID
from renal_utils.report_page import Page
from renal_utils.result_folder import SPREAD_NAME, file_identity
from renal_utils.review import choose_review, write_review
from renal_utils.runtime import provenance, write_json
from renal_utils.segmented import SegmentedSlide, read_segmented_all
from renal_utils.slides import open_slide

NOT_FOR_DIAGNOSIS = (
    "Not for diagnosis. These numbers were computed by a neural network and checked by nobody. "
    "They must not guide the treatment of a patient."
)
JSON_NAME, HTML_NAME, REVIEW_FOLDER = "report.json", "report.html", "review"
_SETTINGS = ("network", "threshold", "mpp", "downsample", "min_object_px", "min_object_um2")
_PICTURE_PX = 900


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
        out: Folder for the report; made if absent, an earlier report in it is replaced.
        table: Csv with donor, group, image and cortex of each slide, see
            ``segmented.read_segmented_all``. Without it each slide is a donor of its own.
        limit: Objects a slide on the list to look through, at most.
        level: Confidence of the intervals.
        seed: Of the bootstrap.

    Raises:
        ValueError: If a folder or the table is broken, or the labels have no glomeruli.
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
    _write_page(report, counts, level)
    return report


def summarise(findings: pd.DataFrame, *, level: float | int = LEVEL) -> list[str]:
    """Return what the findings say, one plain sentence a measure, for all slides together."""
    rows = findings[findings["scope"] == "all"].set_index("measure")
    donors = findings.loc[findings["scope"] == "donor", "name"].nunique()
    slides = findings.loc[findings["scope"] == "slide", "name"].nunique()
    if donors == 1:  # then its own intervals say more than those over donors
        rows = findings[findings["scope"] == "donor"].set_index("measure")
    found = int(rows.loc["glomeruli", "value"])
    sentences = [
        f"{found} glomeruli were found on {_many(slides, 'slide')} of {_many(donors, 'donor')}."
    ]
    texts = {
        "density": "There are {} glomeruli per square millimetre.",
        "mean_diameter": "A glomerulus is {} wide on average.",
        "sclerosed_share": "Of the glomeruli, {} look sclerosed to the network.",
        "fibrosis_share": "Of the area, {} looks fibrotic to the network.",
    }
    for measure, text in texts.items():
        if measure in rows.index and not pd.isna(rows.loc[measure, "value"]):
            sentences.append(text.format(tell(rows.loc[measure])))
    return [*sentences, f"Figures in brackets are {level:.0%} intervals."]


def tell(row: pd.Series) -> str:
    """Return a finding in words: its value, and its interval in brackets where it has one."""
    share, unit = row["unit"] == "share", row["unit"]

    def number(value: float) -> str:
        if share:
            return f"{value:.1%}"
        return f"{value:,.0f}" if unit in ("", "µm²") or value >= 1000 else f"{value:.3g}"

    if pd.isna(row["value"]):
        return f"not known ({row['method']})"
    shown = "" if unit in ("", "share", "1/mm²") else f" {unit}"
    if pd.isna(row["low"]):
        return number(row["value"]) + shown
    return f"{number(row['value'])}{shown} ({number(row['low'])} to {number(row['high'])})"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _remarks(slides: Sequence[SegmentedSlide]) -> list[str]:
    remarks = []
    for key in _SETTINGS:
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
    if len({slide.donor for slide in slides}) == len(slides) > 1:
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


def _write_page(report: SlideReport, counts: Sequence[SlideCounts], level: float | int) -> None:
    page = Page("Report on segmented kidney tissue", warning=NOT_FOR_DIAGNOSIS)
    page.heading("In plain words")
    page.items(summarise(report.findings, level=level))
    if report.remarks:
        page.heading("What to keep in mind", level=3)
        page.items(report.remarks)
    page.heading("All donors")
    _add_findings(page, report.findings, "all", level)
    _add_charts(page, report, counts)
    page.heading("Each donor")
    _add_findings(page, report.findings, "donor", level)
    for one in counts:
        _add_slide(page, report, one, level)
    page.heading("How it was made")
    _add_settings(page, counts)
    page.write(report.html_path)


def _add_findings(page: Page, findings: pd.DataFrame, scope: str, level: float | int) -> None:
    rows = findings[findings["scope"] == scope]
    many = rows["name"].nunique() > 1
    cells = []
    for row in rows.to_dict("records"):
        series = pd.Series(row)
        who = [row["name"]] if many else []
        cells.append([*who, row["title"], tell(series), row["method"]])
    columns = [*(["Donor"] if many else []), "Number", "Value", "Interval from"]
    page.table(columns, cells, caption=f"Values with {level:.0%} intervals")


def _add_charts(page: Page, report: SlideReport, counts: Sequence[SlideCounts]) -> None:
    from renal_utils.plots import plot_estimates, plot_size_distribution, take_picture

    findings = report.findings
    for measure in ("density", "sclerosed_share", "fibrosis_share"):
        rows = findings[(findings["measure"] == measure) & (findings["scope"] == "donor")]
        if rows["value"].notna().any():
            title, unit = MEASURES[measure]
            ax = plot_estimates(rows, xlabel=f"{title} ({unit})", title=f"{title}, by donor")
            page.picture(*take_picture(ax))
    sizes = pd.concat([c.glomeruli for c in counts])["diameter_um"].dropna().to_frame()
    if len(sizes):
        title = f"Diameters of {len(sizes)} glomeruli"
        ax = plot_size_distribution(sizes, "diameter_um", xlabel="Diameter (µm)", title=title)
        page.picture(*take_picture(ax), caption="Of the circle of the same area.")
        table = report.sizes
        rows = [[str(n), *(f"{v:.0f}" for v in row)] for n, row in table.iterrows()]
        page.table(["", *table.columns], rows, caption="Quantiles of the diameter, µm")


def _add_slide(page: Page, report: SlideReport, counts: SlideCounts, level: float | int) -> None:
    slide = counts.slide
    whose = f"donor {slide.donor}" + (f", group {slide.group}" if slide.group else "")
    page.heading(f"Slide {slide.name} ({whose})")
    _add_pictures(page, slide)
    rows = report.findings.query("scope == 'slide' and name == @slide.name")
    cells = [[r["title"], tell(pd.Series(r)), r["method"]] for r in rows.to_dict("records")]
    page.table(
        ["Number", "Value", "Interval from"], cells, caption=f"Values with {level:.0%} intervals"
    )
    chosen = report.reviews[slide.name]
    page.heading("Most worth a look", level=3)
    if chosen.empty:
        page.paragraph("No object stands out.")
        return
    place = f"{REVIEW_FOLDER}/{slide.name}.geojson"
    page.paragraph(f"{place} holds them for QuPath: open the slide, then drag the file onto it.")
    lines = [
        [str(n), f"{r['class']} {r['object']}", f"{r['x_l0']:.0f}, {r['y_l0']:.0f}",
         f"{r['mean_probability']:.2f}", r["reasons"]]
        for n, r in enumerate(chosen.to_dict("records"), start=1)
    ]  # fmt: skip
    columns = ["", "Object", "Place (x, y, level-0 pixels)", "Mean probability", "Why"]
    page.table(columns, lines, caption="Objects, the most doubtful first")


def _add_pictures(page: Page, slide: SegmentedSlide) -> None:
    """Draw the classes over the slide, or over its tissue where the slide is not at hand."""
    from renal_utils.plots import plot_overlay, plot_probability, take_picture

    downsample = max(1.0, max(slide.size_l0) / _PICTURE_PX)
    mpp = None if slide.mpp_l0 is None else slide.mpp_l0 * downsample
    with open_slide(slide.folder / "labels.ome.tiff") as labels:
        view = labels.at_downsample(max(1.0, downsample / slide.summary["downsample"]))
        ids = view.read_labels((0, 0), view.size_px, fill=IGNORE_ID).astype(np.uint8)
    rgb = _background(slide, (ids.shape[1], ids.shape[0]))
    ax = plot_overlay(rgb, ids, slide.label_set, mpp=mpp, title=f"What was found on {slide.name}")
    page.picture(*take_picture(ax, palette=128))
    spread = slide.folder / SPREAD_NAME
    if spread.exists():
        with open_slide(spread) as file:
            small = file.thumbnail(_PICTURE_PX)[..., 0] / 255
        title = "Where the answers of several views differ"
        ax = plot_probability(small, mpp=mpp, title=title, label="Standard deviation", top=0.5)
        page.picture(*take_picture(ax))


def _background(slide: SegmentedSlide, size_px: tuple[int, int]) -> np.ndarray:
    import cv2

    if slide.image is None:
        tissue = np.where(slide.tissue, 225, 255).astype(np.uint8)
        return np.repeat(cv2.resize(tissue, size_px)[..., None], 3, axis=2)
    if file_identity(slide.image) != slide.summary["made_from"]["slide_bytes"]:
        raise ValueError(
            f"{slide.image} is not the slide that {slide.folder} was made from; name the right one"
        )
    with open_slide(slide.image) as image:
        return cv2.resize(image.thumbnail(_PICTURE_PX), size_px, interpolation=cv2.INTER_AREA)


def _add_settings(page: Page, counts: Sequence[SlideCounts]) -> None:
    rows = []
    for one in counts:
        made_from = one.slide.summary["made_from"]
        shown = [str(made_from.get(key)) for key in _SETTINGS]
        shown[0] = shown[0][:12]
        rows.append([one.slide.name, *("" if text == "None" else text for text in shown)])
    names = ["Network (hash)", "Threshold", "Microns a pixel", "Down-sampled by"]
    names += ["Least object, pixels", "Least object, µm²"]
    page.table(["Slide", *names], rows, caption="Settings of the segmentation")
    page.paragraph(
        "Shares of glomeruli have Wilson's interval, counts per area the exact Poisson interval; "
        "means, medians and shares of area a bootstrap over objects or over blocks of half a "
        "millimetre. Over several donors whole donors are resampled. The intervals say how far the "
        "numbers would vary on other tissue of the same kind. They do not contain the network's "
        "own errors: objects missed, invented, joined or cut."
    )
