"""How each kind of truth gives the class ids under a grid of pixels; used by ``label_sources``.

A grid names, for each pixel at the working scale, the level-0 pixel under its centre. A sampler
answers for a grid that lies inside its image, and holds no more of the truth than it must.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, Shaped, UInt8

from renal_utils.labels import IGNORE_ID, KIDNEY_TISSUES, LabelSet, convert_labels
from renal_utils.polygons import PolygonObject, draw_polygons
from renal_utils.rle import RunLengths
from renal_utils.slides import Slide, SlideView

BRIGHT_ABOVE = 127  # a pixel of a "threshold_image" is foreground when it is brighter than this


@dataclass(frozen=True)
class SampleGrid:
    """A window at a working scale, and the level-0 pixel under the centre of each of its pixels."""

    xy_px: tuple[int, int]
    size_px: tuple[int, int]
    downsample: float

    @property
    def columns_l0(self) -> Int64[np.ndarray, " w"]:
        return self._centres_l0(0)

    @property
    def rows_l0(self) -> Int64[np.ndarray, " h"]:
        return self._centres_l0(1)

    def _centres_l0(self, axis: int) -> Int64[np.ndarray, " n"]:
        pixels = self.xy_px[axis] + np.arange(self.size_px[axis])
        return np.floor((pixels + 0.5) * self.downsample).astype(np.int64)


@runtime_checkable
class Sampler(Protocol):
    """What a kind of truth must do."""

    def sample(self, grid: SampleGrid) -> UInt8[np.ndarray, "h w"]:
        """Return the class ids under a grid that lies inside the image."""


@dataclass(frozen=True)
class NoSampler:
    """No truth: every pixel is unlabelled."""

    def sample(self, grid: SampleGrid) -> UInt8[np.ndarray, "h w"]:
        return np.full(grid.size_px[::-1], IGNORE_ID, np.uint8)


@dataclass(frozen=True)
class RunSampler:
    """Runs of one class on background."""

    runs: RunLengths
    class_id: int

    def sample(self, grid: SampleGrid) -> UInt8[np.ndarray, "h w"]:
        inside = self.runs.sample(grid.columns_l0, grid.rows_l0)
        return inside * np.uint8(self.class_id)


@dataclass(frozen=True)
class PolygonSampler:
    """Outlines and their class ids; where they overlap the first keeps the pixel."""

    objects: list[PolygonObject]
    class_ids: list[int]
    bounds_l0: Float[np.ndarray, "n 4"]
    fill: int

    def sample(self, grid: SampleGrid) -> UInt8[np.ndarray, "h w"]:
        columns, rows = grid.columns_l0 + 0.5, grid.rows_l0 + 0.5
        left, top, right, bottom = self.bounds_l0.T
        near = (left <= columns[-1]) & (right >= columns[0])
        near &= (top <= rows[-1]) & (bottom >= rows[0])
        chosen = np.flatnonzero(near).tolist()
        canvas = np.full(grid.size_px[::-1], self.fill, np.uint8)
        shapes = [self.objects[n].polygon for n in chosen]
        draw_polygons(shapes, [self.class_ids[n] for n in chosen], canvas, columns, rows)
        return canvas


@dataclass(frozen=True)
class ArraySampler:
    """Class ids of a small image, held in memory."""

    labels: UInt8[np.ndarray, "h w"]

    def sample(self, grid: SampleGrid) -> UInt8[np.ndarray, "h w"]:
        return self.labels[grid.rows_l0[:, None], grid.columns_l0]


@dataclass(frozen=True)
class ValueTable:
    """What the pixel values of a truth image mean, by the kind of truth."""

    kind: str
    label_set: LabelSet
    path: Path

    def __call__(self, values: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """Return class ids.

        Raises:
            ValueError: If a label image holds an id that the label set lacks.
        """
        if self.kind in ("label_image", "centre_image"):
            return self._checked(values, self.label_set)
        if self.kind == "tissue_image":
            ids = self._checked(values, KIDNEY_TISSUES)
            return convert_labels(ids, KIDNEY_TISSUES, self.label_set)
        if self.kind == "threshold_image" and values.dtype != bool:
            values = values > BRIGHT_ABOVE
        return (values != 0) * np.uint8(self.label_set.foreground[0].id)

    def _checked(
        self, values: Shaped[np.ndarray, "h w"], label_set: LabelSet
    ) -> UInt8[np.ndarray, "h w"]:
        last = len(label_set.classes) - 1
        unknown = np.unique(values[((values > last) & (values != IGNORE_ID)) | (values < 0)])
        if len(unknown):
            raise ValueError(
                f"{self.path} holds values {unknown[:8].tolist()}, but the ids of label set "
                f"{label_set.name!r} are 0 to {last} (and {IGNORE_ID} for unlabelled). "
                "State the right label set, or truth_kind 'instance_image' or 'threshold_image'"
            )
        return values.astype(np.uint8)


@dataclass(frozen=True)
class SlideSampler:
    """A label TIFF read window by window; ``to_ids`` says what its values mean."""

    slide: Slide
    to_ids: ValueTable

    def sample(self, grid: SampleGrid) -> UInt8[np.ndarray, "h w"]:
        view = self.slide.at_downsample(grid.downsample)
        return self.to_ids(_read_values(view, grid, self.to_ids.kind))


def _read_values(view: SlideView, grid: SampleGrid, kind: str) -> Shaped[np.ndarray, "h w"]:
    """Read stored values; a mask saved as a colour image is read at its mean brightness."""
    if kind == "threshold_image" and view.slide.channels == 3:
        return view.read(grid.xy_px, grid.size_px).mean(axis=2)
    return view.read_labels(grid.xy_px, grid.size_px)
