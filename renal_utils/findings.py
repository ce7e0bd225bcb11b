"""Findings: what a pathologist counts on kidney tissue, each number with its interval.

For a slide, for a donor (all slides of one) and for all donors together: how many glomeruli, how
many per square millimetre, how large, which share is sclerosed, which share of the area is
fibrotic. Over several donors the unit is the donor, never the object (``intervals``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from renal_utils.intervals import (
    LEVEL,
    Estimate,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_ratio,
    no_estimate,
    poisson_rate,
    wilson_share,
)
from renal_utils.labels import IGNORE_ID
from renal_utils.segmented import SegmentedSlide

GLOMERULUS, SCLEROSED = "glomerulus", "sclerosed_glomerulus"
FIBROSIS = "interstitial_fibrosis"
BLOCK_UM = 500.0
BLOCK_CELLS = 64  # where the scale is not known
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

MEASURES: Mapping[str, tuple[str, str]] = {
    "glomeruli": ("Glomeruli counted", ""),
    "area_mm2": ("Area counted on", "mm²"),
    "density": ("Glomeruli per mm²", "1/mm²"),
    "mean_area": ("Mean area of a glomerulus", "µm²"),
    "mean_diameter": ("Mean diameter of a glomerulus", "µm"),
    "median_diameter": ("Median diameter of a glomerulus", "µm"),
    "sclerosed_share": ("Share of glomeruli that are sclerosed", "share"),
    "fibrosis_share": ("Share of the area that is fibrotic", "share"),
}
_NO_SCALE = "the slide's scale is not known"


@dataclass(frozen=True)
class SlideCounts:
    """What the findings are computed from, of one slide.

    Attributes:
        slide: The slide.
        glomeruli: Its glomeruli, sclerosed ones too: columns ``class``, ``area_um2``,
            ``diameter_um`` (of the circle of the same area), and those of ``objects.csv``.
        area_mm2: Tissue, or cortex, that was counted on; None without a scale.
        blocks: One row a block of about 0.5 mm: points of fibrosis, and points in all.
    """

    slide: SegmentedSlide
    glomeruli: pd.DataFrame
    area_mm2: float | None
    blocks: Float[np.ndarray, "n 2"]

    @property
    def sclerosed(self) -> int:
        return int((self.glomeruli["class"] == SCLEROSED).sum())


def count_slide(slide: SegmentedSlide) -> SlideCounts:
    """Return what is counted on a slide, in its cortex where that is outlined.

    Raises:
        ValueError: If the label set has no glomeruli.
    """
    if GLOMERULUS not in slide.label_set.names:
        raise ValueError(
            f"{slide.folder}: label set {slide.label_set.name!r} has no glomeruli to report on"
        )
    region = slide.region()
    objects = slide.objects[slide.counted()]
    glomeruli = objects[objects["class"].isin([GLOMERULUS, SCLEROSED])].reset_index(drop=True)
    glomeruli["diameter_um"] = 2 * np.sqrt(glomeruli["area_um2"] / np.pi)
    area = None if slide.cell_mm2 is None else float(region.sum() * slide.cell_mm2)
    return SlideCounts(slide, glomeruli, area, _count_points(slide, region))


def find_findings(
    slides: Iterable[SlideCounts], *, level: float | int = LEVEL, seed: int = 0
) -> pd.DataFrame:
    """Return all findings as a table: of each slide, each donor, and all donors.

    Args:
        slides: From ``count_slide``.
        level: Confidence of the intervals.
        seed: Of the bootstrap.

    Returns:
        One row a number, with columns ``scope`` ("slide", "donor", "all"), ``name`` (of the slide
        or donor), ``group``, ``measure`` (a key of ``MEASURES``), ``title``, ``unit`` and those of
        ``Estimate``. Where a donor has one slide the two agree.
    """
    slides = list(slides)
    donors: dict[str, list[SlideCounts]] = {}
    for counts in slides:
        donors.setdefault(counts.slide.donor, []).append(counts)
    rows = []
    for counts in slides:
        found = _of_one([counts], level, seed)
        rows += _rows("slide", counts.slide.name, counts.slide.group, found)
    for donor, own in donors.items():
        groups = "/".join(sorted({c.slide.group for c in own} - {""}))
        rows += _rows("donor", donor, groups, _of_one(own, level, seed))
    rows += _rows("all", "all donors", "", _of_donors(list(donors.values()), level, seed))
    return pd.DataFrame(rows)


def size_table(slides: Iterable[SlideCounts]) -> pd.DataFrame:
    """Return quantiles of the diameter, in microns, of each slide and of all (``QUANTILES``)."""
    slides = list(slides)
    values = {counts.slide.name: counts.glomeruli["diameter_um"].dropna() for counts in slides}
    values["all slides"] = pd.concat(list(values.values())) if values else pd.Series(dtype=float)
    rows = {name: sizes.quantile(list(QUANTILES)) for name, sizes in values.items()}
    return pd.DataFrame(rows).T.set_axis([f"{q:.0%}" for q in QUANTILES], axis=1)


def _of_one(slides: Sequence[SlideCounts], level: float | int, seed: int) -> dict[str, Estimate]:
    """Findings of one slide, or of one donor's slides put together."""
    glomeruli = pd.concat([c.glomeruli for c in slides])
    count, sclerosed = len(glomeruli), sum(c.sclerosed for c in slides)
    area = _total_area(slides)
    blocks = np.concatenate([c.blocks for c in slides])
    sizes = glomeruli["area_um2"].to_numpy(float), glomeruli["diameter_um"].to_numpy(float)
    has_scale = area is not None

    def measured(call: Callable[..., Estimate], values: np.ndarray) -> Estimate:
        return call(values, level=level, seed=seed) if has_scale else no_estimate(_NO_SCALE)

    found = {
        "glomeruli": _counted(count),
        "area_mm2": _plain(area),
        "density": poisson_rate(count, area, level=level) if area else _no_area(area),
        "mean_area": measured(bootstrap_mean, sizes[0]),
        "mean_diameter": measured(bootstrap_mean, sizes[1]),
        "median_diameter": measured(bootstrap_median, sizes[1]),
    }
    if _has(slides, SCLEROSED):
        found["sclerosed_share"] = wilson_share(sclerosed, count, level=level)
    if _has(slides, FIBROSIS):
        tops, bottoms = blocks.T
        found["fibrosis_share"] = bootstrap_ratio(
            tops, bottoms, unit="blocks", level=level, seed=seed
        )
    return found


def _of_donors(
    donors: Sequence[Sequence[SlideCounts]], level: float | int, seed: int
) -> dict[str, Estimate]:
    """Findings over donors, by resampling donors; of one donor no more than its own count."""
    slides = [counts for own in donors for counts in own]
    counts = [sum(len(c.glomeruli) for c in own) for own in donors]
    areas = [_total_area(own) for own in donors]

    def ratio(tops: Sequence[float | int], bottoms: Sequence[float | int | None]) -> Estimate:
        if any(b is None for b in bottoms):
            return no_estimate(_NO_SCALE)
        known = [float(b) for b in bottoms if b is not None]
        tops = [float(t) for t in tops]
        return bootstrap_ratio(tops, known, unit="donors", level=level, seed=seed)

    sized = [None if area is None else n for area, n in zip(areas, counts, strict=True)]
    found = {
        "glomeruli": _counted(sum(counts)),
        "area_mm2": _plain(_total_area(slides)),
        "density": ratio(counts, areas),
        "mean_area": ratio(_sums(donors, "area_um2"), sized),
        "mean_diameter": ratio(_sums(donors, "diameter_um"), sized),
    }
    if _has(slides, SCLEROSED):
        found["sclerosed_share"] = ratio([sum(c.sclerosed for c in own) for own in donors], counts)
    if _has(slides, FIBROSIS):
        points = [np.concatenate([c.blocks for c in own]).sum(axis=0) for own in donors]
        found["fibrosis_share"] = ratio([p[0] for p in points], [p[1] for p in points])
    return found


def _rows(scope: str, name: str, group: str, found: Mapping[str, Estimate]) -> list[dict]:
    return [
        {"scope": scope, "name": name, "group": group, "measure": measure}
        | dict(zip(("title", "unit"), MEASURES[measure], strict=True))
        | estimate.row()
        for measure, estimate in found.items()
    ]


def _count_points(
    slide: SegmentedSlide, region: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "n 2"]:
    """Count points of fibrosis and points in all, in square blocks that hold any."""
    if FIBROSIS not in slide.label_set.names:
        return np.zeros((0, 2))
    ids = slide.class_points()
    seen = region & (ids != IGNORE_ID)
    fibrotic = seen & (ids == slide.label_set.id_of(FIBROSIS))
    cell_um = None if slide.mpp_l0 is None else slide.mpp_l0 * slide.cell_l0
    side = BLOCK_CELLS if cell_um is None else BLOCK_UM / cell_um
    counts = [max(1, round(cells / side)) for cells in seen.shape]  # equal blocks, no slivers
    rows, columns = (np.arange(n) * k // n for n, k in zip(seen.shape, counts, strict=True))
    block = rows[:, None] * (columns[-1] + 1) + columns
    sums = [np.bincount(block.ravel(), mask.ravel().astype(float)) for mask in (fibrotic, seen)]
    both = np.stack(sums, axis=1)
    return both[both[:, 1] > 0]


def _has(slides: Sequence[SlideCounts], name: str) -> bool:
    return all(name in c.slide.label_set.names for c in slides)


def _sums(donors: Sequence[Sequence[SlideCounts]], column: str) -> list[float]:
    return [float(sum(c.glomeruli[column].sum() for c in own)) for own in donors]


def _total_area(slides: Sequence[SlideCounts]) -> float | None:
    areas = [c.area_mm2 for c in slides]
    return None if any(a is None for a in areas) else float(sum(a for a in areas if a is not None))


def _counted(count: int) -> Estimate:
    return Estimate(float(count), None, None, count, "a count of what was found")


def _plain(value: float | None) -> Estimate:
    return no_estimate(_NO_SCALE) if value is None else Estimate(value, None, None, 1, "measured")


def _no_area(area: float | None) -> Estimate:
    return no_estimate(_NO_SCALE if area is None else "no tissue")
