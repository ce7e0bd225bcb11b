"""Submissions: segmented slides as the challenges want them, at the slide's full resolution.

HuBMAP takes one csv, ``id,predicted``, of run-length texts. KPIs takes masks called like its own:
``CASE_wsi.tiff`` gives ``CASE_mask.tiff``, a patch ``NAME_img.jpg`` gives ``NAME_mask.png`` (not
JPEG, which would smear it), in ``GROUP/mask`` where the slide's path names a group.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from renal_utils.datasets.kpis import GROUPS
from renal_utils.labels import get_label_set
from renal_utils.result_folder import LABELS_NAME, SUMMARY_NAME, is_finished
from renal_utils.rle import encode_rle_strips
from renal_utils.runtime import atomic_path, read_json
from renal_utils.segmented import slide_name
from renal_utils.slides import open_slide, write_pyramid

GLOMERULI = ("glomerulus", "sclerosed_glomerulus")
_STRIP_PX = 512
_PATCHES = (".jpg", ".jpeg", ".png")


def write_submission(
    folders: Iterable[str | Path], path: str | Path, *, classes: Sequence[str] = GLOMERULI
) -> Path:
    """Write HuBMAP's csv of ``id,predicted``; a row a slide, its name as id.

    Args:
        folders: That ``renal segment`` wrote.
        path: File to write.
        classes: What belongs to the mask; those that a label set lacks do not matter.

    Raises:
        ValueError: If a folder is not finished, has none of the classes, or two slides have one
            name.
    """
    path, rows = Path(path), dict[str, str]()
    for folder in map(Path, folders):
        name = slide_name(_made_from(folder)["slide"])
        if name in rows:
            raise ValueError(f"{folder}: another slide is called {name!r} too; ids must differ")
        rows[name] = encode_rle_strips(read_mask(folder, classes, columns=True))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("id", "predicted"))
        table.writerows(rows.items())
    return path


def write_kpis_masks(
    folders: Mapping[Path, Path], out: str | Path, *, classes: Sequence[str] = GLOMERULI
) -> list[Path]:
    """Write masks, 0 and 255, called and laid out as KPIs has them; return their paths.

    Args:
        folders: From each slide's own path to the folder of its results.
        out: Folder for the masks.
        classes: What belongs to the mask.

    Raises:
        ValueError: If a folder is not finished or has none of the classes.
    """
    return [_write_mask(path, folder, Path(out), classes) for path, folder in folders.items()]


def read_mask(
    folder: str | Path, classes: Sequence[str] = GLOMERULI, *, columns: bool = False
) -> Iterator[Bool[np.ndarray, "h w"]]:
    """Yield where classes lie at the slide's full resolution, in bands of rows or of columns.

    A level-0 pixel is of the class of the working pixel that its centre lies in. At a working scale
    that does not divide the slide's size, a last rest of less than a working pixel may be empty.

    Args:
        folder: That ``renal segment`` wrote.
        classes: Names; those that the label set lacks do not matter.
        columns: Whether bands are of columns, from the left, or of rows, from the top.

    Raises:
        ValueError: If the folder is not finished or has none of the classes.
    """
    folder = Path(folder)
    made_from = _made_from(folder)
    label_set = get_label_set(made_from["label_set"])
    ids = [label_set.id_of(name) for name in classes if name in label_set.names]
    if not ids:
        raise ValueError(f"{folder}: none of {tuple(classes)} is among {label_set.names}")
    width, height = made_from["slide_size_l0"]
    with open_slide(folder / LABELS_NAME) as labels:
        view = labels.at_downsample(1 / read_json(folder / SUMMARY_NAME)["downsample"])
        for start in range(0, width if columns else height, _STRIP_PX):
            if columns:
                box = (start, 0), (min(_STRIP_PX, width - start), height)
            else:
                box = (0, start), (width, min(_STRIP_PX, height - start))
            yield np.isin(view.read_labels(*box), ids)


def _made_from(folder: Path) -> dict:
    if not is_finished(folder):
        raise ValueError(f"{folder} holds no finished results; run renal segment on the slide")
    return read_json(folder / SUMMARY_NAME)["made_from"]


def _write_mask(path: Path, folder: Path, out: Path, classes: Sequence[str]) -> Path:
    size_px = tuple(_made_from(folder)["slide_size_l0"])
    summary = read_json(folder / SUMMARY_NAME)
    stem = slide_name(path.name)
    case = stem.removesuffix("_wsi").removesuffix("_img")
    group = _group_of(path)
    target = out / group / "mask" if group else out
    bands = (band.astype(np.uint8) * np.uint8(255) for band in read_mask(folder, classes))
    if path.suffix.lower() in _PATCHES:
        target = target / f"{case}_mask.png"
        with atomic_path(target) as temporary:
            if not cv2.imwrite(str(temporary), np.concatenate(list(bands))):
                raise OSError(f"could not write {target}; is the disk full?")
        return target
    target = target / f"{case}_mask.tiff"
    mpp_l0 = None if summary["mpp"] is None else summary["mpp"] / summary["downsample"]
    write_pyramid(target, bands, size_px=size_px, mpp=mpp_l0, kind="labels")
    return target


def _group_of(path: Path) -> str:
    """Return the KPIs group that a slide's path names, or nothing."""
    known = {group.lower(): group for group in GROUPS}
    names = (known.get(part.lower()) for part in reversed(path.parts[:-1]))
    return next((name for name in names if name), "")
