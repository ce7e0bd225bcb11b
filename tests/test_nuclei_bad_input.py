"""Odd instance maps on their whole way: file, contour, target, separation, seams, scores."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from nuclei_scenes import draw_nuclei
from PIL import Image
from scipy.io import savemat

from renal_utils.instance_maps import contour_map, number_anew, pack_planes, unpack_planes
from renal_utils.instance_sources import read_instances
from renal_utils.instances import METHODS, separate_nuclei
from renal_utils.loading import PatchDataset
from renal_utils.metrics.instance import count_instances
from renal_utils.nuclei_maps import NucleiMaps, Separation
from renal_utils.patching import cut_patches
from renal_utils.records import ImageRecord
from renal_utils.seams import join_tiles

MANY = 270**2  # more than 65,535


def specks() -> np.ndarray:
    """One pixel a nucleus, every other row and column, numbered in the order of a scan."""
    ids = np.zeros((540, 540), np.int32)
    ids[::2, ::2] = np.arange(1, MANY + 1).reshape(270, 270)
    return ids


def record_of(folder: Path, ids: np.ndarray, *, suffix: str) -> ImageRecord:
    height, width = ids.shape
    Image.fromarray(np.full((height, width, 3), 180, np.uint8)).save(folder / "a.png")
    path, kind = folder / f"a_ids{suffix}", "instance_image"
    if suffix == ".mat":
        savemat(path, {"inst_map": ids.astype(float)})
        kind = "instance_mat"
    else:
        tifffile.imwrite(path, ids, tile=(64, 64))
    return ImageRecord("a", folder / "a.png", kind, path, label_set="nuclei", donor="a")


@pytest.mark.parametrize("suffix", [".mat", ".tif"])
def test_more_than_65535_nuclei_are_read_and_learned_from(tmp_path, suffix):
    record = record_of(tmp_path, specks(), suffix=suffix)
    read = read_instances(record)
    np.testing.assert_array_equal(read, specks())
    manifest = cut_patches([record], patch_px=256, stride_px=256)
    target = PatchDataset(manifest, contour_px=1, cache="memory")[0]["target"]
    np.testing.assert_array_equal(target[0], specks()[:256, :256] > 0)
    np.testing.assert_array_equal(target[1], target[0])  # a speck is nothing but outline


@pytest.mark.parametrize("method", ["algorithm_1", "six_passes", "subtract"])
def test_more_than_65535_nuclei_are_separated_and_scored(method):
    options = {"dilate_px": 0} if method == "subtract" else {}
    found = separate_nuclei(specks() > 0, method=method, **options)
    np.testing.assert_array_equal(found, specks())
    counts = count_instances(specks(), found)
    assert (counts.tp, counts.fp, counts.fn) == (MANY, 0, 0)


def test_more_than_65535_nuclei_are_joined_over_seams():
    ids, out = specks(), np.empty((540, 540), np.int32)
    halves = [((x, 0), number_anew(ids[:, x : x + 270])[0]) for x in (0, 270)]
    assert join_tiles(halves, out) == MANY == len(np.unique(out)) - 1


def test_a_map_without_background_has_contours_targets_and_scores():
    ids = np.ones((96, 96), np.int32)
    ids[:, 48:] = 2
    mask, contour = unpack_planes(pack_planes(ids, thickness_px=2))
    assert mask.all()
    assert contour.nonzero()[1].tolist() == [47, 48] * 96
    maps = NucleiMaps(mask.astype(np.float32), contour.astype(np.float32))
    assert count_instances(ids, Separation()(maps)).tp == 2


def test_an_image_without_nuclei_has_empty_targets_and_nothing_is_found(tmp_path):
    record = record_of(tmp_path, np.zeros((128, 128), np.int32), suffix=".mat")
    manifest = cut_patches([record], patch_px=64, stride_px=64)
    assert not PatchDataset(manifest, contour_px=3, cache="memory")[0]["target"].any()
    nothing = np.zeros((32, 32), np.float32)
    for method in METHODS:
        assert Separation(method)(NucleiMaps(nothing, nothing)).max() == 0


def test_gaps_between_ids_change_no_contour():
    ids = draw_nuclei(80, 20, radii=(5, 9))
    gaps = ids * np.int32(70_001)
    np.testing.assert_array_equal(contour_map(gaps), contour_map(ids))
    np.testing.assert_array_equal(pack_planes(gaps), pack_planes(ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full((70, 70), 1.5, np.float32), "a_ids.tif"),
        (np.full((70, 70), -3, np.int32), "a_ids.tif: holds the negative id -3"),
        (np.ones((64, 70), np.int32), "a_ids.tif is 70 x 64, but its image .* is 70 x 70"),
    ],
)
def test_training_names_the_file_of_a_truth_that_it_cannot_use(tmp_path, ids, message):
    record = record_of(tmp_path, np.ones((70, 70), np.int32), suffix=".tif")
    manifest = cut_patches([record], patch_px=64, stride_px=64)
    tifffile.imwrite(record.truth_path, ids, tile=(64, 64))
    with pytest.raises(ValueError, match=message):
        PatchDataset(manifest, contour_px=3, cache="memory")
