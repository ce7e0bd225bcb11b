"""Files of outlines: what each format holds, what is refused, what QuPath gets."""

import gzip
import json
import time
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, ImageDraw
from shapely import MultiPolygon, Polygon, box

from renal_utils.labels import GLOMERULI, KIDNEY_TISSUES
from renal_utils.polygon_files import read_monuseg_xml, read_polygons, write_geojson
from renal_utils.polygons import PolygonObject, instances_to_polygons, rasterise

SQUARE = [[1, 1], [5, 1], [5, 5], [1, 5], [1, 1]]
PARTS = MultiPolygon([box(0.1, 0.2, 3.3, 4), box(8, 8, 9, 9)])
HOLE = [[2, 2], [3, 2], [3, 3], [2, 3], [2, 2]]


def feature(kind: str = "Polygon", coordinates=(SQUARE,), **properties) -> dict:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "x1", "geometry": geometry, "properties": properties}


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("form", ["list", "collection", "single", "packed"])
def test_every_form_of_geojson_is_read(tmp_path: Path, form):
    one = feature(classification={"name": "glomerulus", "colorRGB": -3140401}, isLocked=True)
    content = {"list": [one], "single": one}.get(
        form, {"type": "FeatureCollection", "features": [one]}
    )
    path = write(tmp_path / "a.json", content)
    if form == "packed":
        packed = tmp_path / "a.json.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    (found,) = read_polygons(path)
    assert found.label == "glomerulus"
    assert found.polygon.equals(box(1, 1, 5, 5))
    assert found.properties["isLocked"] is True
    assert found.properties["id"] == "x1"


def test_holes_parts_and_names_without_a_classification_are_read(tmp_path: Path):
    content = [
        feature("Polygon", [SQUARE, HOLE], name="Cortex", objectType="annotation"),
        feature("MultiPolygon", [[SQUARE], [[[7, 7], [9, 7], [9, 9]]]], objectType="detection"),
    ]
    first, second = read_polygons(write(tmp_path / "a.geojson", content))
    assert (first.label, second.label) == ("Cortex", "")
    assert first.polygon.area == 15
    assert isinstance(second.polygon, MultiPolygon)
    assert second.polygon.area == 18
    assert second.properties["objectType"] == "detection"


def test_labelme_polygons_and_rectangles_are_read(tmp_path: Path):
    shapes = [
        {"label": "Glomeruli", "points": [[0, 0], [4.5, 0], [4.5, 4]], "shape_type": "polygon"},
        {"label": "vessel", "points": [[1, 2], [3, 5]], "shape_type": "rectangle", "group_id": 3},
    ]
    first, second = read_polygons(write(tmp_path / "a.json", {"shapes": shapes}))
    assert (first.label, first.polygon.area) == ("Glomeruli", 9)
    assert second.polygon.equals(box(1, 2, 3, 5))
    assert second.properties["group_id"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "a.json is not valid JSON .*cut off"),
        ({"a": 1}, "a.json is JSON, but neither GeoJSON features nor a labelme file"),
        ("3", "neither GeoJSON"),
        ([feature("Point", [1, 2])], "a.json, object 1: a Point has no area"),
        ([feature(), feature("LineString", SQUARE)], "object 2: a LineString has no area"),
        ([{"type": "Feature", "geometry": None}], "object 1: a no geometry has no area"),
        ([{"type": "Feature"}], "object 1: no 'geometry'"),
        ([feature("Polygon", [[[1, 1], [2, 2]]])], "fewer than 3 corners"),
        ([feature("Polygon", [[[1, 1], [2, None], [3, 3]]])], "object 1: "),
        ([feature("Polygon", [[[1, 1], [2, "x"], [3, 3]]])], "object 1: "),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[1,1],[2,NaN],[3,3]]]}}]', "finite"),
        ({"shapes": [{"label": "a", "points": [[0, 0]], "shape_type": "point"}]}, "'point'"),
        ({"shapes": [{"points": [[0, 0], [1, 1], [2, 0]]}]}, "object 1: no 'label'"),
        ([5], "a.json, object 1: "),
    ],
)
def test_broken_outlines_are_refused_with_file_and_object(tmp_path: Path, content, message):
    with pytest.raises(ValueError, match=message):
        read_polygons(write(tmp_path / "a.json", content))


def test_packed_file_that_was_cut_off_is_refused(tmp_path: Path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps([feature()] * 50).encode())[:-20])
    with pytest.raises(ValueError, match=r"a\.json\.gz: cannot be unpacked"):
        read_polygons(path)


XML = """<Annotations MicronsPerPixel="0.25"><Annotation Id="1"><Regions>
<Region Id="7"><Vertices>
<Vertex X="1" Y="1"/><Vertex X="4" Y="1"/><Vertex X="4.5" Y="4"/></Vertices>
</Region>{more}</Regions></Annotation></Annotations>"""


def test_aperio_regions_are_closed_and_named(tmp_path: Path):
    (nucleus,) = read_monuseg_xml(write(tmp_path / "a.xml", XML.format(more="")))
    assert nucleus.label == "nucleus"
    assert nucleus.polygon.equals(Polygon([(1, 1), (4, 1), (4.5, 4), (1, 1)]))
    assert nucleus.properties == {"region_id": "7", "mpp": 0.25}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<Annotations></Annotations>", "a.xml: no <Region> in it"),
        (XML.format(more="")[:-30], "a.xml is not valid XML"),
        (
            XML.format(more='<Region><Vertices><Vertex X="1" Y="1"/></Vertices></Region>'),
            "a.xml, object 2: an outline has fewer than 3 corners",
        ),
        (XML.format(more='<Region><Vertex X="1"/></Region>'), "a.xml, object 2: no 'Y'"),
    ],
)
def test_broken_xml_is_refused(tmp_path: Path, content, message):
    with pytest.raises(ValueError, match=message):
        read_monuseg_xml(write(tmp_path / "a.xml", content))


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz"])
def test_written_objects_are_read_back_equal(tmp_path: Path, name):
    objects = [
        PolygonObject("glomerulus", Polygon(SQUARE, [HOLE]), {"measurements": {"Area µm^2": 3.5}}),
        PolygonObject("sclerosed_glomerulus", PARTS),
    ]
    assert write_geojson(tmp_path / name, iter(objects), label_set=KIDNEY_TISSUES) == 2
    found = read_polygons(tmp_path / name)
    assert [o.label for o in found] == [o.label for o in objects]
    assert all(a.polygon.equals(b.polygon) for a, b in zip(found, objects, strict=True))
    assert found[0].properties["measurements"] == {"Area µm^2": 3.5}


def test_properties_are_what_qupath_expects(tmp_path: Path):
    item = PolygonObject("glomerulus", box(1, 1, 3, 3), {"id": "g1", "isLocked": True})
    write_geojson(tmp_path / "a.geojson", [item], label_set=GLOMERULI, object_type="detection")
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    (written,) = content["features"]
    assert written["type"] == "Feature"
    assert written["id"] == "g1"
    assert written["geometry"]["coordinates"][0][0] == written["geometry"]["coordinates"][0][-1]
    assert isinstance(written["geometry"]["coordinates"][0][0][0], int)
    assert written["properties"] == {
        "objectType": "detection",
        "isLocked": True,
        "classification": {"name": "glomerulus", "color": [213, 94, 0]},
    }


def test_no_objects_give_a_valid_empty_file(tmp_path: Path):
    assert write_geojson(tmp_path / "a.geojson", []) == 0
    assert read_polygons(tmp_path / "a.geojson") == []


def test_equal_objects_give_equal_bytes(tmp_path: Path):
    objects = [PolygonObject("glomerulus", box(1, 1, 3, 3))]
    for name in ("a.geojson.gz", "b.geojson.gz"):
        write_geojson(tmp_path / name, objects)
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()


def test_objects_are_written_one_at_a_time(tmp_path: Path):
    alive: list[weakref.ref] = []

    def generate():
        for n in range(50):
            assert sum(reference() is not None for reference in alive) <= 2
            item = PolygonObject("glomerulus", box(n, 0, n + 1, 1))
            alive.append(weakref.ref(item))
            yield item

    assert write_geojson(tmp_path / "a.geojson", generate()) == 50


@pytest.mark.slow
def test_a_hundred_thousand_objects_are_written_in_little_memory_and_read_back(tmp_path: Path):
    """Their texts are over 20 MB, which would show; two minutes are several times what it takes."""
    memory, process = [], psutil.Process()

    def generate():
        for n in range(100_000):
            if n % 1000 == 0:
                memory.append(process.memory_info().rss)
            x, y = 10 * (n % 300), 10 * (n // 300)
            properties = {"name": f"glomerulus {n}", "measurements": {"Area px": n + 0.5}}
            yield PolygonObject("glomerulus", box(x, y, x + 7, y + n % 8 + 1), properties)

    path = tmp_path / "many.geojson"
    started = time.process_time()
    assert write_geojson(path, generate(), label_set=GLOMERULI) == 100_000
    assert max(memory) - memory[5] < 1e7 < 2e7 < path.stat().st_size
    objects = read_polygons(path)
    assert time.process_time() - started < 120
    assert len(objects) == 100_000
    assert objects[-1].polygon.area == 7 * (99_999 % 8 + 1)


def test_failure_half_way_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.geojson"
    write_geojson(path, [])
    before = path.read_bytes()
    broken = PolygonObject("glomerulus", box(0, 0, 1, 1), {"measurements": {"area": float("nan")}})
    with pytest.raises(ValueError, match=r"a.geojson, object 2: .*finite numbers"):
        write_geojson(path, [PolygonObject("glomerulus", box(0, 0, 1, 1)), broken])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_object_type_is_refused_before_writing(tmp_path: Path):
    with pytest.raises(ValueError, match="'cell' is neither"):
        write_geojson(tmp_path / "a.geojson", [], object_type="cell")
    assert not list(tmp_path.iterdir())


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def draw_with_pillow(objects: list[PolygonObject], size_px: tuple[int, int]) -> np.ndarray:
    """Draw an instance map, pixels under the outline included; the first keeps the pixel."""
    drawn = np.zeros(size_px[::-1], int)
    for number, item in enumerate(objects, start=1):
        canvas = Image.new("L", size_px)
        corners = [tuple(xy) for xy in np.asarray(item.polygon.exterior.coords)[:-1]]
        ImageDraw.Draw(canvas).polygon(corners, fill=1, outline=1)
        drawn[(np.asarray(canvas) > 0) & (drawn == 0)] = number
    return drawn


@pytest.mark.real
def test_real_labelme_outlines_are_those_the_masks_were_drawn_from(shared_data: Path):
    folder = shared_data / "hubmap_pas_slide"
    for path in sorted((folder / "polygons_labelme").glob("*.json"))[::5]:
        mask = np.asarray(Image.open(folder / "masks_instance" / f"{path.stem}.png"))
        objects = read_polygons(path)
        assert (draw_with_pillow(objects, mask.shape[::-1]) != mask).mean() < 2e-4
        assert dice(rasterise(objects, mask.shape[::-1]) > 0, mask > 0) > 0.99, path.name


@pytest.mark.real
def test_real_nuclei_are_those_the_masks_were_drawn_from(shared_data: Path):
    folder = shared_data / "monuseg"
    for path in sorted((folder / "annotations_xml_gz").glob("*.xml.gz"))[:2]:
        name = path.name.removesuffix(".xml.gz")
        mask = np.asarray(Image.open(folder / "masks_instance" / f"{name}.png"))
        objects = read_monuseg_xml(path)
        np.testing.assert_array_equal(draw_with_pillow(objects, mask.shape[::-1]), mask)
        assert dice(rasterise(objects, mask.shape[::-1]) > 0, mask > 0) > 0.93, path.name


@pytest.mark.real
def test_real_instances_traced_and_drawn_again_are_the_same(shared_data: Path):
    path = sorted((shared_data / "monuseg" / "masks_instance").glob("*.png"))[0]
    mask = np.asarray(Image.open(path))
    traced = instances_to_polygons(mask)
    drawn = rasterise([PolygonObject("", shape) for _, shape in traced], mask.shape[::-1])
    np.testing.assert_array_equal(drawn, mask)


@pytest.mark.real
def test_real_qupath_files_hold_glomeruli(shared_data: Path):
    folder = shared_data / "hubmap_pas_slide" / "qupath_polygons_without_images"
    counts = {}
    for path in folder.glob("*.json.gz"):
        objects = read_polygons(path)
        assert {o.label for o in objects} == {"glomerulus"}
        counts[path.name[:7]] = len(objects)
    assert counts == {"VAN0003": 96, "VAN0009": 144, "VAN0011": 126, "VAN0014": 165}
