"""Files of outlines: QuPath's GeoJSON, labelme's JSON, Aperio's XML (MoNuSeg) in; GeoJSON out.

All hold pixels of the full-resolution image with the origin at its left top corner. Files whose
name ends in ``.gz`` are packed and unpacked on the way.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import shapely
from shapely import MultiPolygon, Polygon

from renal_utils.labels import LabelSet
from renal_utils.polygons import PolygonObject, class_id_of
from renal_utils.runtime import atomic_path

_NO_COLOUR = (120, 120, 120)


def read_polygons(path: str | Path) -> list[PolygonObject]:
    """Read the outlines of a QuPath or other GeoJSON file, or of a labelme file.

    A GeoJSON file is a ``FeatureCollection``, one ``Feature``, or, as older versions of QuPath
    write it, a bare list of features. An object's label is its classification's name, else its own
    name, else "". Shapes are kept as drawn, crossing outlines too.

    Raises:
        ValueError: If the file is cut off, is none of these, or holds a shape without an area; the
            message names the file and the object.
    """
    path = Path(path)
    try:
        content = json.loads(_read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was it cut off?") from error
    if isinstance(content, dict) and "shapes" in content:
        return _read_all(path, content["shapes"], _labelme_object)
    if isinstance(content, dict):
        content = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(content, list):
        raise ValueError(
            f"{path} is JSON, but neither GeoJSON features nor a labelme file; export the "
            "annotations from QuPath as GeoJSON"
        )
    return _read_all(path, content, _geojson_object)


def read_monuseg_xml(path: str | Path, *, label: str = "nucleus") -> list[PolygonObject]:
    """Read the outlines of an Aperio ImageScope XML file; MoNuSeg has one region a nucleus.

    Outlines are open in the file and closed here. Properties hold the region's id and the file's
    ``mpp`` where it states one.

    Raises:
        ValueError: If the file is broken, has no region, or a region has fewer than 3 vertices.
    """
    path = Path(path)
    try:
        root = ElementTree.fromstring(_read_bytes(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not valid XML ({error}); was it cut off?") from error
    regions = list(root.iter("Region"))
    if not regions:
        raise ValueError(f"{path}: no <Region> in it; expected Aperio's Annotations/Regions")
    mpp = root.get("MicronsPerPixel")
    extra = {"mpp": float(mpp)} if mpp else {}

    def convert(region: ElementTree.Element) -> PolygonObject:
        xy = [(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")]
        return PolygonObject(label, _polygon(xy), {"region_id": region.get("Id"), **extra})

    return _read_all(path, regions, convert)


def write_geojson(
    path: str | Path,
    objects: Iterable[PolygonObject],
    *,
    label_set: LabelSet | None = None,
    object_type: str = "annotation",
) -> int:
    """Write objects as a GeoJSON that QuPath opens, one at a time and atomically.

    ``objects`` may be a generator: only one object is held. An object's properties are written as
    they are; ``measurements``, a mapping of names to numbers, is what QuPath shows in its table.

    Args:
        path: File to write; ``.gz`` at its end packs it.
        objects: Outlines in level-0 pixels of the slide.
        label_set: Where the colours of the classes come from; grey without it.
        object_type: QuPath's kind of object, "annotation" or "detection" (lighter; for cells).

    Returns:
        The number of objects written.

    Raises:
        ValueError: If an object's properties cannot stand in JSON, for example a NaN.
    """
    if object_type not in ("annotation", "detection"):
        raise ValueError(f"object_type {object_type!r} is neither 'annotation' nor 'detection'")
    count = 0
    with atomic_path(path) as temporary, _open_text(temporary) as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for count, item in enumerate(objects, start=1):
            file.write("\n" if count == 1 else ",\n")
            file.write(_feature_text(item, label_set, object_type, f"{path}, object {count}"))
        file.write("\n]}\n")
    return count


def _read_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be unpacked ({error}); was it cut off?") from error


def _read_all(
    path: Path, items: Iterable[Any], convert: Callable[[Any], PolygonObject]
) -> list[PolygonObject]:
    """Convert each object; an error names the file and the object."""
    found = []
    for number, item in enumerate(items, start=1):
        try:
            found.append(convert(item))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}, object {number}: {what}; expected outlined areas only. Delete or fix the "
                "object and export the file again"
            ) from error
    return found


def _geojson_object(feature: Mapping[str, Any]) -> PolygonObject:
    properties = dict(feature.get("properties") or {})
    classification = properties.get("classification") or {}
    label = classification.get("name") or properties.get("name") or ""
    if "id" in feature:
        properties.setdefault("id", feature["id"])
    geometry = feature["geometry"] or {"type": "no geometry"}
    if geometry["type"] == "Polygon":
        return PolygonObject(label, _polygon(*geometry["coordinates"]), properties)
    if geometry["type"] == "MultiPolygon":
        parts = [_polygon(*rings) for rings in geometry["coordinates"]]
        return PolygonObject(label, MultiPolygon(parts), properties)
    raise ValueError(f"a {geometry['type']} has no area")


def _labelme_object(shape: Mapping[str, Any]) -> PolygonObject:
    points, kind = shape["points"], shape.get("shape_type", "polygon")
    properties = {"group_id": shape.get("group_id")}
    if kind == "polygon":
        return PolygonObject(shape["label"], _polygon(points), properties)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return PolygonObject(shape["label"], shapely.box(x0, y0, x1, y1), properties)
    raise ValueError(f"shape_type {kind!r} is not read; known: 'polygon', 'rectangle'")


def _polygon(outline: Any, *holes: Any) -> Polygon:
    if len(outline) < 3 or any(len(hole) < 3 for hole in holes):
        raise ValueError("an outline has fewer than 3 corners")
    if not np.isfinite(np.asarray(outline, float)).all():
        raise ValueError("an outline has a corner that is not a finite number")
    return Polygon(outline, holes)


@contextmanager
def _open_text(path: Path) -> Iterator[io.TextIOBase]:
    with path.open("wb") as raw, ExitStack() as stack:
        target: Any = raw
        if path.suffix == ".gz":
            target = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(target, encoding="utf-8"))


def _feature_text(
    item: PolygonObject, label_set: LabelSet | None, object_type: str, where: str
) -> str:
    colour = _NO_COLOUR
    if label_set is not None:
        colour = label_set.classes[class_id_of(item.label, label_set)].colour
    properties = {"objectType": object_type, **item.properties}
    properties["classification"] = {"name": item.label, "color": list(colour)}
    feature: dict[str, Any] = {"type": "Feature"}
    if "id" in properties:
        feature["id"] = properties.pop("id")
    feature |= {"geometry": _geometry(item.polygon), "properties": properties}
    try:
        return json.dumps(feature, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {error}; properties must be texts, finite numbers, lists and mappings"
        ) from error


def _geometry(shape: Polygon | MultiPolygon) -> dict[str, Any]:
    parts = [[_corners(ring) for ring in _rings(part)] for part in shapely.get_parts(shape)]
    if isinstance(shape, Polygon):
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _rings(polygon: Polygon) -> Iterator[Any]:
    yield polygon.exterior
    yield from polygon.interiors


def _corners(ring: Any) -> list[list[int]] | list[list[float]]:
    """Corners of a ring as lists; whole numbers without a fraction, to keep files small."""
    xy = shapely.get_coordinates(ring)
    whole = xy.astype(np.int64)
    return (whole if np.array_equal(whole, xy) else xy).tolist()
