"""The door to annotations: one mask stored in every way is one truth."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from renal_utils import annotations
from renal_utils.annotations import (
    PolygonObject,
    encode_rle,
    mask_to_polygons,
    open_labels,
    write_geojson,
)
from renal_utils.labels import IGNORE_ID
from renal_utils.records import ImageRecord
from renal_utils.slides import write_pyramid

SIZE_PX = (187, 141)
KINDS = ("rle", "polygons", "labels_png", "labels_tiff", "instances_png", "instances_tiff")
KINDS += ("threshold_png", "threshold_tiff", "threshold_rgb")


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    noise = np.random.default_rng(3).normal(size=(SIZE_PX[1], SIZE_PX[0]))
    smooth = ndimage.gaussian_filter(noise, 6)
    return smooth > np.quantile(smooth, 0.7)


@pytest.fixture(scope="module")
def stored(mask: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageRecord]:
    """Store the mask in every way there is."""
    folder = tmp_path_factory.mktemp("truths")
    Image.fromarray(np.full((*mask.shape, 3), 200, np.uint8)).save(folder / "image.png")
    instances = ndimage.label(mask)[0].astype(np.uint16) + 300 * mask.astype(np.uint16)
    ids, bright = mask.astype(np.uint8), mask.astype(np.uint8) * 255
    (folder / "train.csv").write_text(f"id,encoding\nother,\nimage,{encode_rle(mask)}\n")
    outlines = [PolygonObject("glomerulus", p) for p in mask_to_polygons(mask)]
    write_geojson(folder / "image.geojson.gz", outlines)
    for name, pixels in (("labels", ids), ("instances", instances), ("threshold", bright)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
        write_pyramid(folder / f"{name}.tiff", pixels, size_px=SIZE_PX, kind="labels", tile_px=64)
    Image.fromarray(np.stack([bright] * 3, axis=2)).save(folder / "rgb.png")
    files = {
        "rle": ("rle_csv", "train.csv"),
        "polygons": ("polygons", "image.geojson.gz"),
        "labels_png": ("label_image", "labels.png"),
        "labels_tiff": ("label_image", "labels.tiff"),
        "instances_png": ("instance_image", "instances.png"),
        "instances_tiff": ("instance_image", "instances.tiff"),
        "threshold_png": ("threshold_image", "threshold.png"),
        "threshold_tiff": ("threshold_image", "threshold.tiff"),
        "threshold_rgb": ("threshold_image", "rgb.png"),
    }
    return {
        name: ImageRecord("image", folder / "image.png", truth_kind=kind, truth_path=folder / file)
        for name, (kind, file) in files.items()
    }


def expected_window(mask, xy_px, size_px, downsample) -> np.ndarray:
    """Take, pixel by pixel, the class of the full-resolution pixel under each centre."""
    labels = np.full(size_px[::-1], IGNORE_ID, np.uint8)
    for row in range(size_px[1]):
        for column in range(size_px[0]):
            x = int(np.floor((xy_px[0] + column + 0.5) * downsample))
            y = int(np.floor((xy_px[1] + row + 0.5) * downsample))
            if 0 <= x < mask.shape[1] and 0 <= y < mask.shape[0]:
                labels[row, column] = mask[y, x]
    return labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("xy_px", "size_px", "downsample"),
    [
        ((0, 0), SIZE_PX, 1),
        ((33, 21), (50, 40), 1.0),
        ((-7, -5), (30, 25), 2.0),
        ((30, 20), (25, 19), 3.7),
        ((40, 40), (60, 30), 0.5),
        ((500, 0), (4, 4), 1.0),
    ],
)
def test_every_kind_of_truth_gives_the_same_labels(stored, mask, kind, xy_px, size_px, downsample):
    with open_labels(stored[kind]) as source:
        labels = source.read(xy_px, size_px, downsample)
    expected = expected_window(mask, xy_px, size_px, downsample)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_works_in_another_process(stored, kind):
    with open_labels(stored[kind]) as source:
        copy = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(
            copy.read((0, 0), (90, 70), 2), source.read((0, 0), (90, 70), 2)
        )
        copy.close()


def test_without_truth_everything_is_unlabelled(stored):
    image_path = stored["rle"].image_path
    with open_labels(ImageRecord("image", image_path)) as source:
        assert (source.read((0, 0), (9, 8)) == IGNORE_ID).all()


def test_the_door_leads_to_every_name_it_promises():
    missing = [name for name in annotations.__all__ if not hasattr(annotations, name)]
    assert not missing


def test_windows_of_a_huge_slide_need_little_memory(tmp_path: Path):
    """A 50,000 x 50,000 mask would take 2.5 GB; a record of it opens and reads in megabytes."""
    import tracemalloc

    from renal_utils.label_samplers import RunSampler, SampleGrid
    from renal_utils.rle import parse_rle

    side = 50_000
    starts = (np.arange(0, side, 7) * side + 1000).tolist()
    text = " ".join(f"{start} 40000" for start in starts)
    tracemalloc.start()
    sampler = RunSampler(parse_rle(text, (side, side)), 1)
    near = sampler.sample(SampleGrid((20_000, 20_000), (512, 512), 1.0))
    far = sampler.sample(SampleGrid((0, 0), (781, 781), 64.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert near.any(axis=0).sum() == pytest.approx(512 / 7, abs=1)
    assert 0.05 < far.mean() < 0.2
    assert peak < 30e6
