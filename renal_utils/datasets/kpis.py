"""KPIs 2024 (MICCAI; arXiv 2502.07288): mouse PAS tissue of four disease models, glomeruli.

Layouts, all under one folder:

- Task 1, patches: ``SPLIT/GROUP/CASE/img/*_img.jpg`` with ``SPLIT/GROUP/CASE/mask/*_mask.jpg``.
- Task 2, slides: ``SPLIT/GROUP/CASE_wsi.tiff`` with ``CASE_mask.tiff`` beside it, or, as in the
  evaluation container, ``GROUP/img/CASE_wsi.tiff`` with ``GROUP/mask/CASE_mask.tiff``.

Traps, and what is done about them:

- Masks of patches are JPEGs, so their values are smeared: they are thresholded.
- Cases are ``12_116`` in train and ``12-173`` in val and test, and 56Nx is also spelt 56NX: hyphens
  become underscores in ids and donors, and groups are spelt one way.
- The three sections ``08_368_01``, ``_02`` and ``_03`` are of one mouse. The donor is therefore the
  first two parts of a case's name, here ``08_368``; a name of two parts is its own donor.
- NEP25 slides are at their native scale, the others down-sampled by 2 for scoring:
  ``SCORING_DOWNSAMPLE``. The scale is not stated in microns; pass ``mpp`` where you know it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from renal_utils.records import ImageRecord

GROUPS = ("56Nx", "DN", "NEP25", "normal")
SPLITS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# Level-0 pixels of a slide file for each pixel of the 20x scale that Task 2 is scored at.
SCORING_DOWNSAMPLE: Mapping[str, float] = {"56Nx": 2.0, "DN": 2.0, "NEP25": 1.0, "normal": 2.0}

_PATCH_SUFFIXES = (".jpg", ".jpeg", ".png")
_SLIDE_SUFFIXES = (".tif", ".tiff")


def read_kpis(
    folder: str | Path,
    *,
    images: str = "auto",
    mpp: float | int | Mapping[str, float] | None = None,
) -> list[ImageRecord]:
    """Read the patches or the slides of a folder.

    Args:
        folder: Holds the splits, or, in the container's layout, the groups.
        images: "patches" (Task 1), "slides" (Task 2), or "auto": patches, and slides where there
            are no patches.
        mpp: Microns per pixel of the files read, one number or one for each group.

    Returns:
        Records by split, group, case and name; truth kind ``threshold_image``; where there is no
        mask folder or file for a whole case (a hidden test set) the kind is ``none``.

    Raises:
        ValueError: If nothing is found, a group or split is not known, or an image lacks its mask
            while others of its case have theirs, or a mask its image; the message names it.
    """
    folder = Path(folder)
    if images not in ("auto", *_LAYOUTS):
        raise ValueError(f"images {images!r} is not one of {('auto', *_LAYOUTS)}")
    wanted = _LAYOUTS if images == "auto" else {images: _LAYOUTS[images]}
    for read_group, _ in wanted.values():
        records = [
            replace(record, group=group, split=split, mpp=_scale(mpp, group))
            for group_folder, group, split in _group_folders(folder)
            for record in read_group(group_folder)
        ]
        if records:
            _refuse_twice(records)
            return records
    layouts = ", or ".join(layout for _, layout in wanted.values())
    raise ValueError(
        f"{folder}: no {' or '.join(wanted)} found; expected {layouts}, with groups "
        f"{', '.join(GROUPS)}"
    )


def clean_case(case: str) -> str:
    """Return a case's name with one spelling: ``12-173`` becomes ``12_173``."""
    return case.strip().replace("-", "_")


def donor_of(case: str) -> str:
    """Return the animal of a case: ``08_368_01`` and ``08_368_03`` are both ``08_368``."""
    return "_".join(clean_case(case).split("_")[:2])


def _read_patches(group_folder: Path) -> list[ImageRecord]:
    """Read ``CASE/img/*_img.jpg`` and ``CASE/mask/*_mask.jpg``."""
    records = []
    for case_folder in _subfolders(group_folder):
        if case_folder.name in ("img", "mask"):
            continue
        case = clean_case(case_folder.name)
        images = _files(case_folder / "img", "_img", _PATCH_SUFFIXES)
        masks = _files(case_folder / "mask", "_mask", _PATCH_SUFFIXES)
        for name, image, mask in _pair(case_folder, images, masks):
            name = clean_case(name)
            image_id = name if name.startswith(case) else f"{case}_{name}"
            records.append(_record(image_id, image, mask, donor_of(case)))
    return records


def _read_slides(group_folder: Path) -> list[ImageRecord]:
    """Read ``CASE_wsi.tiff`` and ``CASE_mask.tiff``, side by side or in ``img`` and ``mask``."""
    apart = (group_folder / "img").is_dir()
    image_folder = group_folder / "img" if apart else group_folder
    mask_folder = group_folder / "mask" if apart else group_folder
    images = _files(image_folder, "_wsi", _SLIDE_SUFFIXES, others=("_mask",))
    masks = _files(mask_folder, "_mask", _SLIDE_SUFFIXES, others=("_wsi",))
    return [
        _record(clean_case(case), image, mask, donor_of(case))
        for case, image, mask in _pair(group_folder, images, masks)
    ]


_LAYOUTS: Mapping[str, tuple[Callable[[Path], list[ImageRecord]], str]] = {
    "patches": (
        _read_patches,
        "SPLIT/GROUP/CASE/img/*_img.jpg and SPLIT/GROUP/CASE/mask/*_mask.jpg",
    ),
    "slides": (
        _read_slides,
        "SPLIT/GROUP/CASE_wsi.tiff and CASE_mask.tiff, or GROUP/img/*_wsi.tiff and GROUP/mask",
    ),
}


def _group_folders(folder: Path) -> list[tuple[Path, str, str]]:
    """Return each group's folder, its group and split; "" in the container's layout."""
    found = []
    for child in _subfolders(folder):
        if split := SPLITS.get(child.name.lower()):
            found += [(inner, _group_name(inner), split) for inner in _subfolders(child)]
        else:
            found.append((child, _group_name(child), ""))
    return found


def _scale(mpp: float | int | Mapping[str, float] | None, group: str) -> float | None:
    value = mpp.get(group) if isinstance(mpp, Mapping) else mpp
    return None if value is None else float(value)


def _group_name(folder: Path) -> str:
    for group in GROUPS:
        if group.lower() == folder.name.lower():
            return group
    raise ValueError(
        f"{folder}: {folder.name!r} is neither a group ({', '.join(GROUPS)}) nor a split "
        f"({', '.join(SPLITS)}); move the folder away or rename it"
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; lay the data out as data/README.md says")
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(
    folder: Path, ending: str, suffixes: tuple[str, ...], *, others: tuple[str, ...] = ()
) -> dict[str, Path]:
    """Return name to file for the images called ``name + ending``; a stray image is refused."""
    found = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem.endswith(ending):
            found[path.stem.removesuffix(ending)] = path
        elif not path.stem.endswith(others):
            raise ValueError(f"{path}: expected a name that ends in {ending!r}; rename or move it")
    return found


def _pair(
    folder: Path, images: dict[str, Path], masks: dict[str, Path]
) -> list[tuple[str, Path, Path | None]]:
    """Pair images and masks by name; with no mask at all the truth is hidden, not lost."""
    unpaired = sorted(set(images) ^ set(masks)) if masks else []
    if unpaired:
        what = "mask" if unpaired[0] in images else "image"
        raise ValueError(
            f"{folder}: {unpaired[0]!r} has no {what} ({len(unpaired)} unpaired of "
            f"{len(images)} images and {len(masks)} masks); get the missing file again"
        )
    return [(name, image, masks.get(name)) for name, image in images.items()]


def _record(image_id: str, image: Path, mask: Path | None, donor: str) -> ImageRecord:
    kind = "threshold_image" if mask else "none"
    return ImageRecord(image_id, image, truth_kind=kind, truth_path=mask, donor=donor)


def _refuse_twice(records: list[ImageRecord]) -> None:
    seen: dict[str, Path] = {}
    for record in records:
        if record.image_id in seen:
            raise ValueError(
                f"{seen[record.image_id]} and {record.image_path} are both {record.image_id!r}; "
                "the same image in two places would leak between splits: remove one"
            )
        seen[record.image_id] = record.image_path
