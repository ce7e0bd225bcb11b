"""What comes out of a stitched slide: pyramids, outlines, a table, a summary.

All are made from the finished rows in their store, one after the other and each in bands, so they
need little memory and can be made again after a kill.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
from jaxtyping import Bool

from renal_utils.bandstore import BandStore
from renal_utils.labels import LabelSet
from renal_utils.objects import TissueObject, trace_objects
from renal_utils.polygon_files import write_geojson
from renal_utils.polygons import PolygonObject
from renal_utils.result_folder import (
    CSV_NAME,
    GEOJSON_NAME,
    LABELS_NAME,
    PROBABILITY_NAME,
    SPREAD_NAME,
    TISSUE_NAME,
)
from renal_utils.runtime import atomic_path
from renal_utils.slides import write_pyramid

BAND_PIXELS = 1 << 21  # of a band in memory while results are made
_PYRAMIDS = (
    (PROBABILITY_NAME, 0, "probability"),
    (LABELS_NAME, 1, "labels"),
    (SPREAD_NAME, 2, "probability"),
)
COLUMNS = (
    "object",
    "class",
    "area_um2",
    "area_px",
    "x_l0",
    "y_l0",
    "left_l0",
    "top_l0",
    "width_l0",
    "height_l0",
    "mean_probability",
)
SPREAD_COLUMN = "mean_spread"  # stands last, where there is a spread


@dataclass(frozen=True)
class Scale:
    """How the working scale relates to the slide's level 0 and to the tissue.

    Attributes:
        size_px: (width, height) of the slide in working pixels.
        downsample: Level-0 pixels per working pixel.
        mpp: Microns per working pixel; None when not known.
    """

    size_px: tuple[int, int]
    downsample: float
    mpp: float | None

    def area_um2(self, area_px: int) -> float | None:
        return None if self.mpp is None else round(area_px * self.mpp**2, 3)


def write_results(
    folder: Path,
    store: BandStore,
    *,
    scale: Scale,
    label_set: LabelSet,
    object_classes: Sequence[str],
    min_object_px: float | int,
) -> dict[str, dict[str, Any]]:
    """Write both pyramids, the outlines and the table; return counts and areas of each class.

    Args:
        folder: Where to.
        store: All rows, as (probability, class id) of ``uint8``, with a spread behind them if there
            is one.
        scale: Of the rows.
        label_set: Of the class ids.
        object_classes: Classes whose objects are outlined and counted.
        min_object_px: Smaller objects are left out of outlines, table and counts, not of the label
            pyramid.
    """
    height = max(64, BAND_PIXELS // scale.size_px[0])
    for name, channel, kind in _PYRAMIDS[: store.channels]:
        write_pyramid(
            folder / name,
            (np.ascontiguousarray(band[..., channel]) for band in store.bands(height)),
            size_px=scale.size_px,
            mpp=scale.mpp,
            compression="deflate",
            kind=kind,
        )
    tally = _Tally(scale, label_set)
    bands = tally.watch_rows(store.bands(height))
    ids = [label_set.id_of(name) for name in object_classes]
    objects = trace_objects(bands, class_ids=ids, min_area_px=min_object_px)
    _write_objects(folder, tally.watch_objects(objects), scale, label_set, store.channels == 3)
    return tally.classes()


def write_tissue(
    folder: Path, mask: Bool[np.ndarray, "H W"], downsample: float, *, mpp_l0: float | None
) -> dict[str, Any]:
    """Write where tissue lies as an image of one bit a pixel; return its scale and area.

    Args:
        folder: Where to.
        mask: Of the whole slide.
        downsample: Level-0 pixels per pixel of the mask.
        mpp_l0: Microns per level-0 pixel; None when not known.
    """
    with atomic_path(folder / TISSUE_NAME) as temporary:
        options = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9]
        if not cv2.imwrite(str(temporary), mask.astype(np.uint8) * 255, options):
            raise OSError(f"could not write {folder / TISSUE_NAME}; is the disk full?")
    pixels = int(mask.sum())
    area = None if mpp_l0 is None else round(pixels * (downsample * mpp_l0) ** 2, 1)
    return {"downsample": downsample, "pixels": pixels, "area_um2": area}


class _Tally:
    """Counts of pixels and objects, kept while they pass by."""

    def __init__(self, scale: Scale, label_set: LabelSet) -> None:
        self._scale = scale
        self._label_set = label_set
        self._pixels = np.zeros(256, np.int64)
        self._objects = np.zeros((2, 256), np.int64)  # number, pixels

    def watch_rows(self, bands: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for band in bands:
            labels = np.ascontiguousarray(band[..., 1])
            self._pixels += np.bincount(labels.ravel(), minlength=256)
            yield (
                labels,
                np.ascontiguousarray(band[..., 0] if band.shape[2] == 2 else band[..., ::2]),
            )

    def watch_objects(self, objects: Iterator[TissueObject]) -> Iterator[TissueObject]:
        for found in objects:
            self._objects[:, found.class_id] += (1, found.area_px)
            yield found

    def classes(self) -> dict[str, dict[str, Any]]:
        return {c.name: self._class(c.id) for c in self._label_set.foreground}

    def _class(self, class_id: int) -> dict[str, Any]:
        count, area = (int(n) for n in self._objects[:, class_id])
        pixels = int(self._pixels[class_id])
        return {
            "objects": count,
            "objects_area_px": area,
            "objects_area_um2": self._scale.area_um2(area),
            "pixels": pixels,
            "pixels_area_um2": self._scale.area_um2(pixels),
        }


def _write_objects(
    folder: Path,
    objects: Iterator[TissueObject],
    scale: Scale,
    label_set: LabelSet,
    has_spread: bool,
) -> None:
    """Write the table and the outlines side by side, one object at a time."""
    with (
        atomic_path(folder / CSV_NAME) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, (*COLUMNS, SPREAD_COLUMN) if has_spread else COLUMNS)
        table.writeheader()

        def features() -> Iterator[PolygonObject]:
            for number, found in enumerate(objects, start=1):
                row = _row(number, found, scale, label_set)
                table.writerow(row)
                yield _feature(row, found, scale)

        write_geojson(folder / GEOJSON_NAME, features(), label_set=label_set)


def _row(number: int, found: TissueObject, scale: Scale, label_set: LabelSet) -> dict[str, Any]:
    box, d = found.box, scale.downsample
    values = (
        number,
        label_set.classes[found.class_id].name,
        scale.area_um2(found.area_px),
        found.area_px,
        *(_rounded(v * d) for v in (*found.centroid_px, box.x, box.y, box.width, box.height)),
        round(found.mean_probability, 4),
    )
    row = dict(zip(COLUMNS, values, strict=True))
    if found.mean_spread is not None:
        row[SPREAD_COLUMN] = round(found.mean_spread, 4)
    return row


def _feature(row: dict[str, Any], found: TissueObject, scale: Scale) -> PolygonObject:
    known = ("area_um2", "Area µm^2") if scale.mpp is not None else ("area_px", "Area px")
    measurements = {known[1]: row[known[0]], "Mean probability": row["mean_probability"]}
    if SPREAD_COLUMN in row:
        measurements["Mean spread"] = row[SPREAD_COLUMN]
    outline = shapely.transform(found.outline, lambda xy: np.round(xy * scale.downsample, 2))
    properties = {"name": f"{row['class']} {row['object']}", "measurements": measurements}
    if not found.is_outlined:
        properties["outline"] = "too large to be outlined: its box"
    return PolygonObject(row["class"], outline, properties)


def _rounded(value: float) -> float | int:
    """Return level-0 pixels to a hundredth, whole numbers as such."""
    value = round(value, 2)
    return int(value) if value == int(value) else value
