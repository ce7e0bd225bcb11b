"""The tiles reader, and a slide put together from its tiles."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from renal_utils.datasets.tiles import assemble_slide, read_tiles
from renal_utils.label_sources import open_labels
from renal_utils.labels import IGNORE_ID
from renal_utils.slides import open_slide

TILE_PX = (70, 50)
PLACES = {"t1": (100, 40), "t2": (170, 40), "t3": (240, 640)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tiles of one slide with gaps between; lossless, so that pixels can be compared."""
    folder = tmp_path / "slide_a"
    rng = np.random.default_rng(5)
    for name in ("images", "masks_instance", "polygons_labelme"):
        (folder / name).mkdir(parents=True)
    for name in PLACES:
        pixels = rng.integers(0, 255, (TILE_PX[1], TILE_PX[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        mask = np.zeros((TILE_PX[1], TILE_PX[0]), np.uint16)
        mask[10:30, 5:25], mask[35:45, 40:60] = 1, 300
        Image.fromarray(mask).save(folder / "masks_instance" / f"{name}.png")
        points = [[5, 10], [25, 10], [25, 30], [5, 30]]
        shape = {"label": "Glomeruli", "points": points, "shape_type": "polygon"}
        (folder / "polygons_labelme" / f"{name}.json").write_text(json.dumps({"shapes": [shape]}))
    rows = [f"{name},{x},{y}" for name, (x, y) in PLACES.items()]
    (folder / "tiles.csv").write_text("\n".join(["tile,x_l0,y_l0", *rows, ""]))
    return folder


def pixels_of(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "images" / f"{name}.png"))


def test_records_tell_place_donor_and_truth(folder):
    records = read_tiles(folder, mpp=0.5)
    assert [r.image_id for r in records] == ["t1", "t2", "t3"]
    assert [(r.x_l0, r.y_l0) for r in records] == list(PLACES.values())
    assert {r.donor for r in records} == {"slide_a"}
    assert {r.truth_kind for r in records} == {"instance_image"}
    with open_labels(records[0]) as source:
        assert source.read((0, 0), TILE_PX).sum() == 20 * 20 + 10 * 20


def test_truth_donor_and_group_may_be_chosen(folder):
    records = read_tiles(folder, truth="polygons", donor="someone", group="normal")
    assert {(r.donor, r.group) for r in records} == {("someone", "normal")}
    assert open_labels(records[0]).read((0, 0), TILE_PX).sum() == 400
    assert {r.truth_kind for r in read_tiles(folder, truth="none")} == {"none"}


def test_images_alone_are_read_without_places_and_truth(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.jpg")
    (record,) = read_tiles(tmp_path)
    assert (record.truth_kind, record.x_l0, record.y_l0) == ("none", 0, 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("x_l0", "x", r"tiles\.csv: no column 'x_l0'; it has"),
        ("t2,170", "t9,170", r"only in the table \['t9'\], only in the folder \['t2'\]"),
        ("t2,170", "t1,170", r"only in the folder \['t2'\], rows 3"),
        ("t2,170", "t2,left", r"tiles\.csv: a place is no whole number"),
    ],
)
def test_table_that_does_not_fit_is_refused(folder, old, new, message):
    path = folder / "tiles.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_tiles(folder)


def test_image_without_its_truth_is_named(folder):
    (folder / "masks_instance" / "t2.png").unlink()
    with pytest.raises(ValueError, match=r"t2\.png is missing \(1 of 3 images"):
        read_tiles(folder)


def test_empty_folder_twins_and_unknown_truth_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="images: no images"):
        read_tiles(tmp_path)
    with pytest.raises(ValueError, match="truth 'masks' is not one of"):
        read_tiles(folder, truth="masks")
    Image.new("RGB", TILE_PX).save(folder / "images" / "t1.jpg")
    with pytest.raises(ValueError, match="differ only in their suffix"):
        read_tiles(folder)


def test_assembled_slide_holds_every_tile_in_its_place_and_white_between(folder, tmp_path):
    record = assemble_slide(folder, tmp_path / "a.ome.tiff", mpp=0.5, compression="deflate")
    assert (record.image_id, record.donor) == ("a", "slide_a")
    assert (record.x_l0, record.y_l0) == (100, 40)
    with open_slide(record.image_path) as slide, open_labels(record) as labels:
        assert slide.size_l0 == labels.size_l0 == (210, 650)
        assert slide.mpp == pytest.approx(0.5)
        whole = slide.at_downsample(1.0).read((0, 0), slide.size_l0)
        ids = labels.read((0, 0), slide.size_l0)
    covered = np.zeros(whole.shape[:2], bool)
    for name, (x, y) in PLACES.items():
        place = slice(y - 40, y - 40 + TILE_PX[1]), slice(x - 100, x - 100 + TILE_PX[0])
        np.testing.assert_array_equal(whole[place], pixels_of(folder, name))
        mask = np.asarray(Image.open(folder / "masks_instance" / f"{name}.png"))
        np.testing.assert_array_equal(ids[place], mask > 0)
        covered[place] = True
    assert (whole[~covered] == 255).all()
    assert (ids[~covered] == IGNORE_ID).all()


def test_slide_of_tiles_without_truth_has_none(folder, tmp_path):
    record = assemble_slide(folder, tmp_path / "a.ome.tiff", truth="none")
    assert record.truth_kind == "none"
    assert [p.name for p in tmp_path.glob("*.tiff")] == ["a.ome.tiff"]


def test_assembling_needs_the_places(folder, tmp_path):
    (folder / "tiles.csv").unlink()
    with pytest.raises(ValueError, match=r"no tiles\.csv"):
        assemble_slide(folder, tmp_path / "a.ome.tiff")


def test_broken_tile_leaves_nothing_behind(folder, tmp_path):
    path = folder / "images" / "t3.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"t3\.png"):
        assemble_slide(folder, tmp_path / "out" / "a.ome.tiff")
    left = [p.name for p in (tmp_path / "out").glob("*")] if (tmp_path / "out").exists() else []
    assert "a.ome.tiff" not in left
    assert not [name for name in left if "partial" in name]


@pytest.mark.real
@pytest.mark.slow
def test_real_tiles_give_the_slide_back(shared_data, tmp_path):
    folder = shared_data / "hubmap_pas_slide"
    record = assemble_slide(folder, tmp_path / "slide.ome.tiff")
    tile = next(r for r in read_tiles(folder) if r.image_id == "tile_061")
    with open_slide(record.image_path) as slide, open_labels(record) as labels:
        assert slide.size_l0 == labels.size_l0 == (11_200, 14_400)
        xy = tile.x_l0 - record.x_l0, tile.y_l0 - record.y_l0
        found = slide.at_downsample(1.0).read(xy, (1600, 1200)).astype(int)
        found_labels = labels.read(xy, (1600, 1200))
    assert np.abs(found - np.asarray(Image.open(tile.image_path)).astype(int)).mean() < 3
    np.testing.assert_array_equal(found_labels, open_labels(tile).read((0, 0), (1600, 1200)))
