"""Reading patches: the pixels and labels that a manifest's rows refer to."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image

from renal_utils.annotations import LabelSource, open_labels
from renal_utils.manifests import Patch, check_manifest, list_patches, write_manifest
from renal_utils.runtime import atomic_path
from renal_utils.slides import SlideView, open_slide


class PatchReader:
    """Reads the pixels and labels of manifest rows, keeping the last few images open.

    Open files are not carried into another process: a forked or spawned one opens its own.
    """

    def __init__(self, *, max_open: int = 64) -> None:
        self.max_open = max_open
        self._opened: OrderedDict[tuple, tuple[SlideView, LabelSource]] = OrderedDict()
        self._process = os.getpid()

    def read(
        self, patch: Patch, xy_px: tuple[int, int] | None = None
    ) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """Return the image and the class ids of a patch.

        Args:
            patch: Row of a manifest.
            xy_px: Left top corner to read instead of the row's own, pixels at the working scale.

        Returns:
            RGB and class ids, ``patch_px`` squared; ids are ``IGNORE_ID`` where nothing is known.
        """
        view, labels = self.open(patch)
        xy = (patch.x_px, patch.y_px) if xy_px is None else xy_px
        size = (patch.patch_px, patch.patch_px)
        return view.read(xy, size), labels.read(xy, size, patch.downsample)

    def open(self, patch: Patch) -> tuple[SlideView, LabelSource]:
        """Return the patch's image at its working scale, and its labels."""
        if self._process != os.getpid():
            self._inherited = self._opened  # kept and never touched: closing may wait for a lock
            self._opened, self._process = OrderedDict(), os.getpid()
        key = patch.image_key
        if key not in self._opened:
            record = patch.record
            slide = open_slide(record.image_path, mpp=record.mpp)
            self._opened[key] = (slide.at_downsample(patch.downsample), open_labels(record))
            if len(self._opened) > self.max_open:
                self._close(self._opened.popitem(last=False)[1])
        self._opened.move_to_end(key)
        return self._opened[key]

    def close(self) -> None:
        """Close all images that this process opened."""
        while self._process == os.getpid() and self._opened:
            self._close(self._opened.popitem()[1])

    def _close(self, opened: tuple[SlideView, LabelSource]) -> None:
        opened[0].slide.close()
        opened[1].close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open": self.max_open, "_opened": OrderedDict(), "_process": -1}


def export_patches(manifest: pd.DataFrame, folder: str | Path) -> pd.DataFrame:
    """Write every patch as PNG image and PNG label map, for tools that want small files.

    Args:
        manifest: Patches to write.
        folder: Gets ``images``, ``labels`` and ``manifest.csv``, written last.

    Returns:
        The manifest of the written files: each is an image of its own at downsample 1, whose place
        on the slide (``x_l0``, ``y_l0``) counts pixels of the working scale.
    """
    folder = Path(folder)
    check_manifest(manifest)
    paths = list(_export_names(manifest))
    reader = PatchReader()
    for patch, name in zip(list_patches(manifest), paths, strict=True):
        for part, pixels in zip(("images", "labels"), reader.read(patch), strict=True):
            with atomic_path(folder / part / name) as temporary:
                Image.fromarray(pixels).save(temporary)
    reader.close()
    table = manifest.assign(
        image_id=manifest["patch_id"],
        image_path=[str(folder / "images" / name) for name in paths],
        truth_path=[str(folder / "labels" / name) for name in paths],
        truth_kind="label_image",
        mpp=manifest["mpp"] * manifest["downsample"],
        x_px=0,
        y_px=0,
        x_l0=(manifest["x_l0"] / manifest["downsample"]).round().astype("int64"),
        y_l0=(manifest["y_l0"] / manifest["downsample"]).round().astype("int64"),
        downsample=1.0,
    )
    write_manifest(table, folder / "manifest.csv")
    return table


def _export_names(manifest: pd.DataFrame) -> Iterator[str]:
    """Yield a file name for each patch; ids may hold characters that file names may not."""
    for patch_id in manifest["patch_id"]:
        yield "".join(c if c.isalnum() or c in "-_." else "_" for c in patch_id) + ".png"
