"""Manifests: tables with one row a patch, that say where its pixels lie and hold none.

A manifest is a plain ``pandas.DataFrame``. Its rows refer lazily to images and truths, so that it
stays small, can be filtered and split like any table, and is written as Parquet or CSV.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image

from renal_utils.annotations import LabelSource, open_labels
from renal_utils.labels import LABEL_SETS
from renal_utils.records import TRUTH_KINDS, ImageRecord
from renal_utils.runtime import atomic_path
from renal_utils.slides import SlideView, open_slide
from renal_utils.tables import read_table


class Patch(NamedTuple):
    """One row of a manifest: where the pixels and the truth of a patch lie.

    Attributes:
        patch_id: Name, unique in the manifest.
        image_id: The image's; as all that follows up to ``split``, from its record.
        image_path: Slide or tile.
        truth_kind: How the truth is stored.
        truth_path: Its file, "" without truth.
        label_set: Name of the label set of the truth.
        donor: Person or animal.
        group: Disease group.
        mpp: Microns per pixel of the image's level 0, NaN when not stated.
        split: "train", "val" or "test"; "" belongs to none.
        x_px: Left edge on the image, pixels at the working scale.
        y_px: Top edge, likewise.
        patch_px: Side, pixels at the working scale.
        downsample: Level-0 pixels per working pixel.
        x_l0: Left edge on the slide, level-0 pixels: the place of its tile is counted in.
        y_l0: Top edge, likewise.
        tissue_fraction: Share of the patch that is tissue, 0 to 1.
        positive_fraction: Share that is foreground; NaN without truth.
    """

    patch_id: str
    image_id: str
    image_path: str
    truth_kind: str
    truth_path: str
    label_set: str
    donor: str
    group: str
    mpp: float
    split: str
    x_px: int
    y_px: int
    patch_px: int
    downsample: float
    x_l0: int
    y_l0: int
    tissue_fraction: float
    positive_fraction: float

    @property
    def record(self) -> ImageRecord:
        """The record of the image, without its place on the slide."""
        return ImageRecord(
            image_id=self.image_id,
            image_path=Path(self.image_path),
            truth_kind=self.truth_kind,
            truth_path=Path(self.truth_path) if self.truth_path else None,
            label_set=self.label_set,
            donor=self.donor,
            group=self.group,
            mpp=None if math.isnan(self.mpp) else self.mpp,
            split=self.split,
        )

    @property
    def image_key(self) -> tuple[str, str, str, float]:
        """What patches of one image at one scale have in common."""
        return self.image_path, self.truth_path, self.image_id, self.downsample


_DTYPES = {str: "str", int: "int64", float: "float64"}
MANIFEST_COLUMNS = {name: _DTYPES[kind] for name, kind in get_type_hints(Patch).items()}
_PATHS = ("image_path", "truth_path")


def write_manifest(manifest: pd.DataFrame, path: str | Path) -> None:
    """Write a manifest as Parquet or CSV, by the suffix; paths are kept relative to the file.

    Raises:
        ValueError: If the suffix is another one, or the manifest is not valid.
    """
    path = Path(path)
    check_manifest(manifest, where=str(path))
    folder = path.resolve().parent
    table = manifest.copy()
    for column in _PATHS:
        table[column] = [_relative(p, folder) for p in table[column]]
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        elif path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            raise ValueError(f"{path}: a manifest is written as .parquet or .csv")


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read and check a manifest that ``write_manifest`` wrote.

    Raises:
        FileNotFoundError: If the manifest is absent, or a file that it refers to.
        ValueError: If a column is missing, a value is not what it should be, or a patch stands
            twice; the message names the file.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: a manifest is read from .parquet or .csv")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest; write one with write_manifest")
    is_csv = path.suffix == ".csv"
    table = read_table(path, list(MANIFEST_COLUMNS)) if is_csv else _read_parquet(path)
    _check_columns(table, str(path))
    for column, kind in MANIFEST_COLUMNS.items():
        table[column] = _cast(table[column], kind, str(path))
    for column in _PATHS:
        table[column] = [_absolute(p, path.resolve().parent) for p in table[column]]
    check_manifest(table, where=str(path))
    _check_files(table, str(path))
    return table.astype(MANIFEST_COLUMNS)


def check_manifest(manifest: pd.DataFrame, *, where: str = "manifest") -> None:
    """Check columns, label sets, kinds of truth and the uniqueness of patch ids.

    Args:
        manifest: The table.
        where: What to call it in an error, such as its file.

    Raises:
        ValueError: If anything is not as it should be.
    """
    _check_columns(manifest, where)
    for column, known in (("label_set", tuple(LABEL_SETS)), ("truth_kind", TRUTH_KINDS)):
        unknown = sorted(set(manifest[column]) - set(known))
        if unknown:
            raise ValueError(f"{where}: {column} {unknown} is not known; known: {list(known)}")
    twice = manifest["patch_id"][manifest["patch_id"].duplicated()].tolist()
    if twice:
        raise ValueError(
            f"{where}: {len(twice)} patch ids stand twice, such as {twice[0]!r}; "
            "give the images different image_ids, or concatenate different manifests only once"
        )
    bad = manifest[(manifest["patch_px"] <= 0) | ~(manifest["downsample"] > 0)]
    if len(bad):
        raise ValueError(
            f"{where}: patch {bad['patch_id'].iloc[0]!r} needs a positive patch_px and downsample"
        )


def list_patches(manifest: pd.DataFrame) -> list[Patch]:
    """Return the rows of a manifest, in order; columns that a manifest need not have are left."""
    rows = manifest[list(MANIFEST_COLUMNS)].itertuples(index=False, name=None)
    return [Patch(*row) for row in rows]


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


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are either
        raise ValueError(f"{path} is not a Parquet file ({error}); was it cut off?") from error


def _cast(cells: pd.Series, kind: str, where: str) -> pd.Series:
    """Return cells as numbers or texts; an empty cell among numbers is NaN."""
    try:
        return cells.replace("", "nan").astype(kind) if kind != "str" else cells.astype("str")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: column {cells.name!r} must hold {kind} ({error})") from error


def _check_columns(manifest: pd.DataFrame, where: str) -> None:
    missing = [name for name in MANIFEST_COLUMNS if name not in manifest.columns]
    if missing:
        raise ValueError(
            f"{where}: columns {missing} are missing, so it is not a manifest of cut_patches; "
            f"found {list(manifest.columns)}"
        )


def _check_files(manifest: pd.DataFrame, where: str) -> None:
    named = {p for column in _PATHS for p in manifest[column].unique() if p}
    absent = sorted(p for p in named if not Path(p).is_file())
    if absent:
        raise FileNotFoundError(
            f"{where} refers to {len(absent)} files that are not there, such as {absent[0]}; "
            "put the data where it was (paths are relative to the manifest) or cut patches anew"
        )


def _relative(path: str, folder: Path) -> str:
    """Return a path as written in a manifest within ``folder``: relative where it can be."""
    if not path:
        return ""
    try:
        relative = os.path.relpath(Path(path).resolve(), folder)
    except ValueError:  # Windows: another drive
        return Path(path).resolve().as_posix()
    return PurePath(relative).as_posix()


def _absolute(path: str, folder: Path) -> str:
    return str(Path(os.path.normpath(folder / path))) if path else ""
