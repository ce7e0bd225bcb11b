"""The AIDPATH reader on small slides with outlines in each of the formats it reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from renal_utils.datasets.aidpath import read_aidpath, read_glomeruli
from renal_utils.label_sources import open_labels

SQUARES = {"Normal": (10, 10), "Sclerosed glomerulus": (60, 40)}


def corners(x: int, y: int) -> list[list[int]]:
    return [[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20]]


def add_slide(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((128, 128, 3), 230, np.uint8)
    description = "Aperio Image Library v11\r\n128x128 |AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", description=description)
    return path


def write_xml(path: Path, squares=SQUARES, *, attribute: bool = False) -> None:
    layers = []
    for name, (x, y) in squares.items():
        vertices = "".join(f'<Vertex X="{a}" Y="{b}" Z="0"/>' for a, b in corners(x, y))
        own = "" if attribute else f' Name="{name}"'
        said = f'<Attributes><Attribute Name="{name}" Value=""/></Attributes>' if attribute else ""
        region = f'<Regions><Region Id="1"><Vertices>{vertices}</Vertices></Region></Regions>'
        layers.append(f"<Annotation{own}>{said}{region}</Annotation>")
    path.write_text(f'<Annotations MicronsPerPixel="0.499">{"".join(layers)}</Annotations>')


def write_json(path: Path, squares=SQUARES) -> None:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*corners(*xy), corners(*xy)[0]]]},
            "properties": {"classification": {"name": name}},
        }
        for name, xy in squares.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.mark.parametrize("form", ["layers", "attributes", "json", "geojson"])
def test_normal_and_sclerosed_glomeruli_are_read_from_each_format(tmp_path, form):
    slide = add_slide(tmp_path / "S01.svs")
    if "json" in form:
        write_json(slide.with_suffix(f".{form}"))
    else:
        write_xml(slide.with_suffix(".xml"), attribute=form == "attributes")
    (record,) = read_aidpath(tmp_path)
    with open_labels(record) as source:
        ids = source.read((0, 0), (128, 128))
    assert (ids[20, 20], ids[50, 70], ids[100, 100]) == (1, 2, 0)
    assert np.bincount(ids.ravel()).tolist() == [128 * 128 - 800, 400, 400]


def test_a_regions_own_text_goes_before_the_name_of_its_layer(tmp_path):
    path = tmp_path / "S01.xml"
    write_xml(path, {"glomeruli": (10, 10)})
    path.write_text(path.read_text().replace('Id="1"', 'Id="1" Text="sclerotic"'))
    assert [item.label for item in read_glomeruli(path)] == ["sclerosed_glomerulus"]


def test_centres_become_groups_and_the_table_tells_donors(tmp_path):
    folder = tmp_path / "set"
    write_xml(add_slide(folder / "north" / "S01.svs").with_suffix(".xml"))
    add_slide(folder / "south" / "S02.svs")
    first = read_aidpath(folder, prepared=tmp_path / "elsewhere")
    assert [(r.image_id, r.group, r.donor) for r in first] == [
        ("S01", "north", "S01"),
        ("S02", "south", "S02"),
    ]
    assert [r.truth_kind for r in first] == ["polygons", "none"]
    assert (tmp_path / "elsewhere" / "S01.geojson").is_file()
    (folder / "donors.csv").write_text("image_id,donor\nS01,anna\nS02,anna\n")
    assert [r.donor for r in read_aidpath(folder)] == ["anna", "anna"]
    assert len(read_aidpath(folder)) == 2, "the folder of prepared files is no centre"


def test_a_slide_without_donor_in_the_table_is_named(tmp_path):
    add_slide(tmp_path / "S01.svs")
    (tmp_path / "donors.csv").write_text("image_id,donor\nS02,anna\n")
    with pytest.raises(ValueError, match=r"donors\.csv: no donor for 'S01' \(1 of 1"):
        read_aidpath(tmp_path)


def test_a_name_that_nobody_knows_is_refused_with_its_file(tmp_path):
    write_json(add_slide(tmp_path / "S01.svs").with_suffix(".json"), {"Tubule": (5, 5)})
    with pytest.raises(ValueError, match=r"S01\.json, object 1: 'Tubule' is neither"):
        read_aidpath(tmp_path)


def test_broken_outlines_are_named(tmp_path):
    slide = add_slide(tmp_path / "S01.svs")
    slide.with_suffix(".xml").write_text("<Annotations><Annotation>")
    with pytest.raises(ValueError, match=r"S01\.xml is not valid XML"):
        read_aidpath(tmp_path)


def test_outlines_without_slide_twofold_outlines_and_twofold_names_are_refused(tmp_path):
    slide = add_slide(tmp_path / "S01.svs")
    write_xml(tmp_path / "S02.xml")
    with pytest.raises(ValueError, match=r"S02\.xml: there is no S02\.svs"):
        read_aidpath(tmp_path)
    (tmp_path / "S02.xml").rename(slide.with_suffix(".xml"))
    write_json(slide.with_suffix(".json"))
    with pytest.raises(ValueError, match="keep one of them"):
        read_aidpath(tmp_path)
    slide.with_suffix(".json").unlink()
    add_slide(tmp_path / "centre" / "S01.svs")
    with pytest.raises(ValueError, match="have one name"):
        read_aidpath(tmp_path)


def test_no_folder_and_no_slide_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_aidpath(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no SLIDE\.svs"):
        read_aidpath(tmp_path)
