"""Tiles: a plain folder of images cut from one slide, or of small images.

Layout: ``images/NAME.jpg`` (or png, tif), with ``masks_instance/NAME.png`` (pixels are object ids)
or ``polygons_labelme/NAME.json`` where there is truth. ``tiles.csv`` (``tile,x_l0,y_l0``, level-0
pixels of the slide) says where each tile lay; with it ``assemble_slide`` puts the slide together.

Tiles of one slide are of one donor, so the donor is the folder's name unless stated. Split such a
folder by position, never at random, and claim nothing about other people.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from renal_utils.label_sources import open_labels
from renal_utils.labels import IGNORE_ID
from renal_utils.records import ImageRecord
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.tables import read_table

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
# Folder, suffix and kind of each form of truth; the first form there is taken.
TRUTHS = {
    "instances": ("masks_instance", ".png", "instance_image"),
    "polygons": ("polygons_labelme", ".json", "polygons"),
}
BAND_PX = 512


def read_tiles(
    folder: str | Path,
    *,
    label_set: str = "glomeruli",
    truth: str = "auto",
    donor: str | None = None,
    group: str = "",
    mpp: float | int | None = None,
) -> list[ImageRecord]:
    """Read a folder of tiles.

    Args:
        folder: Holds ``images/``.
        label_set: Label set of the truth.
        truth: "instances", "polygons", "none", or "auto": the first of these that is there.
        donor: Who the tiles are of; the folder's name by default.
        group: Disease group.
        mpp: Microns per pixel.

    Raises:
        ValueError: If there are no images, an image lacks its truth, or ``tiles.csv`` and the
            images do not name the same tiles.
    """
    folder = Path(folder)
    images = _images(folder)
    places = _places(folder, images)
    kind, truths = _truths(folder, images, truth)
    return [
        ImageRecord(
            image_id=name,
            image_path=path,
            truth_kind=kind,
            truth_path=truths.get(name),
            label_set=label_set,
            donor=folder.resolve().name if donor is None else donor,
            group=group,
            mpp=None if mpp is None else float(mpp),
            x_l0=places[name][0],
            y_l0=places[name][1],
        )
        for name, path in images.items()
    ]


def assemble_slide(
    folder: str | Path,
    out_path: str | Path,
    *,
    mpp: float | int | None = None,
    label_set: str = "glomeruli",
    truth: str = "auto",
    compression: str = "jpeg",
) -> ImageRecord:
    """Put the tiles of one slide together again as a tiled pyramid, and their truth beside it.

    The slide's left top corner is the smallest ``x_l0`` and ``y_l0``. Where no tile lies the slide
    is white and its labels are ``IGNORE_ID``. Bands of rows are written as they come, so the whole
    slide is never in memory. Where tiles overlap the one whose name sorts later
    wins.

    Args:
        folder: Tiles with a ``tiles.csv``.
        out_path: The slide, for example ``slide.ome.tiff``; its labels get ``-labels`` in the name.
        mpp: Microns per pixel, written into both files.
        label_set: Label set of the truth.
        truth: As for ``read_tiles``.
        compression: Of the slide, as for ``write_pyramid``; labels are always lossless.

    Returns:
        The record of the slide; ``x_l0`` and ``y_l0`` say where its corner lay on the old slide.

    Raises:
        ValueError: If ``tiles.csv`` is missing or a tile cannot be read.
    """
    folder, out_path = Path(folder), Path(out_path)
    if not (folder / "tiles.csv").is_file():
        raise ValueError(f"{folder}: no tiles.csv (tile,x_l0,y_l0), so the places are not known")
    mosaic = _Mosaic.of(read_tiles(folder, label_set=label_set, truth=truth, mpp=mpp))
    if labelled := mosaic.tiles[0].record.truth_kind != "none":
        mosaic.write(_labels_path(out_path), labels=True)
    mosaic.write(out_path, compression=compression)
    return replace(
        mosaic.tiles[0].record,
        image_id=_plain_stem(out_path),
        image_path=out_path,
        truth_kind="label_image" if labelled else "none",
        truth_path=_labels_path(out_path) if labelled else None,
        x_l0=mosaic.origin_l0[0],
        y_l0=mosaic.origin_l0[1],
    )


@dataclass(frozen=True)
class _Tile:
    """A tile and the rectangle it covers on the slide, level-0 pixels."""

    record: ImageRecord
    x_l0: int
    y_l0: int
    right: int
    bottom: int

    def read(self, *, labels: bool) -> UInt8[np.ndarray, "h w *channels"]:
        size = self.right - self.x_l0, self.bottom - self.y_l0
        if labels:
            with open_labels(self.record) as source:
                return source.read((0, 0), size)
        with open_slide(self.record.image_path) as slide:
            return slide.at_downsample(1.0).read((0, 0), size)


@dataclass(frozen=True)
class _Mosaic:
    """All tiles of a slide; where they overlap the later one wins."""

    tiles: list[_Tile]
    origin_l0: tuple[int, int]
    size_px: tuple[int, int]

    @classmethod
    def of(cls, records: list[ImageRecord]) -> "_Mosaic":
        tiles = []
        for record in records:
            with open_slide(record.image_path) as slide:
                width, height = slide.size_l0
            x, y = record.x_l0, record.y_l0
            tiles.append(_Tile(record, x, y, x + width, y + height))
        x, y = min(t.x_l0 for t in tiles), min(t.y_l0 for t in tiles)
        size = max(t.right for t in tiles) - x, max(t.bottom for t in tiles) - y
        return cls(tiles, (x, y), size)

    def write(self, path: Path, *, labels: bool = False, compression: str | None = None) -> None:
        write_pyramid(
            path,
            self.bands(labels=labels),
            size_px=self.size_px,
            mpp=self.tiles[0].record.mpp,
            compression=compression,
            kind="labels" if labels else "image",
        )

    def bands(self, *, labels: bool) -> Iterator[UInt8[np.ndarray, "h w *channels"]]:
        """Yield the slide from top to bottom; a tile is read when reached and then forgotten."""
        held: dict[str, np.ndarray] = {}
        shape, empty = ((), IGNORE_ID) if labels else ((3,), 255)
        (x0, y0), (width, height) = self.origin_l0, self.size_px
        for top in range(y0, y0 + height, BAND_PX):
            bottom = min(top + BAND_PX, y0 + height)
            band = np.full((bottom - top, width, *shape), empty, np.uint8)
            for tile in (t for t in self.tiles if t.y_l0 < bottom and t.bottom > top):
                name = tile.record.image_id
                pixels = held[name] if name in held else tile.read(labels=labels)
                held[name] = pixels
                rows = slice(max(tile.y_l0, top), min(tile.bottom, bottom))
                place = slice(rows.start - top, rows.stop - top)
                band[place, tile.x_l0 - x0 : tile.right - x0] = pixels[
                    rows.start - tile.y_l0 : rows.stop - tile.y_l0
                ]
                if tile.bottom <= bottom:
                    del held[name]
            yield band


def _images(folder: Path) -> dict[str, Path]:
    found = sorted(
        p
        for p in (folder / "images").glob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    )
    if not found:
        raise ValueError(
            f"{folder / 'images'}: no images ({', '.join(IMAGE_SUFFIXES)}) there; lay the tiles "
            "out as data/README.md says"
        )
    names = {p.stem: p for p in found}
    if len(names) != len(found):
        raise ValueError(f"{folder / 'images'}: two images differ only in their suffix; remove one")
    return names


def _places(folder: Path, images: dict[str, Path]) -> dict[str, tuple[int, int]]:
    path = folder / "tiles.csv"
    if not path.is_file():
        return dict.fromkeys(images, (0, 0))
    table = read_table(path, ("tile", "x_l0", "y_l0"))
    try:
        places = {t: (int(x), int(y)) for t, x, y in table[["tile", "x_l0", "y_l0"]].to_numpy()}
    except ValueError as error:
        raise ValueError(f"{path}: a place is no whole number of pixels ({error})") from error
    if places.keys() != images.keys() or len(table) != len(places):
        raise ValueError(
            f"{path} and {folder / 'images'} differ: only in the table "
            f"{sorted(places.keys() - images.keys())}, only in the folder "
            f"{sorted(images.keys() - places.keys())}, rows {len(table)}; each tile needs one row"
        )
    return places


def _truths(folder: Path, images: dict[str, Path], truth: str) -> tuple[str, dict[str, Path]]:
    if truth not in ("auto", "none", *TRUTHS):
        raise ValueError(f"truth {truth!r} is not one of {('auto', 'none', *TRUTHS)}")
    if truth == "auto":
        truth = next((t for t, form in TRUTHS.items() if (folder / form[0]).is_dir()), "none")
    if truth == "none":
        return "none", {}
    name, suffix, kind = TRUTHS[truth]
    truths = {image: folder / name / f"{image}{suffix}" for image in images}
    missing = [path for path in truths.values() if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]} is missing ({len(missing)} of {len(images)} images lack their truth); "
            "restore it, or pass truth='none'"
        )
    return kind, truths


def _plain_stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix).removesuffix(".ome")


def _labels_path(path: Path) -> Path:
    return path.with_name(f"{_plain_stem(path)}-labels.ome.tiff")
