"""AIDPATH kidney: human PAS slides of three European centres, normal and sclerosed glomeruli.

Layout: ``SLIDE.svs``, in the folder itself or in one folder for each centre (which becomes the
record's group), each with its outlines beside it: ``SLIDE.xml`` (Aperio ImageScope) or
``SLIDE.json``, ``SLIDE.geojson`` (QuPath, or labelme). How the 47 public slides name their layers
we have not seen, so ``ALIASES`` lists what is understood; any other name is refused, not guessed.

Nothing in the files says which person a slide is of. ``donors.csv`` (``image_id,donor``), where
there is one, does; without it every slide counts as a donor of its own, which leaks as soon as a
person gave two.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from renal_utils.polygon_files import read_monuseg_xml, read_polygons, write_geojson
from renal_utils.polygons import PolygonObject
from renal_utils.records import ImageRecord
from renal_utils.tables import read_table

LABEL_SET = "glomeruli_sclerosis"
DONOR_FILE = "donors.csv"
PREPARED = "prepared"

# What a layer or an object may be called (lower case, blanks for hyphens and underscores).
ALIASES: Mapping[str, str] = {
    "glomerulus": "glomerulus",
    "glomeruli": "glomerulus",
    "normal": "glomerulus",
    "normal glomerulus": "glomerulus",
    "normal glomeruli": "glomerulus",
    "non sclerosed": "glomerulus",
    "non sclerosed glomerulus": "glomerulus",
    "sclerosed": "sclerosed_glomerulus",
    "sclerosed glomerulus": "sclerosed_glomerulus",
    "sclerosed glomeruli": "sclerosed_glomerulus",
    "sclerotic": "sclerosed_glomerulus",
    "sclerotic glomerulus": "sclerosed_glomerulus",
}
_ENDINGS = (".xml", ".json", ".geojson")


def read_aidpath(
    folder: str | Path, *, prepared: str | Path | None = None, mpp: float | int | None = None
) -> list[ImageRecord]:
    """Read the slides of a folder; their outlines are written once more with one spelling.

    Args:
        folder: Holds the slides, or one folder of slides for each centre.
        prepared: Gets a GeoJSON for each slide; ``folder/prepared`` without it.
        mpp: Microns per pixel of all slides; None leaves it to what each file states.

    Returns:
        Records by centre and name, of label set ``glomeruli_sclerosis``; the truth of a slide
        without a file of outlines is ``none``.

    Raises:
        ValueError: If there is no slide, a name stands twice, outlines lack their slide or stand in
            two files, or an object is called what no alias knows; the message names the file.
    """
    folder = Path(folder)
    out = Path(prepared) if prepared is not None else folder / PREPARED
    slides = _find_slides(folder, out)
    donors = _read_donors(folder, list(slides))
    records = []
    for image_id, path in slides.items():
        record = ImageRecord(
            image_id=image_id,
            image_path=path,
            label_set=LABEL_SET,
            donor=donors[image_id],
            group="" if path.parent == folder else path.parent.name,
            mpp=None if mpp is None else float(mpp),
        )
        outlines = _find_outlines(path)
        if outlines is not None:
            truth = out / f"{image_id}.geojson"
            write_geojson(truth, read_glomeruli(outlines))
            record = replace(record, truth_kind="polygons", truth_path=truth)
        records.append(record)
    return records


def read_glomeruli(path: str | Path) -> list[PolygonObject]:
    """Read a file of outlines and give each object the name of its class.

    Raises:
        ValueError: If the file is broken, or an object's name is not in ``ALIASES``.
    """
    path = Path(path)
    objects = _read_layers(path) if path.suffix == ".xml" else read_polygons(path)
    named = []
    for number, item in enumerate(objects, start=1):
        name = " ".join(item.label.lower().replace("-", " ").replace("_", " ").split())
        if name not in ALIASES:
            raise ValueError(
                f"{path}, object {number}: {item.label!r} is neither a normal nor a sclerosed "
                f"glomerulus; known names: {', '.join(ALIASES)}. Rename it, or add an alias"
            )
        named.append(replace(item, label=ALIASES[name]))
    return named


def _read_layers(path: Path) -> list[PolygonObject]:
    """Read Aperio's XML; an object is called as its region's text, else as its layer."""
    objects = read_monuseg_xml(path)
    names: list[str] = []
    for layer in ElementTree.parse(path).getroot().iter("Annotation"):
        attribute = layer.find("./Attributes/Attribute")
        own = layer.get("Name", "") or ("" if attribute is None else attribute.get("Name", ""))
        names += [region.get("Text", "") or own for region in layer.iter("Region")]
    if len(names) != len(objects):
        raise ValueError(
            f"{path}: {len(objects)} regions, of which {len(names)} lie in an <Annotation>; "
            "expected Aperio's Annotations/Annotation/Regions. Export the file again"
        )
    return [replace(item, label=name) for item, name in zip(objects, names, strict=True)]


def _find_slides(folder: Path, out: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; lay the slides out as data/README.md says")
    found: dict[str, Path] = {}
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and p.resolve() != out.resolve())
    for place in (folder, *inside):
        for path in sorted(p for p in place.iterdir() if p.suffix.lower() == ".svs"):
            if path.stem in found:
                raise ValueError(f"{found[path.stem]} and {path} have one name; rename one")
            found[path.stem] = path
        _refuse_stray(place)
    if not found:
        raise ValueError(f"{folder}: no SLIDE.svs here or one folder deeper")
    return found


def _refuse_stray(place: Path) -> None:
    slides = {p.stem for p in place.iterdir() if p.suffix.lower() == ".svs"}
    for path in sorted(place.iterdir()):
        if path.suffix in _ENDINGS and path.stem not in slides:
            raise ValueError(f"{path}: there is no {path.stem}.svs beside it; get the slide")


def _find_outlines(slide: Path) -> Path | None:
    found = [slide.with_suffix(e) for e in _ENDINGS if slide.with_suffix(e).is_file()]
    if len(found) > 1:
        raise ValueError(f"{slide} has outlines in {found[0]} and {found[1]}; keep one of them")
    return found[0] if found else None


def _read_donors(folder: Path, ids: list[str]) -> dict[str, str]:
    path = folder / DONOR_FILE
    if not path.is_file():
        return {image_id: image_id for image_id in ids}
    table = read_table(path, ["image_id", "donor"])
    donors = dict(zip(table["image_id"], table["donor"], strict=True))
    without = [image_id for image_id in ids if not donors.get(image_id)]
    if without:
        raise ValueError(
            f"{path}: no donor for {without[0]!r} ({len(without)} of {len(ids)} slides); a split "
            "could not keep a person's slides together. Add the rows"
        )
    return donors
