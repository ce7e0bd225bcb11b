"""Truth of any kind read as class ids, window by window, at any scale.

Whatever a record's truth is stored as, ``open_labels`` gives one thing: a ``LabelSource`` whose
``read`` returns the class ids of a window. A pixel at the working scale takes the class of the
full-resolution pixel under its centre, so labels are never blurred; pixels outside the image hold
``IGNORE_ID``. Run-length tables, polygons and tiled TIFFs are never held as a whole mask.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int64, Integer, UInt8
from PIL import Image

from renal_utils.labels import IGNORE_ID, LabelSet, get_label_set
from renal_utils.polygon_files import read_monuseg_xml, read_polygons
from renal_utils.polygons import PolygonObject, class_id_of, draw_polygons
from renal_utils.records import ImageRecord
from renal_utils.rle import RunLengths, parse_rle, read_rle_table
from renal_utils.slides import Slide, open_slide

BRIGHT_ABOVE = 127  # a pixel of a "threshold_image" is foreground when it is brighter than this
_TIFF_SUFFIXES = (".tif", ".tiff", ".svs")


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


class Sampler(Protocol):
    """What a kind of truth must do: give the class ids of a grid that lies inside the image."""

    def sample(self, grid: SampleGrid) -> UInt8[np.ndarray, "h w"]: ...


@dataclass(frozen=True)
class LabelSource:
    """The truth of one image as class ids of ``label_set``; see ``open_labels``.

    It may be pickled: a worker process opens its files anew.
    """

    record: ImageRecord
    size_l0: tuple[int, int]
    label_set: LabelSet
    sampler: Sampler = field(repr=False)

    def read(
        self, xy_px: tuple[int, int], size_px: tuple[int, int], downsample: float | int = 1.0
    ) -> UInt8[np.ndarray, "h w"]:
        """Return the class ids of a window.

        Args:
            xy_px: Left top corner at the working scale; may lie outside the image.
            size_px: (width, height) at the working scale.
            downsample: Level-0 pixels for each working pixel.

        Returns:
            Class ids, ``IGNORE_ID`` outside the image and where nobody labelled.

        Raises:
            ValueError: If the truth holds an id that the label set lacks.
        """
        grid = SampleGrid(xy_px, size_px, float(downsample))
        x0, x1 = np.searchsorted(grid.columns_l0, (0, self.size_l0[0])).tolist()
        y0, y1 = np.searchsorted(grid.rows_l0, (0, self.size_l0[1])).tolist()
        labels = np.full((size_px[1], size_px[0]), IGNORE_ID, np.uint8)
        if x0 < x1 and y0 < y1:
            xy = xy_px[0] + x0, xy_px[1] + y0
            inner = SampleGrid(xy, (x1 - x0, y1 - y0), grid.downsample)
            labels[y0:y1, x0:x1] = self.sampler.sample(inner)
        return labels

    def close(self) -> None:
        """Close the truth's file, where one is kept open."""
        if isinstance(self.sampler, SlideSampler):
            self.sampler.slide.close()

    def __enter__(self) -> "LabelSource":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_labels(record: ImageRecord) -> LabelSource:
    """Open the truth of a record and check it against its image.

    Raises:
        ValueError: If the truth is of another size than the image, is broken, lacks this image, or
            names a class that the label set does not have; the message names the files.
    """
    with open_slide(record.image_path) as slide:
        size_l0 = slide.size_l0
    label_set = get_label_set(record.label_set)
    sampler = _OPENERS[record.truth_kind](record, size_l0, label_set)
    return LabelSource(record, size_l0, label_set, sampler)


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
class SlideSampler:
    """A label TIFF read window by window; ``table`` turns its values into class ids."""

    slide: Slide
    to_ids: "ValueTable"

    def sample(self, grid: SampleGrid) -> UInt8[np.ndarray, "h w"]:
        view = self.slide.at_downsample(grid.downsample)
        return self.to_ids(view.read_labels(grid.xy_px, grid.size_px))


@dataclass(frozen=True)
class ValueTable:
    """What the pixel values of a truth image mean, by the kind of truth."""

    kind: str
    label_set: LabelSet
    path: Path

    def __call__(self, values: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        if self.kind == "label_image":
            return self._checked(values)
        inside = values > (BRIGHT_ABOVE if self.kind == "threshold_image" else 0)
        return inside * np.uint8(self.label_set.foreground[0].id)

    def _checked(self, values: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        known = np.append(np.arange(len(self.label_set.classes)), IGNORE_ID)
        unknown = np.setdiff1d(values, known)
        if len(unknown):
            raise ValueError(
                f"{self.path} holds values {unknown[:8].tolist()}, but the ids of label set "
                f"{self.label_set.name!r} are 0 to {known[-2]} (and {IGNORE_ID} for unlabelled). "
                "State the right label set, or truth_kind 'instance_image' or 'threshold_image'"
            )
        return values.astype(np.uint8)


def _open_nothing(record: ImageRecord, size_l0: tuple[int, int], label_set: LabelSet) -> NoSampler:
    return NoSampler()


def _open_runs(record: ImageRecord, size_l0: tuple[int, int], label_set: LabelSet) -> RunSampler:
    path = _truth_path(record)
    table = read_rle_table(path)
    if record.image_id not in table:
        raise ValueError(
            f"{path}: no row with id {record.image_id!r} (it has {len(table)} others); add its "
            "mask, or set truth_kind to 'none'"
        )
    where = f"{path}, image {record.image_id!r}"
    runs = parse_rle(table[record.image_id], size_l0, where=where)
    return RunSampler(runs, _only_class(record, label_set))


def _open_outlines(
    record: ImageRecord, size_l0: tuple[int, int], label_set: LabelSet
) -> PolygonSampler:
    path = _truth_path(record)
    read = read_monuseg_xml if path.name.removesuffix(".gz").endswith(".xml") else read_polygons
    objects = read(path)
    bounds = np.array([o.polygon.bounds for o in objects], float).reshape(-1, 4)
    beyond = (bounds[:, :2] >= size_l0).any(axis=1) | (bounds[:, 2:] <= 0).any(axis=1)
    if beyond.any():
        n = int(np.flatnonzero(beyond)[0])
        raise ValueError(
            f"{path}, object {n + 1}: it spans {bounds[n].round().tolist()}, outside the image "
            f"{record.image_path} of {size_l0[0]} x {size_l0[1]}. Are these the outlines of "
            "another image, or of another scale?"
        )
    try:
        class_ids = [class_id_of(o.label, label_set) for o in objects]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    fill = 0 if label_set.has_background else IGNORE_ID
    return PolygonSampler(objects, class_ids, bounds, fill)


def _open_image(
    record: ImageRecord, size_l0: tuple[int, int], label_set: LabelSet
) -> ArraySampler | SlideSampler:
    path = _truth_path(record)
    if record.truth_kind != "label_image":
        _only_class(record, label_set)
    to_ids = ValueTable(record.truth_kind, label_set, path)
    if path.suffix.lower() not in _TIFF_SUFFIXES:
        values = _read_small_image(path, grey=record.truth_kind == "threshold_image")
        _refuse_other_size(record, size_l0, values.shape[::-1])
        if record.truth_kind == "threshold_image":
            _refuse_dim(path, int(values.max()))
        return ArraySampler(to_ids(values))
    slide = open_slide(path)
    _refuse_other_size(record, size_l0, slide.size_l0)
    return SlideSampler(slide, to_ids)


_OPENERS: dict[str, Callable[[ImageRecord, tuple[int, int], LabelSet], Sampler]] = {
    "none": _open_nothing,
    "rle_csv": _open_runs,
    "polygons": _open_outlines,
    "label_image": _open_image,
    "instance_image": _open_image,
    "threshold_image": _open_image,
}


def _truth_path(record: ImageRecord) -> Path:
    path = record.truth_path
    if path is None or not path.is_file():
        raise ValueError(
            f"{record.image_id}: there is no truth file {path}; restore it, or set truth_kind to "
            "'none'"
        )
    return path


def _only_class(record: ImageRecord, label_set: LabelSet) -> int:
    if len(label_set.foreground) != 1 or not label_set.has_background:
        raise ValueError(
            f"{record.truth_path}: a truth of kind {record.truth_kind!r} does not say which class "
            f"its objects are, and label set {label_set.name!r} has several; choose a label set "
            "of one class, or give 'label_image' or 'polygons'"
        )
    return label_set.foreground[0].id


def _read_small_image(path: Path, *, grey: bool) -> Integer[np.ndarray, "h w"]:
    """Read a PNG or JPEG whole; palette images give their indices, 16-bit ones keep their depth."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image.convert("L") if grey else image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); if it was cut off get it again, if it is a whole "
            "slide store it as a tiled TIFF"
        ) from error
    if values.ndim != 2:
        raise ValueError(
            f"{path} is a colour image; expected one number a pixel. Write the ids as a grey PNG"
        )
    return values.astype(np.uint8) if values.dtype == bool else values


def _refuse_other_size(
    record: ImageRecord, image_l0: tuple[int, int], truth_l0: tuple[int, ...]
) -> None:
    if tuple(image_l0) != tuple(truth_l0):
        raise ValueError(
            f"{record.truth_path} is {truth_l0[0]} x {truth_l0[1]}, but its image "
            f"{record.image_path} is {image_l0[0]} x {image_l0[1]}; a mask must have the size of "
            "its image. Is it the mask of another image or scale?"
        )


def _refuse_dim(path: Path, brightest: int) -> None:
    if 0 < brightest <= BRIGHT_ABOVE:
        raise ValueError(
            f"{path}: its brightest value is {brightest}, so nothing in it is above "
            f"{BRIGHT_ABOVE}; if its values are class ids say truth_kind 'label_image'"
        )
