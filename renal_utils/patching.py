"""Patching: cut slides and tiles into a grid of patches, and keep those worth learning from.

Cutting reads no patch. Tissue is found on a coarse image of the whole slide, and the truth is
sampled at a limited number of points a patch, so a slide of a gigapixel takes seconds.
"""

from collections.abc import Iterable

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from renal_utils.annotations import open_labels
from renal_utils.geometry import grid_offsets
from renal_utils.labels import IGNORE_ID, get_label_set
from renal_utils.manifests import MANIFEST_COLUMNS, check_manifest
from renal_utils.progress import progress_bar
from renal_utils.records import ImageRecord
from renal_utils.slides import SlideView, open_slide
from renal_utils.stain import tissue_mask

# Points a patch's side at which truth is sampled (all its pixels where the patch is smaller), and
# pixels a patch's side of the coarse image on which tissue is found.
TRUTH_SAMPLES = 128
TISSUE_SAMPLES = 32
_MASK_LIMIT_PX = 4096  # longest side of the coarse image


def cut_patches(
    records: Iterable[ImageRecord],
    *,
    patch_px: int,
    stride_px: int,
    downsample: float | int = 1.0,
    mpp: float | int | None = None,
    min_tissue: float | int = 0.0,
    min_positive: float | int = 0.0,
    keep_negatives: float | int = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Lay a grid of square patches on every image and return the manifest of those kept.

    The last patch of a row or column is moved back to end flush with the image, so no pixel is
    missed and none is padded. Both fractions are shares of the whole patch. They are estimates:
    tissue from a coarse image (``TISSUE_SAMPLES`` a side at least, fewer on huge slides), truth
    from ``TRUTH_SAMPLES`` points a side.

    Args:
        records: Images and their truths.
        patch_px: Side of a patch at the working scale.
        stride_px: Distance of neighbours at the working scale, at most ``patch_px``.
        downsample: Level-0 pixels per working pixel, the same for all images, unless ``mpp``.
        mpp: Microns per pixel at which to work; each image gets the downsample it needs.
        min_tissue: Smallest share of tissue in a patch that is kept, 0 to 1.
        min_positive: Smallest share of foreground; patches below it are called trivial.
        keep_negatives: Share of the trivial patches that is kept all the same, 0 to 1, drawn by
            ``seed``: a network that never sees plain tissue finds glomeruli everywhere.
        seed: Draws the trivial patches that stay.

    Returns:
        A table with ``MANIFEST_COLUMNS``, in the order of records, rows and columns.

    Raises:
        ValueError: If there are no records, an option is out of range, a patch is larger than an
            image, ``mpp`` is asked of an image that states none, or ``min_positive`` of one
            without truth.
    """
    _check_options(min_tissue=min_tissue, min_positive=min_positive, keep_negatives=keep_negatives)
    records = list(records)
    if not records:
        raise ValueError("no records to cut patches from; check the data set's folder")
    tables = []
    for record in progress_bar(
        records, desc="cut patches", unit="image", leave=False, disable=None
    ):
        with open_slide(record.image_path, mpp=record.mpp) as slide:
            view = slide.at_mpp(float(mpp)) if mpp else slide.at_downsample(float(downsample))
            tables.append(_cut_image(record, view, patch_px, stride_px, min_positive > 0))
    manifest = pd.concat(tables, ignore_index=True).astype(MANIFEST_COLUMNS)
    check_manifest(manifest)
    kept = manifest["tissue_fraction"] >= min_tissue
    trivial = kept & (manifest["positive_fraction"] < min_positive)
    drawn = np.random.default_rng(seed).random(len(manifest)) < keep_negatives
    return manifest[kept & (~trivial | drawn)].reset_index(drop=True)


def _check_options(**shares: float | int) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share of pixels, 0 to 1, not {share}")


def _cut_image(
    record: ImageRecord, view: SlideView, patch_px: int, stride_px: int, needs_truth: bool
) -> pd.DataFrame:
    """Return the manifest of all patches of one image."""
    where = f"{record.image_id} ({record.image_path})"
    width, height = view.size_px
    if patch_px > min(width, height):
        raise ValueError(
            f"{where}: a patch of {patch_px} x {patch_px} px does not fit into its {width} x "
            f"{height} px at downsample {view.downsample:g}; take smaller patches or less "
            "down-sampling"
        )
    if needs_truth and record.truth_kind == "none":
        raise ValueError(f"{where} has no truth, so min_positive cannot be asked of it; use 0")
    columns = grid_offsets(width, patch_px, stride_px)
    rows = grid_offsets(height, patch_px, stride_px)
    y_px, x_px = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    return pd.DataFrame(
        {
            "patch_id": [f"{record.image_id}_x{x}_y{y}" for x, y in zip(x_px, y_px, strict=True)],
            "image_id": record.image_id,
            "image_path": str(record.image_path),
            "truth_kind": record.truth_kind,
            "truth_path": str(record.truth_path or ""),
            "label_set": record.label_set,
            "donor": record.donor,
            "group": record.group,
            "mpp": np.nan if view.slide.mpp is None else view.slide.mpp,
            "split": record.split,
            "x_px": x_px,
            "y_px": y_px,
            "patch_px": patch_px,
            "downsample": view.downsample,
            "x_l0": record.x_l0 + np.rint(x_px * view.downsample).astype(np.int64),
            "y_l0": record.y_l0 + np.rint(y_px * view.downsample).astype(np.int64),
            "tissue_fraction": _tissue_fractions(view, columns, rows, patch_px).ravel(),
            "positive_fraction": _positive_fractions(record, view, columns, rows, patch_px).ravel(),
        }
    )


def _tissue_fractions(
    view: SlideView, columns: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"], patch_px: int
) -> Float[np.ndarray, "m n"]:
    """Return the share of tissue in each patch of a grid."""
    finest = max(view.slide.size_l0) / _MASK_LIMIT_PX
    wanted = view.downsample * max(1.0, patch_px / TISSUE_SAMPLES)
    coarse = view.slide.at_downsample(max(wanted, finest))
    mask = tissue_mask(coarse.read((0, 0), coarse.size_px))
    step = coarse.downsample / view.downsample
    return _box_means(mask, columns / step, rows / step, patch_px / step)


def _positive_fractions(
    record: ImageRecord,
    view: SlideView,
    columns: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " m"],
    patch_px: int,
) -> Float[np.ndarray, "m n"]:
    """Return the share of foreground in each patch of a grid; NaN without truth.

    Foreground is every class but the background; of a set without one, every labelled pixel.
    """
    if record.truth_kind == "none":
        return np.full((len(rows), len(columns)), np.nan)
    positive = np.zeros(256, bool)
    positive[[c.id for c in get_label_set(record.label_set).foreground]] = True
    positive[IGNORE_ID] = False
    step = max(1, patch_px // TRUTH_SAMPLES)
    side, width = -(-patch_px // step), -(-view.size_px[0] // step)
    fractions = []
    with open_labels(record) as labels:
        for y in rows:
            ids = labels.read((0, round(int(y) / step)), (width, side), view.downsample * step)
            fractions.append(_box_means(positive[ids], columns / step, np.zeros(1), side))
    return np.concatenate(fractions)


def _box_means(
    mask: Bool[np.ndarray, "H W"],
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " m"],
    side: float | int,
) -> Float[np.ndarray, "m n"]:
    """Return the mean of a mask over squares at all (x, y), rounded to whole pixels."""
    sums = cv2.integral(mask.astype(np.uint8), sdepth=cv2.CV_64F)
    left, right = _edges(x, side, mask.shape[1])
    top, bottom = _edges(y, side, mask.shape[0])
    corner = np.ix_
    total = (
        sums[corner(bottom, right)]
        - sums[corner(top, right)]
        - sums[corner(bottom, left)]
        + sums[corner(top, left)]
    )
    return total / np.outer(bottom - top, right - left)


def _edges(
    start: Float[np.ndarray, " n"], side: float | int, length: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    first = np.clip(np.rint(start).astype(np.int64), 0, length - 1)
    last = np.clip(np.rint(start + side).astype(np.int64), first + 1, length)
    return first, last
