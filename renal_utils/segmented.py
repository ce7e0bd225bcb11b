"""Segmented slides: what ``stitch_slide`` left in a folder, read back for counting.

A table beside the folders may say what they cannot: whose slide it is, of which group, where the
slide itself and an outline of its cortex lie.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8

from renal_utils.annotations import read_polygons
from renal_utils.labels import IGNORE_ID, LabelSet, get_label_set
from renal_utils.polygons import PolygonObject, fill_polygon
from renal_utils.result_folder import (
    CSV_NAME,
    LABELS_NAME,
    RUN_NAME,
    SUMMARY_NAME,
    TISSUE_NAME,
    is_finished,
)
from renal_utils.runtime import read_json
from renal_utils.slides import open_slide
from renal_utils.tables import read_table

_PATHS = ("image", "cortex")
_NUMBERS = ("object", "area_px", "x_l0", "y_l0", "left_l0", "top_l0", "width_l0", "height_l0")
_CORTEX = ("cortex", "renal cortex", "kidney cortex")


@dataclass(frozen=True)
class SegmentedSlide:
    """One slide's results, and whose they are.

    Attributes:
        name: The slide's, without its suffixes.
        folder: Where the results lie.
        donor: Person or animal.
        group: Disease group, or "".
        label_set: Of the classes.
        summary: ``summary.json``.
        objects: ``objects.csv``, one row an object.
        tissue: Where the slide has tissue.
        cortex: Outlines of the cortex, level-0 pixels; None where nobody drew it.
        image: The slide's file, or None.
    """

    name: str
    folder: Path
    donor: str
    group: str
    label_set: LabelSet
    summary: Mapping[str, Any]
    objects: pd.DataFrame
    tissue: Bool[np.ndarray, "H W"]
    cortex: tuple[PolygonObject, ...] | None = None
    image: Path | None = None

    @property
    def mpp_l0(self) -> float | None:
        """Microns per level-0 pixel of the slide, or None."""
        mpp = self.summary["mpp"]
        return None if mpp is None else mpp / self.summary["downsample"]

    @property
    def size_l0(self) -> tuple[int, int]:
        width, height = self.summary["made_from"]["slide_size_l0"]
        return int(width), int(height)

    @property
    def cell_l0(self) -> float:
        """Level-0 pixels along a cell of ``tissue``."""
        return float(self.summary["tissue"]["downsample"])

    @property
    def cell_mm2(self) -> float | None:
        """Area of a cell of ``tissue`` in square millimetres, or None without a scale."""
        return None if self.mpp_l0 is None else (self.cell_l0 * self.mpp_l0 / 1000) ** 2

    def region(self) -> Bool[np.ndarray, "H W"]:
        """Return what is counted on: the tissue, within the cortex where that is outlined."""
        if self.cortex is None:
            return self.tissue
        rows, columns = ((np.arange(n) + 0.5) * self.cell_l0 for n in self.tissue.shape)
        inside = np.zeros(self.tissue.shape, bool)
        for outline in self.cortex:
            inside |= fill_polygon(outline.polygon, columns, rows)
        return inside & self.tissue

    def counted(self) -> Bool[np.ndarray, " n"]:
        """Say which objects are counted: all, or those whose centre lies in the cortex."""
        if self.cortex is None:
            return np.ones(len(self.objects), bool)
        from shapely import points

        centres = points(self.objects[["x_l0", "y_l0"]].to_numpy(float))
        inside = np.zeros(len(centres), bool)
        for outline in self.cortex:
            inside |= np.asarray(outline.polygon.buffer(0).intersects(centres), bool)
        return inside

    def class_points(self) -> UInt8[np.ndarray, "H W"]:
        """Return the class under the middle of each cell of ``tissue``: a grid of points."""
        height, width = self.tissue.shape
        with open_slide(self.folder / LABELS_NAME) as labels:
            view = labels.at_downsample(self.cell_l0 / self.summary["downsample"])
            return view.read_labels((0, 0), (width, height), fill=IGNORE_ID).astype(np.uint8)


def read_segmented(
    folder: str | Path,
    *,
    donor: str | None = None,
    group: str = "",
    image: str | Path | None = None,
    cortex: str | Path | None = None,
) -> SegmentedSlide:
    """Read a folder that ``stitch_slide`` or ``renal segment`` wrote.

    Args:
        folder: The folder.
        donor: Whose slide it is; None makes each slide a donor of its own.
        group: Disease group.
        image: The slide, for pictures only.
        cortex: QuPath or GeoJSON outlines, those called "Cortex" among them.

    Raises:
        ValueError: If the folder is not finished, its files contradict each other, or ``cortex``
            has no outline of a cortex; the message names the file.
    """
    folder = Path(folder)
    if not is_finished(folder):
        raise ValueError(
            f"{folder} holds no finished results ({SUMMARY_NAME} and all that it speaks of); run "
            "renal segment on the slide, or again if it was stopped"
        )
    summary = read_json(folder / SUMMARY_NAME)
    made_from = summary["made_from"]
    label_set = get_label_set(made_from["label_set"])
    name = slide_name(made_from["slide"])
    return SegmentedSlide(
        name,
        folder,
        donor or name,
        group,
        label_set,
        summary,
        _read_objects(folder, summary),
        _read_tissue(folder, summary),
        None if cortex is None else _read_cortex(Path(cortex)),
        None if image is None else Path(image),
    )


def read_segmented_all(
    folders: Iterable[str | Path], *, table: str | Path | None = None
) -> list[SegmentedSlide]:
    """Read several folders; one that holds no results itself stands for those directly in it.

    Args:
        folders: Of ``renal segment``.
        table: Csv with a column ``slide`` (name of the slide, with or without its suffix) and any
            of ``donor``, ``group``, ``image``, ``cortex``; paths in it start at its own folder.
            It may list more slides than there are folders.

    Raises:
        ValueError: If nothing is found, a folder is broken or unfinished, two are of one slide, the
            label sets differ, or the table lacks a slide.
    """
    known = {} if table is None else _read_slide_table(Path(table))
    slides = []
    for folder in _expand(folders):
        name = slide_name(read_json(folder / RUN_NAME)["made_from"]["slide"])
        if table is not None and name not in known:
            raise ValueError(f"{table} has no row for the slide {name!r} of {folder}; add one")
        slides.append(read_segmented(folder, **known.get(name, {})))
    _check_together(slides)
    return slides


def slide_name(file_name: str) -> str:
    """Return a slide's name without its suffixes: ``a.1.ome.tiff`` is ``a.1``."""
    stem = Path(file_name).stem
    return stem.removesuffix(".ome")


def _expand(folders: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for folder in map(Path, folders):
        inner = [folder] if (folder / RUN_NAME).exists() else sorted(folder.glob(f"*/{RUN_NAME}"))
        if not inner:
            raise ValueError(
                f"{folder} holds no results, and no folder in it does; give folders that "
                "renal segment wrote"
            )
        found += [path if path.is_dir() else path.parent for path in inner]
    return list(dict.fromkeys(path.resolve() for path in found))


def _check_together(slides: Sequence[SegmentedSlide]) -> None:
    seen: dict[str, Path] = {}
    for slide in slides:
        key = str(slide.summary["made_from"]["slide_bytes"])
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {slide.folder} are of the same slide; its objects would be "
                "counted twice: leave one out"
            )
        seen[key] = slide.folder
    if len(names := {slide.label_set.name for slide in slides}) > 1:
        raise ValueError(
            f"the slides were segmented into different label sets, {sorted(names)}; report on one "
            "at a time"
        )
    if len(names := {slide.name for slide in slides}) < len(slides):
        raise ValueError(f"{len(slides)} slides, but only {len(names)} names: rename the slides")


def _read_slide_table(path: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for row in read_table(path, ("slide",)).to_dict("records"):
        name = slide_name(row["slide"]) if Path(row["slide"]).suffix else row["slide"]
        if name in rows:
            raise ValueError(f"{path}: slide {name!r} stands twice; keep one row for each")
        given = {key: row[key] for key in ("donor", "group", *_PATHS) if row.get(key)}
        rows[name] = given | {key: path.parent / given[key] for key in _PATHS if key in given}
    return rows


def _read_objects(folder: Path, summary: Mapping[str, Any]) -> pd.DataFrame:
    path = folder / CSV_NAME
    objects = read_table(path, ("class", *_NUMBERS, "area_um2", "mean_probability"))
    for name in objects.columns.drop("class"):
        objects[name] = pd.to_numeric(objects[name], errors="coerce")
    counted = sum(values["objects"] for values in summary["classes"].values())
    bad = objects[[*_NUMBERS, "mean_probability"]].isna().to_numpy().any()
    if bad or len(objects) != counted:
        raise ValueError(
            f"{path} holds {len(objects)} objects{' and cells that are no numbers' if bad else ''},"
            f" {SUMMARY_NAME} says {counted}; was it edited or cut off? segment the slide again"
        )
    return objects


def _read_tissue(folder: Path, summary: Mapping[str, Any]) -> Bool[np.ndarray, "H W"]:
    path = folder / TISSUE_NAME
    with open_slide(path) as image:
        mask = image.at_downsample(1).read_channels((0, 0), image.size_l0)[..., 0] > 0
    if mask.sum() != summary["tissue"]["pixels"]:
        raise ValueError(
            f"{path} has {mask.sum()} pixels of tissue, {SUMMARY_NAME} says "
            f"{summary['tissue']['pixels']}; was it edited? segment the slide again"
        )
    return mask


def _read_cortex(path: Path) -> tuple[PolygonObject, ...]:
    outlines = read_polygons(path)
    found = tuple(o for o in outlines if o.label.strip().lower() in _CORTEX)
    if not found:
        labels = sorted({o.label for o in outlines})
        raise ValueError(f"{path} has no outline called 'Cortex'; it has {labels}")
    return found
