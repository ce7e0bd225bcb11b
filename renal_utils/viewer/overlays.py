"""What may lie over a slide in the view: classes and probabilities, each with its colours.

An overlay gives one byte a pixel on the grid of the slide, and a table of the colour of each byte.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from renal_utils.geometry import Box
from renal_utils.label_sources import LabelSource
from renal_utils.labels import IGNORE_ID, LabelSet, get_label_set
from renal_utils.resampling import nearest_indices
from renal_utils.result_folder import LABELS_NAME, PROBABILITY_NAME, file_identity
from renal_utils.segmented import SegmentedSlide, read_segmented
from renal_utils.slides import Slide, open_slide
from renal_utils.tiff_files import level_downsample

Read = Callable[[tuple[int, int], tuple[int, int], float], UInt8[np.ndarray, "H W"]]
Labels = str | Path | LabelSource | SegmentedSlide


@dataclass(frozen=True)
class Overlay:
    """One byte a pixel over a slide.

    Attributes:
        name: ``labels`` or ``probability``.
        table: Red, green, blue, opacity of each byte.
        read: Gives a region, by xy and size in pixels at a downsample of the slide.
        classes: Id, title and colour of what the bytes mean; empty for a scale from 0 to 1.
        file: Where they are read from; None where it is no slide.
    """

    name: str
    table: UInt8[np.ndarray, "256 4"]
    read: Read
    classes: tuple[dict[str, Any], ...] = ()
    file: Slide | None = None


def open_overlays(
    slide: Slide,
    labels: Labels | None,
    *,
    probability: str | Path | None = None,
    label_set: LabelSet | str | None = None,
    files: ExitStack,
) -> list[Overlay]:
    """Open what lies over ``slide``; see ``view_slide``. What is opened is left with ``files``.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If one does not fit the slide, or a label image comes without a label set.
    """
    if isinstance(labels, str | Path) and Path(labels).is_dir():
        labels = read_segmented(labels)
    overlays = []
    if isinstance(labels, SegmentedSlide):
        _check_made_from(slide, labels)
        probability = probability or labels.folder / PROBABILITY_NAME
        file = files.enter_context(open_slide(labels.folder / LABELS_NAME, skip_damaged=True))
        overlays.append(_of_label_file(slide, file, labels.label_set, use_levels=True))
    elif isinstance(labels, LabelSource):
        _find_ratio(slide, labels.size_l0, labels.record.truth_path or labels.record.image_path)
        overlays.append(_of_classes(labels.label_set, labels.read))
    elif labels is not None:
        file = files.enter_context(open_slide(labels, skip_damaged=True))
        overlays.append(_of_label_file(slide, file, _known(label_set, file.path)))
    if probability is not None:
        file = files.enter_context(open_slide(probability, skip_damaged=True))
        overlays.append(_of_probability(slide, file))
    return overlays


def blank_damage(
    pixels: UInt8[np.ndarray, "H W *C"], file: Slide, downsample: float, *, box: Box, value: int
) -> UInt8[np.ndarray, "H W *C"]:
    """Return ``pixels`` with ``value`` where tiles of the file were found damaged.

    Args:
        pixels: A region of the file, read at ``downsample``.
        file: Opened with ``skip_damaged``.
        downsample: Level-0 pixels of the file a pixel.
        box: The region, in pixels at ``downsample``.
        value: For every channel.
    """
    fine = [n for n, level in enumerate(file.levels) if level.downsample <= downsample + 1e-9]
    for number, column, row in sorted(file.damaged):
        if number != (fine[-1] if fine else 0):
            continue
        level, scale = file.levels[number], file.levels[number].downsample / downsample
        left, top = int(column * level.tile_px[0] * scale), int(row * level.tile_px[1] * scale)
        right = int(np.ceil((column + 1) * level.tile_px[0] * scale))
        bottom = int(np.ceil((row + 1) * level.tile_px[1] * scale))
        if shared := box.intersection(Box(left, top, right - left, bottom - top)):
            pixels[shared.shifted(-box.x, -box.y).slices] = value
    return pixels


def _known(label_set: LabelSet | str | None, path: Path) -> LabelSet:
    if label_set is None:
        raise ValueError(f"which classes does {path} hold? give label_set=, such as 'glomeruli'")
    return get_label_set(label_set) if isinstance(label_set, str) else label_set


def _check_made_from(slide: Slide, segmented: SegmentedSlide) -> None:
    made_from = segmented.summary["made_from"]
    if made_from["slide_bytes"] != file_identity(slide.path):
        raise ValueError(
            f"{segmented.folder} was made from another file than {slide.path} (it says "
            f"{made_from['slide']!r}, {segmented.size_l0} pixels); segment this one"
        )


def _find_ratio(slide: Slide, size_px: tuple[int, int], path: Path | str) -> float:
    """Return level-0 pixels of the slide per pixel of an overlay, by their sizes."""
    ratio = level_downsample(slide.size_l0, size_px)
    fits = (abs(full / ratio - part) for full, part in zip(slide.size_l0, size_px, strict=True))
    if ratio < 1 or max(fits) > 1:
        raise ValueError(
            f"{path} is {size_px} pixels and the slide {slide.path} is {slide.size_l0} (width, "
            "height): neither the same nor a reduction of it, so they are not of one slide"
        )
    return ratio


def _of_classes(label_set: LabelSet, read: Read, file: Slide | None = None) -> Overlay:
    table = np.concatenate([label_set.colours, np.full((256, 1), 255, np.uint8)], axis=1)
    if label_set.has_background:
        table[0, 3] = 0
    classes = [{"id": c.id, "title": c.title} for c in label_set.foreground]
    classes.append({"id": IGNORE_ID, "title": "Not labelled"})
    last = len(label_set.classes) - 1

    def read_known(
        xy_px: tuple[int, int], size_px: tuple[int, int], downsample: float
    ) -> UInt8[np.ndarray, "H W"]:
        ids = read(xy_px, size_px, downsample)
        unknown = np.setdiff1d(ids, [*range(last + 1), IGNORE_ID])
        if unknown.size:
            raise ValueError(f"ids {unknown.tolist()} are not of the label set {label_set.name!r}")
        return ids

    return Overlay("labels", table, read_known, tuple(classes), file)


def _of_label_file(
    slide: Slide, file: Slide, label_set: LabelSet, *, use_levels: bool = False
) -> Overlay:
    """Lay a label image over; its coarser levels only where it is known how they were made."""
    ratio = _find_ratio(slide, file.size_l0, file.path)
    file.at_downsample(1).read_labels((0, 0), (1, 1))  # says what is wrong with other files

    def read(
        xy_px: tuple[int, int], size_px: tuple[int, int], downsample: float
    ) -> UInt8[np.ndarray, "H W"]:
        wanted, box = downsample / ratio, Box(*xy_px, *size_px)
        if use_levels:
            ids = _read_level(file, box, wanted)
        else:
            ids = file.at_downsample(wanted).read_labels(xy_px, size_px, fill=IGNORE_ID)
        if ids.dtype != np.uint8:
            raise ValueError(f"{file.path} holds {ids.dtype}: object numbers, not class ids?")
        return ids

    return _of_classes(label_set, read, file)


def _read_level(file: Slide, box: Box, downsample: float) -> UInt8[np.ndarray, "H W"]:
    """Return the pixels under the pixel centres, of the coarsest level that is fine enough."""
    level = [one for one in file.levels if one.downsample <= max(1.0, downsample) + 1e-9][-1]
    ratio = downsample / level.downsample
    columns = np.minimum(nearest_indices(box.x, box.width, ratio), level.size_px[0] - 1)
    rows = np.minimum(nearest_indices(box.y, box.height, ratio), level.size_px[1] - 1)
    x, y = int(columns[0]), int(rows[0])
    size = int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
    view = file.at_downsample(level.downsample)
    return view.read_channels((x, y), size, fill=IGNORE_ID)[rows - y][:, columns - x, 0]


def _of_probability(slide: Slide, file: Slide) -> Overlay:
    ratio = _find_ratio(slide, file.size_l0, file.path)
    if file.channels != 1 or file.dtype != np.uint8:
        raise ValueError(
            f"{file.path} has {file.channels} channels of {file.dtype}; a probability map has "
            "one of uint8, 255 for 1"
        )

    def read(
        xy_px: tuple[int, int], size_px: tuple[int, int], downsample: float
    ) -> UInt8[np.ndarray, "H W"]:
        view = file.at_downsample(downsample / ratio)
        pixels = view.read_channels(xy_px, size_px)[..., 0]
        return blank_damage(pixels, file, view.downsample, box=Box(*xy_px, *size_px), value=0)

    levels = np.arange(256, dtype=np.uint8)[:, None]
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    opacity = np.minimum(255, 2 * levels.astype(int)).astype(np.uint8)  # 0 is clear, from 0.5 full
    return Overlay("probability", np.concatenate([colours, opacity], axis=1), read, (), file)
