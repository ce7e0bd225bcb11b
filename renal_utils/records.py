"""Records: what a data set's reader says of each image, the same for every data set.

A record is where an image and its truth lie and who it comes from; it holds no pixels. Every
reader in ``datasets`` returns a list of them, so every network trains on every data set.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

TRUTH_KINDS = (
    "none",
    "rle_csv",
    "label_image",
    "tissue_image",
    "centre_image",
    "instance_image",
    "component_image",
    "instance_mat",
    "instance_folder",
    "threshold_image",
    "polygons",
)


@dataclass(frozen=True)
class ImageRecord:
    """One image (a slide or a tile), its truth, and the body it comes from.

    Attributes:
        image_id: Unique name within the data set.
        image_path: Slide or image file.
        truth_kind: How the truth is stored: ``rle_csv`` (HuBMAP's ``id,encoding`` table),
            ``label_image`` (pixels are class ids), ``tissue_image`` (ids of ``KIDNEY_TISSUES``,
            read as those of the record's label set), ``centre_image`` (class ids of the image's
            centre, the rim around it is unlabelled), ``instance_image`` (pixels are object ids, 0
            is background), ``threshold_image`` (bright is foreground; JPEG masks), ``polygons``
            (QuPath or GeoJSON features, labelme JSON), or ``none``.
        truth_path: File that holds the truth; None with kind ``none``.
        label_set: Name of the label set of the truth.
        donor: Person or animal. Splits never cut through a donor.
        group: Disease group, centre, or "" when not known.
        mpp: Microns per pixel at level 0; None when not stated.
        split: The data set's own split ("train", "val", "test"), or "".
        x_l0: Left edge of this tile on its slide, level-0 pixels; 0 for a whole slide.
        y_l0: Top edge, likewise.
    """

    image_id: str
    image_path: Path
    truth_kind: str = "none"
    truth_path: Path | None = None
    label_set: str = "glomeruli"
    donor: str = ""
    group: str = ""
    mpp: float | None = None
    split: str = ""
    x_l0: int = 0
    y_l0: int = 0

    def __post_init__(self) -> None:
        if self.truth_kind not in TRUTH_KINDS:
            raise ValueError(
                f"{self.image_id}: truth_kind {self.truth_kind!r} is not one of {TRUTH_KINDS}"
            )
        if (self.truth_kind == "none") != (self.truth_path is None):
            raise ValueError(f"{self.image_id}: truth_path and truth_kind contradict each other")


def write_records(records: Iterable[ImageRecord], path: Path) -> None:
    """Write records as a CSV table; empty cells stand for None."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(ImageRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def read_records(path: Path) -> list[ImageRecord]:
    """Read a table that ``write_records`` wrote.

    Raises:
        ValueError: If a column is missing; the message names the file and the columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {f.name for f in fields(ImageRecord)} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: columns {sorted(missing)} are missing; write it again")
        return [_record_from_row(row) for row in reader]


def _record_from_row(row: dict[str, str]) -> ImageRecord:
    return ImageRecord(
        image_id=row["image_id"],
        image_path=Path(row["image_path"]),
        truth_kind=row["truth_kind"],
        truth_path=Path(row["truth_path"]) if row["truth_path"] else None,
        label_set=row["label_set"],
        donor=row["donor"],
        group=row["group"],
        mpp=float(row["mpp"]) if row["mpp"] else None,
        split=row["split"],
        x_l0=int(row["x_l0"]),
        y_l0=int(row["y_l0"]),
    )
