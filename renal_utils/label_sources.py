"""Truth of any kind read as class ids, window by window, at any scale.

Whatever a record's truth is stored as, ``open_labels`` gives one thing: a ``LabelSource`` whose
``read`` returns the class ids of a window. A pixel at the working scale takes the class of the
full-resolution pixel under its centre, so labels are never blurred; pixels outside the image hold
``IGNORE_ID``. Run-length tables, polygons and tiled TIFFs are never held as a whole mask.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from renal_utils.instance_sources import read_instances
from renal_utils.label_samplers import (
    BRIGHT_ABOVE,
    ArraySampler,
    NoSampler,
    PolygonSampler,
    RunSampler,
    SampleGrid,
    Sampler,
    SlideSampler,
    ValueTable,
)
from renal_utils.labels import IGNORE_ID, LabelSet, get_label_set
from renal_utils.polygon_files import read_monuseg_xml, read_polygons
from renal_utils.polygons import class_id_of
from renal_utils.records import ImageRecord
from renal_utils.rle import parse_rle, read_rle_table
from renal_utils.slides import Slide, open_slide

SHOWN_PROBLEMS = 20
_TIFF_SUFFIXES = (".tif", ".tiff", ".svs")


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


def check_truths(records: Iterable[ImageRecord]) -> int:
    """Open every image and its truth, and return how many there were.

    Raises:
        ValueError: If any do not fit; the message lists each of them, up to ``SHOWN_PROBLEMS``.
        FileNotFoundError: If an image is not there.
    """
    count, problems = 0, []
    for record in records:
        count += 1
        try:
            open_labels(record).close()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        shown = "\n".join(f"- {problem}" for problem in problems[:SHOWN_PROBLEMS])
        raise ValueError(f"{len(problems)} of {count} images or truths do not fit:\n{shown}")
    return count


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
    if record.truth_kind not in ("label_image", "tissue_image"):
        _only_class(record, label_set)
    to_ids = ValueTable(record.truth_kind, label_set, path)
    if path.suffix.lower() in _TIFF_SUFFIXES:
        slide = open_slide(path)
        try:
            _refuse_other_size(record, size_l0, slide.size_l0)
            _refuse_dim(record, _brightest(slide))
        except ValueError:
            slide.close()
            raise
        return SlideSampler(slide, to_ids)
    values = _read_small_image(path, grey=record.truth_kind == "threshold_image")
    _refuse_other_size(record, size_l0, values.shape[::-1])
    _refuse_dim(record, int(values.max()))
    return ArraySampler(to_ids(values))


def _open_centre(
    record: ImageRecord, size_l0: tuple[int, int], label_set: LabelSet
) -> ArraySampler:
    path = _truth_path(record)
    values = _read_small_image(path, grey=False)
    height, width = values.shape
    rim = size_l0[0] - width, size_l0[1] - height
    if min(rim) < 0 or rim[0] % 2 or rim[1] % 2:
        raise ValueError(
            f"{path} is {width} x {height}, which does not lie in the centre of its image "
            f"{record.image_path} of {size_l0[0]} x {size_l0[1]}: it must be smaller by an even "
            "number of pixels"
        )
    ids = np.full(size_l0[::-1], IGNORE_ID, np.uint8)
    x, y = rim[0] // 2, rim[1] // 2
    ids[y : y + height, x : x + width] = ValueTable(record.truth_kind, label_set, path)(values)
    return ArraySampler(ids)


def _open_instances(
    record: ImageRecord, size_l0: tuple[int, int], label_set: LabelSet
) -> ArraySampler:
    class_id = _only_class(record, label_set)
    return ArraySampler((read_instances(record) > 0) * np.uint8(class_id))


_OPENERS: dict[str, Callable[[ImageRecord, tuple[int, int], LabelSet], Sampler]] = {
    "none": _open_nothing,
    "rle_csv": _open_runs,
    "polygons": _open_outlines,
    "label_image": _open_image,
    "tissue_image": _open_image,
    "centre_image": _open_centre,
    "instance_image": _open_image,
    "component_image": _open_image,
    "instance_mat": _open_instances,
    "instance_folder": _open_instances,
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


def _read_small_image(path: Path, *, grey: bool) -> Shaped[np.ndarray, "h w"]:
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
    return values


def _refuse_other_size(
    record: ImageRecord, image_l0: tuple[int, int], truth_l0: tuple[int, ...]
) -> None:
    if tuple(image_l0) != tuple(truth_l0):
        raise ValueError(
            f"{record.truth_path} is {truth_l0[0]} x {truth_l0[1]}, but its image "
            f"{record.image_path} is {image_l0[0]} x {image_l0[1]}; a mask must have the size of "
            "its image. Is it the mask of another image or scale?"
        )


def _refuse_dim(record: ImageRecord, brightest: int | None) -> None:
    """Refuse a mask to be thresholded that nothing in would pass: its values are class ids."""
    if record.truth_kind == "threshold_image" and brightest and brightest <= BRIGHT_ABOVE:
        raise ValueError(
            f"{record.truth_path}: its brightest value is {brightest}, so nothing in it is above "
            f"{BRIGHT_ABOVE}; if its values are class ids use truth_kind 'label_image'"
        )


def _brightest(slide: Slide) -> int | None:
    """Return the largest value under the brightest spot of the smallest level; None without one.

    A slide stored at one scale only would have to be read whole, so it is not looked at.
    """
    if len(slide.levels) == 1 or slide.dtype != np.uint8:
        return None
    small = slide.thumbnail(max(slide.levels[-1].size_px)).max(axis=2)
    y, x = np.unravel_index(small.argmax(), small.shape)
    side = int(slide.levels[-1].downsample) + 1
    spot = int(x * slide.levels[-1].downsample), int(y * slide.levels[-1].downsample)
    return int(slide.at_downsample(1.0).read(spot, (side, side)).max())
