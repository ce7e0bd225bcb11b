"""HuBMAP "Hacking the Kidney" 2021: human PAS slides with glomeruli (15 train, 5 public test).

Layout under the folder: ``train.csv`` (``id,encoding``), ``sample_submission.csv``
(``id,predicted``), ``HuBMAP-20-dataset_information.csv``, and in ``train/`` and ``test/`` each
slide's ``ID.tiff``, with ``ID.json`` (glomeruli) and ``ID-anatomical-structure.json`` (cortex,
medulla) as QuPath features. Slides are up to 50,000 pixels wide and differ in axis order.

The donor is ``patient_number``: some people gave two slides, so a split by slide would leak.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from renal_utils.polygon_files import read_polygons
from renal_utils.polygons import PolygonObject
from renal_utils.records import ImageRecord
from renal_utils.rle import read_rle_table
from renal_utils.runtime import atomic_path
from renal_utils.tables import read_table

INFORMATION_FILE = "HuBMAP-20-dataset_information.csv"
# "segmention" is how the file itself spells it.
INFORMATION_COLUMNS = (
    "image_file",
    "width_pixels",
    "height_pixels",
    "anatomical_structures_segmention_file",
    "glomerulus_segmentation_file",
    "patient_number",
)
TRUTHS = ("rle", "polygons")


def read_hubmap(
    folder: str | Path,
    *,
    truth: str = "rle",
    mpp: float | int | None = None,
    skip_missing: bool = False,
) -> list[ImageRecord]:
    """Read the training slides, and the test slides where there are any (without truth).

    Args:
        folder: Where ``train.csv`` lies.
        truth: "rle" takes the masks of ``train.csv``, "polygons" the outlines in ``ID.json``.
        mpp: Microns per pixel of all slides; None leaves it to what each file states.
        skip_missing: Leave out slides that a table lists and the folder lacks, for a partial copy
            of the data set; otherwise they are an error.

    Raises:
        ValueError: If a table lacks a column, a slide listed is not there, a slide there is not
            listed, or a slide has no patient; the message names the file and the remedy.
    """
    folder, mpp = Path(folder), None if mpp is None else float(mpp)
    if truth not in TRUTHS:
        raise ValueError(f"truth {truth!r} is not one of {TRUTHS}")
    table = folder / "train.csv"
    ids = _present(folder / "train", list(read_rle_table(table)), table, skip_missing)
    donors = _donors(folder, ids)
    records = [_train_record(folder, i, truth, donors[i], mpp) for i in ids]
    if not records:
        raise ValueError(f"{folder}: no training slide; put ID.tiff files into {folder / 'train'}")
    return records + _test_records(folder, mpp, skip_missing)


def read_hubmap_information(folder: str | Path) -> pd.DataFrame:
    """Read the table of slides and patients, with ``image_id`` in front and numbers as numbers.

    Raises:
        ValueError: If the file or one of ``INFORMATION_COLUMNS`` is missing.
    """
    table = read_table(Path(folder) / INFORMATION_FILE, INFORMATION_COLUMNS)
    table.insert(0, "image_id", table["image_file"].str.replace(r"\.tiff?$", "", regex=True))
    for name in table.columns.drop(["image_id", "image_file", "patient_number"]):
        numbers = pd.to_numeric(table[name].replace("", None), errors="coerce")
        if numbers.notna().sum() == (table[name] != "").sum() > 0:
            table[name] = numbers
    return table


def read_anatomy(record: ImageRecord) -> list[PolygonObject]:
    """Read the outlines of cortex, medulla and so on; empty where the slide has no such file."""
    path = record.image_path.with_name(f"{record.image_id}-anatomical-structure.json")
    return read_polygons(path) if path.is_file() else []


def write_submission(
    path: str | Path,
    predictions: Iterable[tuple[str, str]],
    *,
    expected_ids: Sequence[str] | None = None,
) -> None:
    """Write ``id,predicted`` as the challenge takes it, atomically.

    Args:
        path: The csv.
        predictions: Pairs of image id and run-length text (``rle.encode_rle``).
        expected_ids: The ids of ``sample_submission.csv``, whose order is kept.

    Raises:
        ValueError: If an id stands twice, or ids lack or exceed the expected ones.
    """
    pairs = list(predictions)
    masks = dict(pairs)
    if len(masks) != len(pairs):
        raise ValueError(f"{path}: an image id stands twice in {[i for i, _ in pairs]}")
    ids = list(masks) if expected_ids is None else list(expected_ids)
    if set(ids) != set(masks):
        raise ValueError(
            f"{path}: predictions lack {sorted(set(ids) - set(masks))} and have unexpected "
            f"{sorted(set(masks) - set(ids))}; give one for each id of sample_submission.csv"
        )
    table = pd.DataFrame({"id": ids, "predicted": [masks[i] for i in ids]})
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def _present(folder: Path, ids: list[str], table: Path, skip_missing: bool) -> list[str]:
    """Return the ids whose slide is in the folder, having held table and folder together."""
    missing = [i for i in ids if not _slide_path(folder, i).is_file()]
    if missing and not skip_missing:
        raise ValueError(
            f"{table} lists {missing[0]!r}, but there is no {_slide_path(folder, missing[0])} "
            f"({len(missing)} of {len(ids)} slides are missing); get the slide, or pass "
            "skip_missing=True to work with those that are there"
        )
    unlisted = sorted({p.stem for p in folder.glob("*.tif*")} - set(ids))
    if unlisted:
        raise ValueError(
            f"{_slide_path(folder, unlisted[0])} is not listed in {table}; add its row or move the "
            "slide away"
        )
    return [i for i in ids if i not in missing]


def _slide_path(folder: Path, image_id: str) -> Path:
    short = folder / f"{image_id}.tif"
    return short if short.is_file() else folder / f"{image_id}.tiff"


def _donors(folder: Path, ids: list[str]) -> dict[str, str]:
    table = read_hubmap_information(folder).set_index("image_id")
    patients = table["patient_number"].to_dict()
    without = [i for i in ids if not patients.get(i)]
    if without:
        raise ValueError(
            f"{folder / INFORMATION_FILE}: no patient_number for {without}; without it a split "
            "cannot keep a person's slides together. Get the original file"
        )
    return patients


def _train_record(
    folder: Path, image_id: str, truth: str, donor: str, mpp: float | None
) -> ImageRecord:
    outlines = folder / "train" / f"{image_id}.json"
    if truth == "polygons" and not outlines.is_file():
        raise ValueError(f"there is no {outlines}; get it, or pass truth='rle'")
    return ImageRecord(
        image_id=image_id,
        image_path=_slide_path(folder / "train", image_id),
        truth_kind="rle_csv" if truth == "rle" else "polygons",
        truth_path=folder / "train.csv" if truth == "rle" else outlines,
        donor=donor,
        mpp=mpp,
        split="train",
    )


def _test_records(folder: Path, mpp: float | None, skip_missing: bool) -> list[ImageRecord]:
    table = folder / "sample_submission.csv"
    if not table.is_file() or not (folder / "test").is_dir():
        return []
    listed = list(read_rle_table(table, column="predicted"))
    ids = _present(folder / "test", listed, table, skip_missing)
    donors = _donors(folder, ids)
    paths = {i: _slide_path(folder / "test", i) for i in ids}
    return [ImageRecord(i, paths[i], donor=donors[i], mpp=mpp, split="test") for i in ids]
