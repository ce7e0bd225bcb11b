"""Overviews: a whole slide with its truth, small enough to look at."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from renal_utils.label_sources import open_labels
from renal_utils.records import ImageRecord
from renal_utils.slides import open_slide


@dataclass(frozen=True)
class Overview:
    """A whole image at a small scale.

    Attributes:
        image: RGB.
        labels: Class ids of the record's label set; ``IGNORE_ID`` where nobody labelled.
        mpp: Microns per pixel of both; None where nobody said.
        downsample: Level-0 pixels per pixel of both.
    """

    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]
    mpp: float | None
    downsample: float


def read_overview(record: ImageRecord, *, max_px: int = 1024) -> Overview:
    """Read the whole image of a record with its truth.

    Args:
        record: Where they lie; its ``mpp``, where stated, goes before the file's.
        max_px: Longer side of the result; an image that is smaller is not enlarged.

    Raises:
        ValueError: If ``max_px`` is not positive, or image and truth cannot be read or do not fit.
    """
    if max_px < 1:
        raise ValueError(f"max_px must be at least 1, not {max_px}; 1024 fits a figure")
    with open_slide(record.image_path, mpp=record.mpp) as slide, open_labels(record) as labels:
        view = slide.at_downsample(max(1.0, max(slide.size_l0) / max_px))
        image = view.read((0, 0), view.size_px)
        ids = labels.read((0, 0), view.size_px, view.downsample)
        return Overview(image, ids, view.mpp, view.downsample)
