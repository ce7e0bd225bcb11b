import numpy as np
import pytest

from renal_utils.labels import IGNORE_ID
from renal_utils.overview import read_overview
from renal_utils.records import ImageRecord
from renal_utils.slides import open_slide, write_pyramid


@pytest.fixture
def record(tmp_path):
    """A grey slide of 300 x 200 with one bright square, and its mask."""
    pixels, mask = np.full((200, 300, 3), 90, np.uint8), np.zeros((200, 300), np.uint8)
    pixels[40:120, 100:220], mask[40:120, 100:220] = 200, 1
    for name, values, kind in (("image", pixels, "image"), ("mask", mask, "labels")):
        path = tmp_path / f"{name}.tiff"
        write_pyramid(
            path, values, size_px=(300, 200), mpp=0.5, tile_px=64, compression="none", kind=kind
        )
    return ImageRecord("one", tmp_path / "image.tiff", "label_image", tmp_path / "mask.tiff")


def test_image_and_truth_lie_on_each_other_at_the_size_asked_for(record):
    found = read_overview(record, max_px=75)
    assert found.image.shape == (50, 75, 3) and found.labels.shape == (50, 75)
    assert found.downsample == 4 and found.mpp == pytest.approx(2.0)
    np.testing.assert_array_equal(found.labels == 1, found.image[..., 0] > 150)
    assert found.labels[10:30, 25:55].all()


def test_a_small_image_comes_as_it_is(record):
    found = read_overview(record)
    with open_slide(record.image_path) as slide:
        np.testing.assert_array_equal(found.image, slide.at_downsample(1).read((0, 0), (300, 200)))
    assert found.downsample == 1 and found.mpp == pytest.approx(0.5)


def test_the_records_scale_goes_before_the_files_and_truth_may_be_absent(record):
    bare = ImageRecord("one", record.image_path, mpp=0.25)
    found = read_overview(bare, max_px=150)
    assert found.mpp == pytest.approx(0.5)
    assert (found.labels == IGNORE_ID).all()


def test_an_overview_of_no_pixels_is_refused(record):
    with pytest.raises(ValueError, match="max_px must be at least 1, not 0"):
        read_overview(record, max_px=0)
