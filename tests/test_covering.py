"""Covering: every pixel of an image counts once in a score, and none from outside."""

import numpy as np
import pytest
from patch_images import write_image
from PIL import Image

from renal_utils.covering import cover_images
from renal_utils.labels import IGNORE_ID
from renal_utils.loading import PatchDataset
from renal_utils.manifests import check_manifest
from renal_utils.patching import cut_patches


@pytest.fixture
def manifest(tmp_path):
    records = [
        write_image(tmp_path, "a", x_l0=800, y_l0=1200, split="val"),
        write_image(tmp_path, "b", split="test"),
    ]
    return cut_patches(records, patch_px=64, stride_px=48)


@pytest.mark.parametrize("side", [32, 96, 256, 384])
def test_every_pixel_is_held_exactly_once(manifest, side):
    covered = np.zeros((256, 320), int)
    cover = cover_images(manifest, patch_px=side)
    check_manifest(cover)
    for row in cover[cover["image_id"] == "a"].itertuples():
        assert row.x_px < 320 and row.y_px < 256
        covered[row.y_px : row.y_px + side, row.x_px : row.x_px + side] += 1
    assert (covered == 1).all()


def test_labels_counted_are_those_of_the_image(manifest):
    cover = cover_images(manifest[manifest["image_id"] == "a"], patch_px=96)
    targets = np.stack([sample["target"].numpy() for sample in _samples(cover)])
    labels = np.asarray(Image.open(cover["truth_path"].iloc[0]))
    found = np.bincount(targets[targets != IGNORE_ID])
    assert found.tolist() == np.bincount(labels[labels != IGNORE_ID].ravel()).tolist()


def test_rows_keep_image_split_scale_and_place(manifest):
    cover = cover_images(manifest, patch_px=128)
    row = cover[(cover["image_id"] == "a") & (cover["x_px"] == 128) & (cover["y_px"] == 0)].iloc[0]
    assert (row["split"], row["downsample"], row["patch_px"]) == ("val", 1.0, 128)
    assert (row["x_l0"], row["y_l0"]) == (800 + 128, 1200)
    assert cover["split"].value_counts().to_dict() == {"val": 6, "test": 6}


def test_the_place_does_not_depend_on_which_patches_are_left(manifest):
    some = manifest.iloc[[7, -1]]
    assert cover_images(some, patch_px=96).equals(cover_images(manifest, patch_px=96))


def test_an_image_of_two_splits_is_refused(manifest):
    mixed = manifest.assign(split=np.where(manifest["x_px"] > 100, "val", "train"))
    with pytest.raises(ValueError, match="'a' holds patches of 2 splits"):
        cover_images(mixed, patch_px=64)


def test_a_size_or_table_of_nothing_is_refused(manifest):
    with pytest.raises(ValueError, match="must be positive"):
        cover_images(manifest, patch_px=0)
    with pytest.raises(ValueError, match="patches given: 0"):
        cover_images(manifest.iloc[:0], patch_px=64)


def _samples(cover):
    dataset = PatchDataset(cover)
    return [dataset[index] for index in range(len(dataset))]
