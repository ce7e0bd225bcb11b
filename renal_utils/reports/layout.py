"""The layout of a report's page: which words, tables and pictures, in which order."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from renal_utils.findings import MEASURES, SlideCounts, size_table
from renal_utils.intervals import LEVEL
from renal_utils.labels import IGNORE_ID
from renal_utils.reports.page import Page
from renal_utils.reports.words import NOT_FOR_DIAGNOSIS, summarise, tell
from renal_utils.result_folder import LABELS_NAME, SPREAD_NAME, file_identity
from renal_utils.segmented import SegmentedSlide
from renal_utils.slides import open_slide

REVIEW_FOLDER = "review"
SETTINGS = ("network", "threshold", "mpp", "downsample", "min_object_px", "min_object_um2")
_PICTURE_PX = 900
_PICTURE_INCHES = 7.5  # of the longest side, so that single glomeruli show


def make_page(
    findings: pd.DataFrame,
    counts: Sequence[SlideCounts],
    *,
    reviews: Mapping[str, pd.DataFrame],
    remarks: Sequence[str] = (),
    level: float | int = LEVEL,
) -> Page:
    """Return the page of a report, whose slides' lists lie in ``REVIEW_FOLDER`` beside it.

    Args:
        findings: See ``findings.find_findings``.
        counts: What they were computed from.
        reviews: For each slide's name, the rows of ``review.choose_review``.
        remarks: What a reader must know of these slides.
        level: Confidence of the intervals.

    Raises:
        ValueError: If a slide's image is not the one that was segmented.
    """
    from renal_utils.plots import course_style

    page = Page("Report on segmented kidney tissue", warning=NOT_FOR_DIAGNOSIS)
    page.heading("In plain words")
    page.items(summarise(findings, level=level))
    if remarks:
        page.heading("What to keep in mind", level=3)
        page.items(remarks)
    with course_style():
        _add_all(page, findings, counts, level)
        for one in counts:
            name = one.slide.name
            rows = findings[(findings["scope"] == "slide") & (findings["name"] == name)]
            _add_slide(page, one.slide, rows, level)
            _add_review(page, name, reviews[name])
    page.heading("How it was made")
    _add_settings(page, counts)
    return page


def _add_all(
    page: Page, findings: pd.DataFrame, counts: Sequence[SlideCounts], level: float | int
) -> None:
    """Add what holds for all slides; of one donor only its own numbers, which say more."""
    donors = findings[findings["scope"] == "donor"]
    if donors["name"].nunique() == 1:
        page.heading(f"Donor {donors['name'].iloc[0]}")
        _add_numbers(page, donors, level)
        _add_sizes(page, counts)
        return
    page.heading("All donors")
    _add_numbers(page, findings[findings["scope"] == "all"], level)
    _add_charts(page, donors)
    _add_sizes(page, counts)
    page.heading("Each donor")
    _add_donors(page, donors, level)


def _add_numbers(page: Page, rows: pd.DataFrame, level: float | int) -> None:
    cells = [[row["title"], tell(row), row["method"]] for _, row in rows.iterrows()]
    columns = ["Number", "Value", "Interval from"]
    page.table(columns, cells, caption=f"Values with {level:.0%} intervals")


def _add_donors(page: Page, rows: pd.DataFrame, level: float | int) -> None:
    """Add one row a donor, one column a number."""
    measures = rows.drop_duplicates("measure")
    cells = [
        [str(donor), *(tell(row) for _, row in own.iterrows())]
        for donor, own in rows.groupby("name", sort=False)
    ]
    caption = f"Values with {level:.0%} intervals"
    page.table(["Donor", *measures["title"]], cells, caption=caption)


def _add_charts(page: Page, donors: pd.DataFrame) -> None:
    from renal_utils.plots import plot_estimates, take_picture

    for measure in ("density", "sclerosed_share", "fibrosis_share"):
        rows, title = donors[donors["measure"] == measure], MEASURES[measure][0]
        if rows["value"].notna().any():
            ax = plot_estimates(rows, xlabel=title, title=f"{title}, by donor")
            page.picture(*take_picture(ax))


def _add_sizes(page: Page, counts: Sequence[SlideCounts]) -> None:
    from renal_utils.plots import plot_size_distribution, take_picture

    sizes = pd.concat([c.glomeruli for c in counts])["diameter_um"].dropna().to_frame()
    if len(sizes):
        title = f"Diameters of {len(sizes)} glomeruli"
        ax = plot_size_distribution(sizes, "diameter_um", xlabel="Diameter (µm)", title=title)
        page.picture(*take_picture(ax), caption="Of the circle of the same area.")
        table = size_table(counts).iloc[: None if len(counts) > 1 else 1]
        rows = [[str(n), *(f"{v:.0f}" for v in row)] for n, row in table.iterrows()]
        page.table(["", *table.columns], rows, caption="Quantiles of the diameter, µm")


def _add_slide(page: Page, slide: SegmentedSlide, rows: pd.DataFrame, level: float | int) -> None:
    whose = f"donor {slide.donor}" + (f", group {slide.group}" if slide.group else "")
    page.heading(f"Slide {slide.name} ({whose})")
    _add_pictures(page, slide)
    _add_numbers(page, rows, level)


def _add_review(page: Page, name: str, chosen: pd.DataFrame) -> None:
    page.heading("Most worth a look", level=3)
    if chosen.empty:
        page.paragraph("No object stands out.")
        return
    place = f"{REVIEW_FOLDER}/{name}.geojson"
    page.paragraph(f"{place} holds them for QuPath: open the slide, then drag the file onto it.")
    lines = [
        [
            str(number),
            f"{row['class']} {row['object']}",
            f"{row['x_l0']:.0f}, {row['y_l0']:.0f}",
            f"{row['mean_probability']:.2f}",
            row["reasons"],
        ]
        for number, row in enumerate(chosen.to_dict("records"), start=1)
    ]
    columns = ["", "Object", "Place (x, y, level-0 pixels)", "Mean probability", "Why"]
    page.table(columns, lines, caption="Objects, the most doubtful first")


def _add_pictures(page: Page, slide: SegmentedSlide) -> None:
    """Draw the classes over the slide, or over its tissue where the slide is not at hand."""
    from renal_utils.plots import open_axes, plot_overlay, plot_probability, take_picture

    ids = _read_small(slide, LABELS_NAME)
    size_px = ids.shape[1], ids.shape[0]
    cell_l0 = slide.size_l0[0] / size_px[0]
    mpp = None if slide.mpp_l0 is None else slide.mpp_l0 * cell_l0
    ax = plot_overlay(
        _background(slide, size_px),
        ids,
        slide.label_set,
        mpp=mpp,
        title=f"What was found on {slide.name}",
        outline=len(slide.label_set.foreground) == 1,  # borders show more than a veil of colour
        ax=open_axes(size_px, inches=_PICTURE_INCHES),
    )
    for outline in slide.cortex or ():
        for part in getattr(outline.polygon, "geoms", [outline.polygon]):
            x, y = np.array(part.exterior.xy) / cell_l0
            ax.plot(x, y, color="black", linestyle="--", linewidth=1)
    caption = "Dashed: the outlined cortex, which is counted on." if slide.cortex else ""
    page.picture(*take_picture(ax, palette=128), caption=caption)
    if (slide.folder / SPREAD_NAME).exists():
        small = _read_small(slide, SPREAD_NAME) / 255
        title = "Where the answers of several views differ"
        ax = open_axes(size_px, inches=_PICTURE_INCHES)
        options = {"mpp": mpp, "title": title, "label": "Standard deviation", "top": 0.5}
        plot_probability(small, ax=ax, **options)
        page.picture(*take_picture(ax))


def _read_small(slide: SegmentedSlide, name: str) -> np.ndarray:
    """Return a map of a slide, H W, with about ``_PICTURE_PX`` on its longest side at most."""
    with open_slide(slide.folder / name) as file:
        view = file.at_downsample(max(1.0, max(file.size_l0) / _PICTURE_PX))
        return view.read_labels((0, 0), view.size_px, fill=IGNORE_ID).astype(np.uint8)


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


def _setting(value: object) -> str:
    if value is None:
        return "not given"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _add_settings(page: Page, counts: Sequence[SlideCounts]) -> None:
    rows = []
    for one in counts:
        summary = one.slide.summary  # its scale is what the network saw, however it was given
        used = {**summary["made_from"], "mpp": summary["mpp"], "downsample": summary["downsample"]}
        shown = [_setting(used.get(key)) for key in SETTINGS]
        shown[0] = shown[0][:12]
        rows.append([one.slide.name, *shown])
    names = ["Network (hash)", "Threshold", "Microns a pixel that it saw", "Down-sampled by"]
    names += ["Least object, pixels", "Least object, µm²"]
    page.table(["Slide", *names], rows, caption="Settings of the segmentation")
    page.paragraph(
        "Shares of glomeruli have Wilson's interval, counts per area the exact Poisson interval; "
        "means, medians and shares of area a bootstrap over objects or over blocks of half a "
        "millimetre. Over several donors whole donors are resampled. The intervals say how far the "
        "numbers would vary on other tissue of the same kind. They do not contain the network's "
        "own errors: objects missed, invented, joined or cut."
    )
