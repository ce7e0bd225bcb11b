"""Nuclei: the public sets of images with every nucleus outlined, each in its own layout.

All give records of label set ``nuclei`` whose truth tells objects apart:
``instance_sources.read_instances`` returns the instance map, ``label_sources.open_labels`` the
class ids.

Donors: where a set's files say who an image is of, the record does; where they do not (CoNSeP,
CPM-17, DSB 2018) ``donor`` is "". Several images of CoNSeP come from one patient, so keep to the
set's own split, or fill the donors in (``dataclasses.replace``) from what its authors tell you.

None of these sets states its scale in a form that all images share; pass ``mpp`` where you know it
(0.25 at the "40x" of MoNuSeg, CoNSeP and TNBC).
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from renal_utils.datasets.tiles import IMAGE_SUFFIXES, read_tiles
from renal_utils.records import ImageRecord
from renal_utils.tables import read_table

LABEL_SET = "nuclei"
_XML = (".xml", ".xml.gz")
Scale = float | int | None


def read_monuseg(folder: str | Path, *, mpp: Scale = None) -> list[ImageRecord]:
    """Read MoNuSeg: images of 1000 x 1000 and Aperio XML with one region a nucleus.

    Images and XML files are paired by name wherever they lie below ``folder``: the challenge's
    training set keeps them in ``Tissue Images/`` and ``Annotations/``, its test set in one folder.
    A part of the path that names the test or training set gives the split. The donor is the person
    in a TCGA name, its first three parts.

    Raises:
        ValueError: If there is no XML, an XML has no image, or a name stands twice.
    """
    folder = Path(folder)
    outlines = _by_name(folder.rglob("*"), _XML)
    if not outlines:
        raise ValueError(f"{folder}: no XML outlines below it; lay it out as data/README.md says")
    images = _by_name(
        (p for p in folder.rglob("*") if not p.parent.name.startswith("masks")), IMAGE_SUFFIXES
    )
    _refuse_missing(outlines, images, "image")
    known = _index(folder)
    records = []
    for name, path in outlines.items():
        more = {"split": _split_of(images[name].relative_to(folder)), **known.get(name, {})}
        more["donor"] = _person(name)
        records.append(_record(name, images[name], "polygons", path, mpp=mpp, **more))
    return records


def read_consep(folder: str | Path, *, mpp: Scale = None) -> list[ImageRecord]:
    """Read CoNSeP: ``Train|Test/Images/NAME.png`` with ``Labels/NAME.mat`` (``inst_map``).

    Raises:
        ValueError: If a split's folder is missing or empty, or an image lacks its labels.
    """
    return _read_mat_splits(Path(folder), mpp)


def read_cpm17(folder: str | Path, *, mpp: Scale = None) -> list[ImageRecord]:
    """Read CPM-17: ``train|test/Images/NAME.png`` with ``Labels/NAME.mat`` (``inst_map``).

    Both splits number their images from 0, so the split stands in the image's id.

    Raises:
        ValueError: As ``read_consep``.
    """
    return _read_mat_splits(Path(folder), mpp)


def read_tnbc(folder: str | Path, *, mpp: Scale = None) -> list[ImageRecord]:
    """Read TNBC (BNS): ``Slide_NN/NN_K.png`` with ``GT_NN/NN_K.png``; NN is the patient.

    The truth may be one PNG for all nuclei, whose touching pixels of one value are a nucleus
    (``component_image``: right for masks of 0 and 1 and for ids), or a folder ``GT_NN/NN_K/`` with
    one PNG a nucleus.

    Raises:
        ValueError: If there is no ``Slide_NN``, or an image lacks its truth.
    """
    folder = Path(folder)
    records = []
    for slide in sorted(p for p in folder.glob("Slide_*") if p.is_dir()):
        patient = slide.name.removeprefix("Slide_")
        for name, image in _by_name(slide.glob("*"), IMAGE_SUFFIXES).items():
            truth = slide.with_name(f"GT_{patient}") / name
            kind = "instance_folder" if truth.is_dir() else "component_image"
            truth = truth if truth.is_dir() else truth.with_name(f"{name}.png")
            _refuse_absent(truth, image)
            records.append(_record(name, image, kind, truth, donor=patient, mpp=mpp))
    if not records:
        raise ValueError(f"{folder}: no images in Slide_NN/; lay it out as data/README.md says")
    return records


def read_dsb2018(folder: str | Path, *, mpp: Scale = None) -> list[ImageRecord]:
    """Read the Data Science Bowl 2018: ``ID/images/ID.png`` with ``ID/masks/*.png``, one a nucleus.

    Args:
        folder: Holds the folders of the images, as ``stage1_train`` does.
        mpp: Microns per pixel.

    Raises:
        ValueError: If there are no such folders, or an image lacks its masks.
    """
    folder = Path(folder)
    records = []
    for image in sorted(folder.glob("*/images/*.png")):
        masks = image.parent.with_name("masks")
        _refuse_absent(masks, image)
        records.append(_record(image.stem, image, "instance_folder", masks, mpp=mpp))
    if not records:
        raise ValueError(f"{folder}: no ID/images/ID.png; lay it out as data/README.md says")
    return records


def read_nuclei(folder: str | Path, *, mpp: Scale = None) -> list[ImageRecord]:
    """Read the plain layout: ``images/NAME.png`` with ``masks_instance/NAME.png`` (object ids).

    ``index.csv`` may say more of each image in the columns ``id``, ``split`` and ``organ_group``
    (becomes the group). The donor is the person in a TCGA name, else the image itself: put several
    images of one person in one folder only if their names say so.

    Raises:
        ValueError: If an image lacks its mask, or ``index.csv`` names an image that is not there.
    """
    folder = Path(folder)
    records = read_tiles(folder, label_set=LABEL_SET, truth="instances", mpp=mpp)
    known = _index(folder)
    _refuse_missing(known, {record.image_id for record in records}, "image")
    return [
        replace(record, donor=_person(record.image_id), **known.get(record.image_id, {}))
        for record in records
    ]


def _record(
    name: str, image: Path, kind: str, truth: Path, *, mpp: Scale, **more: Any
) -> ImageRecord:
    mpp = None if mpp is None else float(mpp)
    return ImageRecord(name, image, kind, truth, label_set=LABEL_SET, mpp=mpp, **more)


def _read_mat_splits(folder: Path, mpp: Scale) -> list[ImageRecord]:
    records = []
    for split in sorted(p for p in folder.glob("*") if p.name.lower() in ("train", "test")):
        for name, image in _by_name((split / "Images").glob("*"), IMAGE_SUFFIXES).items():
            truth = split / "Labels" / f"{name}.mat"
            _refuse_absent(truth, image)
            part = split.name.lower()
            unique = name if name.startswith(part) else f"{part}_{name}"
            records.append(_record(unique, image, "instance_mat", truth, split=part, mpp=mpp))
    if not records:
        raise ValueError(
            f"{folder}: no images in Train/Images/ or Test/Images/; lay it out as data/README.md "
            "says"
        )
    return records


def _by_name(paths: Iterable[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files with one of the suffixes by the rest of their name."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in paths if not p.name.startswith(".")):
        suffix = next((s for s in suffixes if path.name.lower().endswith(s)), None)
        if suffix is None or not path.is_file():
            continue
        name = path.name[: -len(suffix)]
        if name in found:
            raise ValueError(f"{path} and {found[name]} have one name; keep one of them")
        found[name] = path
    return found


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return split and group of each image that ``index.csv`` names; empty without the file."""
    path = folder / "index.csv"
    if not path.is_file():
        return {}
    table = read_table(path, ("id", "split", "organ_group"))
    rows = zip(table["id"], table["split"], table["organ_group"], strict=True)
    return {name: {"split": split, "group": group} for name, split, group in rows}


def _person(name: str) -> str:
    return "-".join(name.split("-")[:3]) if name.startswith("TCGA-") else name


def _split_of(path: Path) -> str:
    parts = " ".join(path.parts[:-1]).lower()
    return next((split for split in ("test", "train") if split in parts), "")


def _refuse_missing(wanted: Iterable[str], there: Iterable[str], what: str) -> None:
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise ValueError(
            f"{missing[0]}: no {what} of this name ({len(missing)} are missing); restore them, or "
            "take their truth away"
        )


def _refuse_absent(truth: Path, image: Path) -> None:
    if not truth.exists():
        raise ValueError(f"{image}: its truth {truth} is missing; restore it or remove the image")
