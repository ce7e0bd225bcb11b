"""The mouse kidney reader: images larger than their labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from renal_utils.datasets.mouse_kidney import read_mouse_kidney
from renal_utils.label_sources import open_labels
from renal_utils.labels import IGNORE_ID

SIZE, RIM = 40, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    for name in ("Alport", "Healthy"):
        pixels = rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        ids = rng.integers(0, 8, (SIZE - 2 * RIM,) * 2).astype(np.uint8)
        Image.fromarray(ids).save(tmp_path / f"{name}-labels.png")
    return tmp_path


def test_each_image_is_an_animal_and_a_group(folder):
    records = read_mouse_kidney(folder, mpp=0.5)
    assert [r.donor for r in records] == [r.group for r in records] == ["Alport", "Healthy"]
    assert {(r.label_set, r.mpp) for r in records} == {("mouse_kidney", 0.5)}


def test_labels_lie_in_the_centre_and_the_rim_is_unlabelled(folder):
    for record in read_mouse_kidney(folder):
        ids = open_labels(record).read((0, 0), (SIZE, SIZE))
        stored = np.asarray(Image.open(record.truth_path))
        np.testing.assert_array_equal(ids[RIM:-RIM, RIM:-RIM], stored)
        assert (ids == IGNORE_ID).sum() == SIZE**2 - stored.size


@pytest.mark.parametrize("side", [SIZE - 5, SIZE + 2])
def test_labels_that_cannot_lie_in_the_centre_are_refused(folder, side):
    path = folder / "Healthy-labels.png"
    Image.fromarray(np.zeros((side, side), np.uint8)).save(path)
    with pytest.raises(ValueError, match="does not lie in the centre"):
        open_labels(read_mouse_kidney(folder)[1])


def test_missing_labels_and_an_empty_folder_are_refused(folder, tmp_path):
    (folder / "Alport-labels.png").unlink()
    with pytest.raises(ValueError, match=r"Alport-labels\.png is missing"):
        read_mouse_kidney(folder)
    with pytest.raises(ValueError, match=r"no NAME\.png"):
        read_mouse_kidney(tmp_path / "other")


@pytest.mark.real
def test_the_real_images_and_labels_fit(shared_data):
    records = read_mouse_kidney(shared_data / "mouse_kidney_classes")
    assert len(records) == 6
    for record in records:
        with open_labels(record) as source:
            assert set(np.unique(source.read((0, 0), (640, 640)))) <= {*range(8), IGNORE_ID}
