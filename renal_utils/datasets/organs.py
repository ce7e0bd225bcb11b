"""Abdominal organs, not kidneys: UW-Madison GI (MRI slices) and MSD Colon (CT volumes).

Two papers of the course test their networks on them. Both are scans in grey, so they are prepared
once: every slice becomes an 8-bit PNG with a PNG of class ids beside it, under ``prepared`` in the
data set's folder, and from there on they are images as any other.

UW-Madison GI (Kaggle 2022): ``train.csv`` (``id,class,segmentation``; ``id`` such as
``case123_day20_slice_0001``) and
``train/case123/case123_day20/scans/slice_0001_266_266_1.50_1.50.png``: width, height and spacing in
millimetres stand in the name, pixels have 16 bits. Classes large_bowel, small_bowel, stomach; where
two overlap the later of these wins. Runs go along *rows*, as public notebooks on it decode them
(HuBMAP's go down columns).

MSD Colon (Medical Segmentation Decathlon, task 10): ``imagesTr/colon_001.nii.gz`` with
``labelsTr/colon_001.nii.gz``, in Hounsfield units; label 1 is the tumour. Needs nibabel, the extra
``[organs]``. Files of macOS (``._colon_001.nii.gz``) lie between them and are passed over.

The donor is the person: ``case123`` (one person was scanned on several days), ``colon_001``.
Pixels are millimetres wide, far beyond a slide's scale, so ``mpp`` is left out.
"""

import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Real, Shaped, UInt8
from PIL import Image

from renal_utils.labels import get_label_set
from renal_utils.progress import progress_bar
from renal_utils.records import ImageRecord
from renal_utils.rle import decode_rle
from renal_utils.runtime import atomic_path
from renal_utils.tables import read_table

PREPARED = "prepared"
CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue of the abdomen: level 40, width 400
_SCAN_PERCENTILES = (0.5, 99.5)
_SLICE_NAME = re.compile(r"(slice_\d+)_(\d+)_(\d+)_([\d.]+)_([\d.]+)\.png")


def read_uw_madison(folder: str | Path, *, prepared: str | Path | None = None) -> list[ImageRecord]:
    """Read the MRI slices, preparing those that are not prepared yet.

    An MRI has no unit, so each scan (a person on a day) is stretched between the 0.5th and 99.5th
    percentile of all its slices together: neighbours stay comparable.

    Args:
        folder: Where ``train.csv`` lies.
        prepared: Gets the PNGs; ``folder/prepared`` without it.

    Raises:
        ValueError: If table and files do not fit each other, or a file or row is broken; the
            message names it.
    """
    folder = Path(folder)
    out = Path(prepared) if prepared is not None else folder / PREPARED
    masks = _read_runs(folder / "train.csv")
    scans = _find_scans(folder / "train", masks, folder / "train.csv")
    records = []
    for slices in progress_bar(scans.values(), desc="prepare scans", leave=False, disable=None):
        wanted = {i: p for i, p in slices.items() if not _is_prepared(out, i)}
        if wanted:
            low, high = _range_of(slices)
        for image_id, path in wanted.items():
            pixels = _read_slice(path)
            where = f"{folder / 'train.csv'}, image {image_id!r}"
            ids = _paint_runs(masks[image_id], pixels.shape, where)
            _write_pair(out, image_id, stretch(pixels, low, high), ids)
        records += [_record(out, i, "gi_organs", donor=i.split("_")[0]) for i in slices]
    return records


def read_msd_colon(folder: str | Path, *, prepared: str | Path | None = None) -> list[ImageRecord]:
    """Read the CT volumes slice by slice, preparing those that are not prepared yet.

    Slices are axial, shown as radiologists do: the front of the body up, its right side on the
    left. Intensities are cut to ``CT_WINDOW_HU``.

    Args:
        folder: Where ``imagesTr`` and ``labelsTr`` lie.
        prepared: Gets the PNGs; ``folder/prepared`` without it.

    Raises:
        ValueError: If a volume lacks its labels, differs from them in size or cannot be read.
        ModuleNotFoundError: If nibabel is not installed; names the extra to install.
    """
    folder = Path(folder)
    out = Path(prepared) if prepared is not None else folder / PREPARED
    images, labels = (_find_volumes(folder / name) for name in ("imagesTr", "labelsTr"))
    if odd := sorted(set(images) ^ set(labels)):
        raise ValueError(f"{folder}: {odd[0]} lies in only one of imagesTr and labelsTr")
    records = []
    for name in progress_bar(images, desc="prepare volumes", leave=False, disable=None):
        values, ids = _read_volume(images[name]), _read_volume(labels[name])
        if values.shape != ids.shape:
            raise ValueError(f"{labels[name]} is {ids.shape}, but {images[name]} {values.shape}")
        _check_ids(ids, labels[name])
        for z in range(values.shape[2]):
            image_id = f"{name}_slice_{z:04d}"
            if not _is_prepared(out, image_id):
                grey = stretch(_upright(values[..., z]), *CT_WINDOW_HU)
                _write_pair(out, image_id, grey, _upright(ids[..., z]).astype(np.uint8))
            records.append(_record(out, image_id, "colon_tumour", donor=name))
    return records


def stretch(
    values: Real[np.ndarray, "H W"], low: float | int, high: float | int
) -> UInt8[np.ndarray, "H W"]:
    """Return values between ``low`` and ``high`` as 0 to 255; those beyond are cut.

    Raises:
        ValueError: If ``high`` is not above ``low``.
    """
    if not low < high:
        raise ValueError(f"cannot stretch from {low} to {high}: give low < high")
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _read_runs(path: Path) -> dict[str, dict[str, str]]:
    """Return for each slice the runs of each class."""
    table = read_table(path, ["id", "class", "segmentation"])
    known = get_label_set("gi_organs").names[1:]
    unknown = sorted(set(table["class"]) - set(known))
    if unknown:
        raise ValueError(f"{path}: class {unknown[0]!r} is not one of {list(known)}")
    twice = table[table.duplicated(["id", "class"])]
    if len(twice):
        raise ValueError(f"{path}: {twice['id'].iloc[0]!r} has two rows of one class; keep one")
    masks: dict[str, dict[str, str]] = {}
    for image_id, name, runs in table[["id", "class", "segmentation"]].itertuples(index=False):
        masks.setdefault(image_id, {})[name] = runs
    return masks


def _find_scans(
    folder: Path, masks: Mapping[str, object], table: Path
) -> dict[str, dict[str, Path]]:
    """Return for each scan its slices by id, having held table and files together."""
    scans: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*/*/scans/*.png")):
        match = _SLICE_NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path}: expected slice_NUMBER_WIDTH_HEIGHT_SPACING_SPACING.png")
        scan = path.parent.parent.name
        scans.setdefault(scan, {})[f"{scan}_{match[1]}"] = path
    found = {image_id for slices in scans.values() for image_id in slices}
    if not found:
        raise ValueError(f"{folder}: no CASE/SCAN/scans/slice_*.png in it")
    if odd := sorted(found ^ set(masks)):
        where = f"is listed in {table}, but has no file" if odd[0] in masks else "is not listed"
        raise ValueError(f"{folder}: slice {odd[0]!r} {where} ({len(odd)} such slices)")
    return scans


def _read_slice(path: Path) -> Shaped[np.ndarray, "H W"]:
    """Read a 16-bit slice and hold it against the size in its name."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); get it again") from error
    if pixels.ndim != 2:
        raise ValueError(f"{path} has {pixels.shape[2]} channels; expected a grey slice")
    match = _SLICE_NAME.fullmatch(path.name)
    named = (int(match[3]), int(match[2])) if match else pixels.shape
    if pixels.shape != named:
        raise ValueError(f"{path} is {pixels.shape} (H, W), but its name says {named}")
    return pixels


def _range_of(slices: Mapping[str, Path]) -> tuple[float, float]:
    """Return the two percentiles of a scan; of an empty scan 0 and 1."""
    values = np.concatenate([_read_slice(path).ravel() for path in slices.values()])
    low, high = np.percentile(values, _SCAN_PERCENTILES).tolist()
    return (low, high) if low < high else (low, low + 1)


def _paint_runs(
    runs: Mapping[str, str], shape: tuple[int, int], where: str
) -> UInt8[np.ndarray, "H W"]:
    """Return class ids; a mask of rows is one of columns, turned over the diagonal."""
    label_set = get_label_set("gi_organs")
    ids = np.zeros(shape, np.uint8)
    for label_class in label_set.foreground:
        text = runs.get(label_class.name, "")
        mask = decode_rle(text, shape, where=f"{where}, {label_class.name}").T
        ids[mask] = label_class.id
    return ids


def _find_volumes(folder: Path) -> dict[str, Path]:
    found = {
        path.name.removesuffix(".gz").removesuffix(".nii"): path
        for path in sorted(folder.glob("*.nii*"))
        if not path.name.startswith(".")
    }
    if not found:
        raise ValueError(f"{folder}: no NAME.nii.gz in it")
    return found


def _read_volume(path: Path) -> Real[np.ndarray, "X Y Z"]:
    """Read a NIfTI volume; axes run to the right, to the front and to the head."""
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: NIfTI files are read through nibabel, which is not installed; "
            "install the extra: pip install 'renal-utils[organs]'"
        ) from error
    try:
        volume = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asanyarray(volume.dataobj)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); get it again") from error
    if values.ndim != 3:
        raise ValueError(f"{path} has {values.ndim} axes; expected a volume of three")
    return values


def _upright(values: Shaped[np.ndarray, "X Y"]) -> Shaped[np.ndarray, "Y X"]:
    """Turn an axial slice so that the front is up and the body's right is on the left."""
    return values.T[::-1, ::-1]


def _check_ids(ids: Real[np.ndarray, "X Y Z"], path: Path) -> None:
    found = np.unique(ids).tolist()
    if unknown := sorted(set(found) - {0, 1}):
        raise ValueError(f"{path} holds label {unknown[0]:g}; expected 0 and 1 (tumour)")


def _is_prepared(out: Path, image_id: str) -> bool:
    return all((out / part / f"{image_id}.png").is_file() for part in ("images", "labels"))


def _write_pair(
    out: Path, image_id: str, grey: UInt8[np.ndarray, "H W"], ids: UInt8[np.ndarray, "H W"]
) -> None:
    for part, pixels in (("images", grey), ("labels", ids)):
        with atomic_path(out / part / f"{image_id}.png") as temporary:
            Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def _record(out: Path, image_id: str, label_set: str, *, donor: str) -> ImageRecord:
    return ImageRecord(
        image_id=image_id,
        image_path=out / "images" / f"{image_id}.png",
        truth_kind="label_image",
        truth_path=out / "labels" / f"{image_id}.png",
        label_set=label_set,
        donor=donor,
    )
