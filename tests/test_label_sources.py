"""Opening a record's truth: what does not fit is refused, naming the files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapely import box

from renal_utils.label_sources import check_truths, open_labels
from renal_utils.labels import FOUR_TISSUES, IGNORE_ID
from renal_utils.polygon_files import write_geojson
from renal_utils.polygons import PolygonObject
from renal_utils.records import ImageRecord
from renal_utils.slides import write_pyramid


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((30, 40, 3), 128, np.uint8)).save(path)
    return path


def record(image: Path, kind: str, truth: Path, label_set: str = "glomeruli") -> ImageRecord:
    return ImageRecord("a", image, truth_kind=kind, truth_path=truth, label_set=label_set)


def save(path: Path, pixels: np.ndarray) -> Path:
    if path.suffix == ".tiff":
        size = pixels.shape[1], pixels.shape[0]
        write_pyramid(path, pixels, size_px=size, kind="labels", tile_px=16)
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("kind", ["label_image", "instance_image", "threshold_image"])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_mask_of_another_size_is_refused_with_both_files_and_sizes(image, kind, suffix):
    truth = save(image.with_name(f"m{suffix}"), np.zeros((40, 30), np.uint8))
    with pytest.raises(ValueError, match=rf"m\{suffix} is 30 x 40, .*a\.png is 40 x 30"):
        open_labels(record(image, kind, truth))


def test_runs_beyond_the_image_are_refused_with_file_and_image(image):
    truth = image.with_name("train.csv")
    truth.write_text("id,encoding\na,1199 5\n")
    with pytest.raises(
        ValueError, match=r"train\.csv, image 'a': run 1 ends at pixel 1203, .* 1200"
    ):
        open_labels(record(image, "rle_csv", truth))


def test_image_that_the_table_lacks_is_named(image):
    truth = image.with_name("train.csv")
    truth.write_text("id,encoding\nb,1 5\n")
    with pytest.raises(ValueError, match=r"train\.csv: no row with id 'a'"):
        open_labels(record(image, "rle_csv", truth))


def test_missing_truth_file_is_named(image):
    with pytest.raises(ValueError, match=r"a: there is no truth file .*gone\.png"):
        open_labels(record(image, "label_image", image.with_name("gone.png")))


def test_truncated_mask_is_refused(image):
    pixels = np.random.default_rng(0).integers(0, 2, (30, 40)).astype(np.uint8)
    truth = save(image.with_name("m.png"), pixels)
    truth.write_bytes(truth.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"m\.png: cannot be read"):
        open_labels(record(image, "label_image", truth))


def test_colour_image_as_ids_is_refused(image):
    truth = save(image.with_name("m.png"), np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(ValueError, match=r"m\.png is a colour image"):
        open_labels(record(image, "label_image", truth))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_ids_that_the_label_set_lacks_are_refused(image, suffix):
    pixels = np.zeros((30, 40), np.uint8)
    pixels[3, 4], pixels[5, 5], pixels[6, 6] = 1, 7, IGNORE_ID
    truth = save(image.with_name(f"m{suffix}"), pixels)
    with (
        pytest.raises(ValueError, match=rf"m\{suffix} holds values \[7\]"),
        open_labels(record(image, "label_image", truth)) as source,
    ):
        source.read((0, 0), (40, 30))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_class_ids_given_as_a_mask_to_threshold_are_refused(image, suffix):
    pixels = np.zeros((30, 40), np.uint8)
    pixels[4:20, 4:20] = 1
    truth = save(image.with_name(f"m{suffix}"), pixels)
    with pytest.raises(ValueError, match=rf"m\{suffix}: its brightest value is 1"):
        open_labels(record(image, "threshold_image", truth))


def test_smeared_jpeg_mask_is_thresholded(image):
    pixels = np.zeros((30, 40), np.uint8)
    pixels[7:23, 9:31] = 255
    Image.fromarray(pixels).save(image.with_name("m.jpg"), quality=60)
    assert len(np.unique(np.asarray(Image.open(image.with_name("m.jpg"))))) > 2
    with open_labels(record(image, "threshold_image", image.with_name("m.jpg"))) as source:
        labels = source.read((0, 0), (40, 30))
    np.testing.assert_array_equal(labels, pixels // 255)


@pytest.mark.parametrize("kind", ["instance_image", "threshold_image", "rle_csv"])
def test_truth_that_does_not_name_classes_needs_a_set_of_one_class(image, kind):
    truth = save(image.with_name("m.png"), np.zeros((30, 40), np.uint8))
    if kind == "rle_csv":
        truth = image.with_name("m.csv")
        truth.write_text("id,encoding\na,\n")
    with pytest.raises(ValueError, match="does not say which class"):
        open_labels(record(image, kind, truth, "kidney_tissues"))


def test_outlines_of_another_image_are_refused(image):
    truth = image.with_name("a.geojson")
    write_geojson(truth, [PolygonObject("glomerulus", box(x, 3, x + 5, 9)) for x in (2, 80)])
    with pytest.raises(ValueError, match=r"a\.geojson, object 2: it spans .* of 40 x 30"):
        open_labels(record(image, "polygons", truth))


def test_outlines_of_an_unknown_class_are_refused(image):
    truth = image.with_name("a.geojson")
    write_geojson(truth, [PolygonObject("Cortex", box(1, 1, 9, 9))])
    with pytest.raises(ValueError, match=r"a\.geojson: label 'Cortex' is no class"):
        open_labels(record(image, "polygons", truth))


def test_outlines_of_a_set_without_background_leave_the_rest_unlabelled(image):
    truth = image.with_name("a.geojson")
    write_geojson(truth, [PolygonObject("vessel", box(1, 1, 9, 9))])
    labels = open_labels(record(image, "polygons", truth, "four_tissues")).read((0, 0), (40, 30))
    assert (labels == FOUR_TISSUES.id_of("vessel")).sum() == 64
    assert (labels == IGNORE_ID).sum() == 1200 - 64


def test_aperio_xml_is_read_as_outlines(image):
    corners = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((1, 1), (9, 1), (9, 9), (1, 9)))
    truth = image.with_name("a.xml")
    truth.write_text(f"<A><Regions><Region><Vertices>{corners}</Vertices></Region></Regions></A>")
    labels = open_labels(record(image, "polygons", truth, "nuclei")).read((0, 0), (40, 30))
    assert labels.sum() == 64


def test_check_lists_every_truth_that_does_not_fit(image):
    good = save(image.with_name("good.png"), np.zeros((30, 40), np.uint8))
    save(image.with_name("small.png"), np.zeros((20, 40), np.uint8))
    fine = [record(image, "label_image", good)] * 2
    assert check_truths(fine) == 2
    broken = [record(image, "label_image", image.with_name(n)) for n in ("small.png", "gone.png")]
    with pytest.raises(ValueError, match=r"2 of 4 images(.|\n)*small\.png(.|\n)*gone\.png"):
        check_truths(fine + broken)
