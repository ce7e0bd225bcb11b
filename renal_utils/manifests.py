"""Manifests: tables with one row a patch, that say where its pixels lie and hold none.

A manifest is a plain ``pandas.DataFrame``. Its rows refer lazily to images and truths, so that it
stays small, can be filtered and split like any table, and is written as Parquet or CSV.
"""

import math
import os
from pathlib import Path, PurePath
from typing import NamedTuple, get_type_hints

import pandas as pd

from renal_utils.labels import LABEL_SETS
from renal_utils.records import TRUTH_KINDS, ImageRecord
from renal_utils.runtime import atomic_path
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
