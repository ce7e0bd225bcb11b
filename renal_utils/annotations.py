"""Annotations of every kind: the one door to masks as runs, outlines and images.

- ``rle``: HuBMAP's run-length texts, both ways.
- ``polygons``: outlines drawn into masks, masks traced to outlines.
- ``polygon_files``: QuPath/GeoJSON, labelme and Aperio XML in, GeoJSON out.
- ``label_sources``: the truth of a record, whatever its kind, as class ids of a window.
"""

from renal_utils.label_sources import LabelSource, check_truths, open_labels
from renal_utils.polygon_files import read_monuseg_xml, read_polygons, write_geojson
from renal_utils.polygons import (
    PolygonObject,
    instances_to_polygons,
    mask_to_polygons,
    rasterise,
    rasterise_labels,
    simplify_polygon,
)
from renal_utils.rle import (
    RunLengths,
    check_rle,
    decode_rle,
    encode_rle,
    parse_rle,
    read_rle_table,
)

__all__ = [
    "LabelSource",
    "PolygonObject",
    "RunLengths",
    "check_rle",
    "check_truths",
    "decode_rle",
    "encode_rle",
    "instances_to_polygons",
    "mask_to_polygons",
    "open_labels",
    "parse_rle",
    "rasterise",
    "rasterise_labels",
    "read_monuseg_xml",
    "read_polygons",
    "read_rle_table",
    "simplify_polygon",
    "write_geojson",
]
