"""The map that stitching makes: what lies where, of which class, at which scale."""

import csv

import numpy as np
import pytest
import torch
from scipy import ndimage
from stitching_cases import (
    content,
    identity,
    make_slide,
    plan_of,
    stitch,
    whole,
)

from renal_utils.augment import to_tensor
from renal_utils.labels import FOUR_TISSUES, GLOMERULI, KIDNEY_TISSUES
from renal_utils.slides import open_slide, write_pyramid
from renal_utils.views import average_views


@pytest.mark.parametrize(
    ("size", "patch", "stride", "downsample", "window"),
    [
        ((200, 150), 64, 32, 1.0, "hann"),
        ((193, 131), 64, 40, 1.0, "gaussian"),
        ((128, 128), 64, 64, 1.0, "uniform"),
        ((129, 65), 64, 17, 1.0, "hann"),
        ((40, 30), 64, 32, 1.0, "hann"),
        ((30, 170), 64, 48, 1.0, "hann"),
        ((300, 211), 48, 31, 1.7, "hann"),
        ((300, 211), 48, 31, 3.0, "gaussian"),
    ],
)
def test_an_identity_network_gives_back_the_slide(
    tmp_path, size, patch, stride, downsample, window
):
    path = make_slide(tmp_path, size)
    plan = plan_of(patch_px=patch, stride_px=stride, downsample=downsample, window=window)
    result = stitch(path, tmp_path / "out", plan=plan)
    expected = whole(path, downsample)
    with open_slide(result.probability_path) as found, open_slide(result.labels_path) as labels:
        assert found.size_l0 == expected.shape[::-1]
        assert found.mpp == pytest.approx(0.5 * downsample)
        stored = found.at_downsample(1).read_channels((0, 0), found.size_l0)[..., 0]
        ids = labels.at_downsample(1).read_labels((0, 0), labels.size_l0)
    assert np.array_equal(stored, expected)
    assert np.array_equal(ids, expected > 127.5)


@pytest.mark.parametrize("window", ["hann", "gaussian", "uniform"])
@pytest.mark.parametrize("value", [1, 77, 254])
def test_a_constant_stays_exactly_constant(tmp_path, window, value):
    path = make_slide(tmp_path, (150, 140))

    def constant(images):
        return torch.full((len(images), 1, 64, 64), value / 255)

    plan = plan_of(stride_px=19, window=window)
    result = stitch(path, tmp_path / "out", constant, plan=plan)
    assert (whole(result.probability_path) == value).all()


def test_batch_size_and_resolution_of_reading_do_not_matter(tmp_path):
    path = make_slide(tmp_path, (210, 190))
    labels = []
    for batch_size in (1, 7, 1000):
        result = stitch(path, tmp_path / f"out_{batch_size}", plan=plan_of(batch_size=batch_size))
        labels.append(content(result.folder)[0])
    assert labels[0] == labels[1] == labels[2]


def test_the_most_probable_class_wins_and_its_probability_is_stored(tmp_path):
    path = make_slide(tmp_path, (130, 100))

    def network(images):
        red = identity(images)
        return torch.cat([red, 1 - red, red * 0, red * 0], 1)

    result = stitch(path, tmp_path / "out", network, label_set=FOUR_TISSUES)
    red = whole(path)
    with open_slide(result.labels_path) as labels:
        ids = labels.at_downsample(1).read_labels((0, 0), labels.size_l0)
    assert np.array_equal(ids == 0, red > 127.5)
    assert set(np.unique(ids)) == {0, 1}
    assert np.array_equal(whole(result.probability_path), np.maximum(red, 255 - red))


@pytest.mark.parametrize(
    ("label_set", "fill"), [(GLOMERULI, 0), (KIDNEY_TISSUES, 0), (FOUR_TISSUES, 255)]
)
def test_background_is_skipped_and_nothing_of_the_tissue_is(tmp_path, label_set, fill):
    path = make_slide(tmp_path, (640, 700), background=True)
    channels = label_set.num_outputs

    def sure(images):
        return torch.nn.functional.one_hot(
            torch.full((len(images), 64, 64), channels - 1), channels
        ).movedim(-1, 1)

    plan = plan_of(skip_background=True)
    result = stitch(path, tmp_path / "out", sure, label_set=label_set, plan=plan)
    tissue = whole(path, channel=1) != 250
    with open_slide(result.labels_path) as labels:
        ids = labels.at_downsample(1).read_labels((0, 0), labels.size_l0)
    found = label_set.num_outputs == 1 or label_set.num_outputs - 1
    assert (ids[tissue] == found).all()
    assert (ids == fill).mean() > 0.2
    assert result.summary["windows"]["skipped"] > 20
    assert (whole(result.probability_path)[ids == fill] == 0).all()


def test_a_slide_without_tissue_gives_whole_and_empty_results(tmp_path):
    path = tmp_path / "glass.ome.tiff"
    write_pyramid(path, np.full((300, 200, 3), 250, np.uint8), size_px=(200, 300), tile_px=64)
    result = stitch(path, tmp_path / "out", plan=plan_of(skip_background=True))
    assert result.summary["windows"]["seen"] == 0
    assert result.counts == {"glomerulus": 0}
    assert (whole(result.labels_path) == 0).all()


def test_a_stated_mpp_is_used_whatever_the_levels(tmp_path):
    path = make_slide(tmp_path, (300, 280), mpp=0.4)
    result = stitch(path, tmp_path / "out", plan=plan_of(downsample=None, mpp=1.0))
    assert np.array_equal(whole(result.probability_path), whole(path, 2.5))
    assert result.summary["mpp"] == pytest.approx(1.0)


def test_the_spread_of_views_becomes_a_map_and_a_column(tmp_path):
    """A network that leans to the left is unsure where left and right differ."""
    path = make_slide(tmp_path, (200, 150))

    def left_leaning(images):
        return (identity(images) + torch.linspace(0.1, -0.1, 64)).clamp(0, 1)

    plan = plan_of(batch_size=3)
    predict = average_views(left_leaning, flips=4, spread=True)
    result = stitch(path, tmp_path / "out", predict, plan=plan)
    assert result.uncertainty_path.exists()
    spread = whole(result.uncertainty_path)
    with open_slide(path) as slide:
        window = torch.from_numpy(slide.at_downsample(1).read((0, 0), (64, 64)))
    alone = predict(to_tensor(window.numpy())[None])[0, 1].numpy() * 255
    # no other window sees the corner of 32 pixels (the stride), so nothing is blended there
    assert np.abs(spread[:32, :32] - alone[:32, :32]).max() <= 0.51
    assert 5 < spread.mean() < 30
    with result.csv_path.open() as file:
        rows = list(csv.DictReader(file))
    ids, count = ndimage.label(whole(result.labels_path), np.ones((3, 3)))
    means = ndimage.mean(spread / 255, ids, range(1, count + 1))
    found = sorted(float(row["mean_spread"]) for row in rows)
    assert found == pytest.approx(sorted(means), abs=1e-4)
    plain = stitch(path, tmp_path / "plain", average_views(left_leaning, flips=4), plan=plan)
    assert np.array_equal(whole(plain.probability_path), whole(result.probability_path))
    assert not plain.uncertainty_path.exists()


def test_tissue_is_kept_with_its_scale_and_area(tmp_path):
    path = make_slide(tmp_path, (640, 704), background=True)
    result = stitch(path, tmp_path / "out")
    mask = whole(result.folder / "tissue.png") > 0
    tissue = result.summary["tissue"]
    assert mask.shape == (44, 40)
    assert (tissue["downsample"], tissue["pixels"]) == (16.0, mask.sum())
    assert tissue["area_um2"] == mask.sum() * 64
    true = (whole(path, channel=1) != 250).sum() * 0.25
    assert tissue["area_um2"] == pytest.approx(true, rel=0.15)
