"""Covering: patches for scoring, which hold every pixel of every image exactly once.

Patches to learn from may overlap: that only shows a network the same place twice. In a score it
would count the place twice, and the flush last patch of a row does just that.
"""

import numpy as np
import pandas as pd

from renal_utils.manifests import MANIFEST_COLUMNS, Patch, check_manifest, list_patches
from renal_utils.slides import open_slide

_PER_IMAGE = ["image_path", "truth_path", "image_id", "downsample"]


def cover_images(manifest: pd.DataFrame, *, patch_px: int) -> pd.DataFrame:
    """Return a manifest of the same images and splits whose patches cover each image once.

    Patches stand side by side from the left top corner. The last ones reach beyond the image; there
    it is white and its truth ``IGNORE_ID``, which scores leave out. Load it with ``cache="none"``,
    since a cached image ends at its edge.

    Args:
        manifest: Patches of the images to score; only images and splits are taken from it.
        patch_px: Side at the working scale: a multiple of what the network halves (32 suits all
            in ``MODELS``). The larger, the fewer borders at which the network lacks context.

    Raises:
        ValueError: If the manifest is empty, ``patch_px`` is not positive, or an image holds
            patches of several splits.
    """
    check_manifest(manifest)
    if patch_px < 1 or manifest.empty:
        raise ValueError(f"patch_px {patch_px} must be positive, patches given: {len(manifest)}")
    splits = manifest.groupby(_PER_IMAGE)["split"].nunique()
    if (splits > 1).any():
        raise ValueError(
            f"image {splits.idxmax()[2]!r} holds patches of {splits.max()} splits, so it cannot be "
            "scored as a whole; score the patches of one split, or cut the slide into tiles"
        )
    firsts = list_patches(manifest.drop_duplicates(_PER_IMAGE))
    tables = [_cover_image(patch, patch_px) for patch in firsts]
    return pd.concat(tables, ignore_index=True).astype(MANIFEST_COLUMNS)


def _cover_image(patch: Patch, side: int) -> pd.DataFrame:
    """Return the rows that cover the image of a patch."""
    with open_slide(patch.image_path, mpp=patch.record.mpp) as slide:
        width, height = slide.at_downsample(patch.downsample).size_px
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    y, x = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    table = pd.DataFrame([patch._asdict()] * len(x))
    return table.assign(
        patch_id=[f"{patch.image_id}_x{a}_y{b}" for a, b in zip(x, y, strict=True)],
        x_px=x,
        y_px=y,
        patch_px=side,
        x_l0=patch.x_l0 + np.rint((x - patch.x_px) * patch.downsample).astype(np.int64),
        y_l0=patch.y_l0 + np.rint((y - patch.y_px) * patch.downsample).astype(np.int64),
        tissue_fraction=np.nan,
        positive_fraction=np.nan,
    )
