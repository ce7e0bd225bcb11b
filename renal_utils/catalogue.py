"""Catalogue: the data sets by name, so that one parameter decides what a lesson reads.

A new data set is one reader and one line in ``DATASETS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from renal_utils.archive import ensure_drawn, read_drawn
from renal_utils.datasets.aidpath import read_aidpath
from renal_utils.datasets.hubmap import read_hubmap
from renal_utils.datasets.kpis import GROUPS, read_kpis
from renal_utils.datasets.mouse_kidney import read_mouse_kidney
from renal_utils.datasets.nuclei import (
    read_consep,
    read_cpm17,
    read_dsb2018,
    read_monuseg,
    read_nuclei,
    read_tnbc,
)
from renal_utils.datasets.organs import read_msd_colon, read_uw_madison
from renal_utils.datasets.tiles import read_tiles
from renal_utils.records import ImageRecord
from renal_utils.runtime import resolve_path


def read_drawn_glomeruli(folder: str | Path) -> list[ImageRecord]:
    """Return the drawn slides with their glomeruli as truth, drawing them on first use.

    Slides and masks are read in HuBMAP's layout; donor, group, split and scale are the archive's.

    Raises:
        ValueError: If the folder holds something else, or another archive.
    """
    folder = ensure_drawn(folder)
    known = {record.image_id: record for record in read_drawn(folder)}
    taken = ("donor", "group", "split", "mpp")
    return [
        replace(record, **{name: getattr(known[record.image_id], name) for name in taken})
        for record in read_hubmap(folder / "hubmap")
    ]


def read_drawn_tissues(folder: str | Path) -> list[ImageRecord]:
    """Return the drawn slides with all tissues as truth (``KIDNEY_TISSUES``).

    Raises:
        ValueError: If the folder holds something else, or another archive.
    """
    return read_drawn(ensure_drawn(folder))


def read_drawn_four_tissues(folder: str | Path) -> list[ImageRecord]:
    """Return the drawn slides with the four tissues of the ASRMU-Net paper (``FOUR_TISSUES``).

    What is none of the four, glass and plain interstitium, is unlabelled; a sclerosed glomerulus is
    a glomerulus.

    Raises:
        ValueError: If the folder holds something else, or another archive.
    """
    kind = {"truth_kind": "tissue_image", "label_set": "four_tissues"}
    return [replace(record, **kind) for record in read_drawn_tissues(folder)]


Reader = Callable[[Path], list[ImageRecord]]

DATASETS: Mapping[str, Reader] = {
    "drawn": read_drawn_glomeruli,
    "hubmap": read_hubmap,
    "kpis": read_kpis,
    "tiles": read_tiles,
    "nuclei": read_nuclei,
    "monuseg": read_monuseg,
    "consep": read_consep,
    "cpm17": read_cpm17,
    "tnbc": read_tnbc,
    "dsb2018": read_dsb2018,
    "aidpath": read_aidpath,
    "uw_madison": read_uw_madison,
    "msd_colon": read_msd_colon,
    "drawn_tissues": read_drawn_tissues,
    "drawn_four_tissues": read_drawn_four_tissues,
    "mouse_kidney": read_mouse_kidney,
}

# Files and folders that only one layout has; the first that is there decides.
_SIGNS = (
    ("archive.json", "drawn"),
    ("imagesTr", "msd_colon"),
    ("Tissue Images", "monuseg"),
    ("Slide_*", "tnbc"),
    ("*.svs", "aidpath"),
    ("*/*.svs", "aidpath"),
    ("index.csv", "nuclei"),
    ("images", "tiles"),
    ("*-labels.png", "mouse_kidney"),
)


def find_layout(folder: str | Path) -> str:
    """Name the layout of a data set's folder by the file that gives it away.

    Raises:
        ValueError: If the folder is missing or empty, or nothing in it tells (DSB 2018, and CoNSeP
            from CPM-17, cannot be told): then the layout has to be named.
    """
    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(f"{folder} is no folder, or an empty one; see data/README.md")
    table = folder / "train.csv"
    if table.is_file():
        with table.open(encoding="utf-8", errors="replace") as lines:
            return "uw_madison" if "segmentation" in lines.readline() else "hubmap"
    for pattern, layout in _SIGNS:
        if any(folder.glob(pattern)):
            return layout
    groups = {group.lower() for group in GROUPS}
    if any(p.is_dir() and p.name.lower() in groups for n in ("*", "*/*") for p in folder.glob(n)):
        return "kpis"
    raise ValueError(f"{folder}: no file tells the layout; name it, one of {', '.join(DATASETS)}")


def get_reader(name: str) -> Reader:
    """Return the reader of a data set.

    Raises:
        ValueError: If the name is unknown; the message lists the known ones.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def read_dataset(name: str, folder: str | Path) -> list[ImageRecord]:
    """Return the images of a data set whose truth is known; a hidden test set is left out.

    Args:
        name: A key of ``DATASETS``.
        folder: Where it lies; relative paths start at the project's root.

    Raises:
        ValueError: If the name is unknown (the known ones are listed), the folder is not laid out
            as its reader expects, or no image has a truth.
    """
    read = get_reader(name)
    folder = resolve_path(folder)
    records = [r for r in read(folder) if r.truth_kind != "none"]
    if not records:
        raise ValueError(f"{folder}: no image has a truth to learn from; see data/README.md")
    return records
