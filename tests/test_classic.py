"""Segmentation without a segmentation network: filters, forests, heat maps, cleaning."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from skimage.draw import disk

from renal_utils.classic import (
    WindowNet,
    band_response,
    build_window_net,
    butterworth_bandpass,
    clean_mask,
    filter_band,
    grow_forest,
    heat_map,
    label_windows,
    make_classifier,
    pixel_features,
    pixel_probability,
    sample_pixels,
    split_touching,
    train_window_net,
)
from renal_utils.labels import IGNORE_ID
from renal_utils.models.blocks import count_parameters

BAND = {"low_pass": 100, "high_pass": 10}


def discs(size: int, *centres_radii: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    for row, column, radius in centres_radii:
        mask[disk((row, column), radius, shape=mask.shape)] = True
    return mask


# Band-pass


@pytest.mark.parametrize(
    ("distance", "passes"), [(0, 0), (10, 0.495050), (100, 0.495050), (1000**0.5, 0.826446)]
)
def test_transfer_function_has_the_values_of_the_formula(distance, passes):
    found = butterworth_bandpass(np.array([float(distance)]), **BAND)
    assert found == pytest.approx([passes], abs=1e-6)


def test_transfer_function_peaks_between_its_cutoffs_and_sharpens_with_its_order():
    distance = np.geomspace(0.1, 10_000, 2001)
    first, third = (butterworth_bandpass(distance, order=n, **BAND) for n in (1, 3))
    assert distance[first.argmax()] == pytest.approx(1000**0.5, rel=0.01)
    assert first.max() == pytest.approx((100 / 110) ** 2, abs=1e-4)
    outside = (distance < 5) | (distance > 200)
    assert third[outside].max() < first[outside].max() and third.max() > first.max()


@pytest.mark.parametrize(("band", "order"), [((10, 100), 1), ((100, 0), 1), ((100, 10), 0)])
def test_an_empty_band_and_an_order_of_zero_are_refused(band, order):
    with pytest.raises(ValueError, match=r"band from|order of 1"):
        butterworth_bandpass(np.ones(1), low_pass=band[0], high_pass=band[1], order=order)


def test_a_wave_passes_by_the_share_that_its_frequency_has():
    # a period of 40 px is 80 um, of which half a wave describes objects of 40 um
    wave = np.tile(np.cos(2 * np.pi * np.arange(400) / 40), (400, 1)).astype(np.float32)
    passed = filter_band(wave, mpp=2, smallest_um=20, largest_um=80)[100:300, 100:300]
    expected = butterworth_bandpass(np.array([1 / 80]), low_pass=1 / 40, high_pass=1 / 160)
    assert passed.max() == pytest.approx(expected[0], abs=0.02)
    assert filter_band(np.ones_like(wave), mpp=2, smallest_um=20, largest_um=80) == pytest.approx(
        0, abs=1e-4
    )


def test_filtering_depends_on_microns_and_not_on_pixels():
    fine = ndimage.gaussian_filter(np.random.default_rng(0).random((256, 256)), 8)
    coarse = fine.reshape(128, 2, 128, 2).mean(axis=(1, 3))
    band = {"smallest_um": 40, "largest_um": 80}
    a = filter_band(fine, mpp=1, **band).reshape(128, 2, 128, 2).mean(axis=(1, 3))
    b = filter_band(coarse, mpp=2, **band)
    assert np.corrcoef(a[16:-16, 16:-16].ravel(), b[16:-16, 16:-16].ravel())[0, 1] > 0.999


def test_response_is_strongest_in_discs_of_the_size_asked_for_and_nil_on_glass():
    small, large = discs(256, (64, 64, 4)), discs(256, (180, 180, 25))
    tissue = np.ones((256, 256), bool)
    tissue[:, 230:] = False
    response = band_response(
        (small | large).astype(np.float32), tissue, mpp=4, smallest_um=120, largest_um=240
    )
    assert response[180, 180] > 2 * response[64, 64]
    assert (response[~tissue] == 0).all()
    assert (response[tissue].mean(), response[tissue].std()) == pytest.approx((0, 1), abs=1e-4)
    assert band_response(
        np.ones((64, 64), np.float32), np.ones((64, 64), bool), mpp=4, smallest_um=9, largest_um=99
    ) == pytest.approx(0, abs=1e-3)


def test_band_refuses_no_tissue_and_sizes_in_the_wrong_order():
    image = np.zeros((8, 8), np.float32)
    with pytest.raises(ValueError, match="no tissue"):
        band_response(image, np.zeros((8, 8), bool), mpp=1, smallest_um=1, largest_um=2)
    with pytest.raises(ValueError, match="0 < smallest < largest"):
        filter_band(image, mpp=1, smallest_um=3, largest_um=2)


# Cleaning


def test_cleaning_fills_holes_and_drops_specks_and_threads():
    whole = discs(128, (64, 64, 20))
    spoilt = whole.copy()
    spoilt[60:66, 60:66] = False
    spoilt[10:13, 10:13] = True
    spoilt[64, 84:] = True
    cleaned = clean_mask(spoilt, mpp=1, smallest_um=24)
    assert cleaned[64, 64] and not cleaned[11, 11] and not cleaned[64, 100]
    assert (cleaned ^ whole).sum() < 0.02 * whole.sum()
    assert not clean_mask(whole, mpp=1, smallest_um=45).any()
    with pytest.raises(ValueError, match="diameter"):
        clean_mask(whole, mpp=1, smallest_um=0)


@pytest.mark.parametrize("distance", [26, 30, 34])
def test_discs_that_touch_are_parted_midway(distance):
    mask = discs(128, (64, 40, 18), (64, 40 + distance, 18))
    ids = split_touching(mask, mpp=2, smallest_um=48)
    assert ids.max() == ndimage.label(ids > 0, np.ones((3, 3)))[1] == 2
    assert ids[64, 40] != ids[64, 40 + distance]
    assert (ids == 0)[64, 40 + distance // 2 - 2 : 40 + distance // 2 + 3].any()
    assert (mask & (ids == 0)).sum() < 40 and not ids[~mask].any()


def test_one_disc_stays_whole_also_at_the_border_and_nothing_stays_nothing():
    ids = split_touching(discs(96, (5, 48, 20)), mpp=1, smallest_um=24)
    assert ids.max() == 1
    assert split_touching(np.zeros((20, 20), bool), mpp=1, smallest_um=5).max() == 0


# Forest


def crosswise(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that no single feature tells apart, among features that say nothing."""
    values = np.random.default_rng(seed).random((number, 6)).astype(np.float32)
    return values, ((values[:, 1] > 0.5) ^ (values[:, 4] > 0.5)).astype(np.int64)


def test_forest_learns_what_needs_two_questions_and_says_which_features_matter():
    forest = grow_forest(*crosswise(2000, 0), trees=20, depth=8, seed=0)
    values, classes = crosswise(1000, 1)
    assert (forest.predict(values) == classes).mean() > 0.95
    assert set(np.argsort(forest.feature_importances_)[-2:]) == {1, 4}


def test_forest_keeps_to_its_number_of_trees_its_depth_and_its_leaves():
    forest = grow_forest(*crosswise(300, 0), trees=7, depth=3, min_rows=40)
    assert len(forest.estimators_) == 7
    for tree in forest.estimators_:
        leaves = tree.tree_.children_left == -1
        assert tree.get_depth() <= 3
        assert tree.tree_.n_node_samples[leaves].min() >= 40


def test_forest_repeats_by_its_seed():
    values, classes = crosswise(300, 0)
    one, again, other = (
        grow_forest(values, classes, trees=5, depth=5, seed=seed).predict_proba(values)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": np.zeros(20, np.int64)}, "two or more"),
        ({"classes": np.arange(19) % 2}, "20 rows, but 19 classes"),
        ({"values": np.full((20, 2), np.nan)}, "NaN"),
        ({"depth": 0}, "max_depth"),
        ({"trees": 0}, "n_estimators"),
    ],
)
def test_forest_refuses_what_it_cannot_learn_from(change, message):
    given = {"values": np.random.default_rng(0).random((20, 2)), "classes": np.arange(20) % 2}
    with pytest.raises(ValueError, match=message):
        grow_forest(**(given | change))


# Pixels


def test_pixels_of_two_textures_are_told_apart():
    rng = np.random.default_rng(0)
    rgb = np.full((64, 64, 3), 128, np.uint8)
    rgb[:, 32:] = rng.integers(0, 256, (64, 32, 3))  # same mean colour, rough
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    everywhere = np.ones((64, 64), bool)
    features = pixel_features(rgb, mpp=2, smallest_um=2, largest_um=8)
    assert features.shape == (64, 64, 3 * 3 * 4)  # channels, scales 1 2 4 px, four kinds
    values, classes = sample_pixels(features, labels, everywhere, per_class=100)
    forest = grow_forest(values, classes, trees=10, depth=4)
    probability = pixel_probability(forest, features, everywhere)
    assert ((probability > 0.5) == labels).mean() > 0.95
    assert not pixel_probability(forest, features, ~everywhere).any()


def test_probabilities_belong_to_class_ids_also_where_a_class_is_missing():
    features = np.repeat(np.float32([0, 1]), 18).reshape(6, 6, 1)
    classes = np.repeat([0, 3], 18)
    forest = grow_forest(features.reshape(-1, 1), classes, trees=3, depth=1)
    where = np.ones((6, 6), bool)
    where[:, 0] = False
    found = pixel_probability(forest, features, where, class_id=3)
    assert np.array_equal(found > 0.5, (features[..., 0] == 1) & where)
    zero = pixel_probability(forest, features, where, class_id=0)
    assert (found + zero)[where] == pytest.approx(1) and not zero[:, 0].any()
    with pytest.raises(ValueError, match=r"classes \[0, 3\], not 1"):
        pixel_probability(forest, features, where)
    with pytest.raises(ValueError, match="features"):
        pixel_probability(forest, np.zeros((6, 6, 2), np.float32), where, class_id=3)


def test_equally_many_pixels_of_each_class_are_drawn_within_the_tissue():
    labels = np.zeros((40, 40), np.uint8)
    labels[:3] = 1
    labels[20:] = IGNORE_ID
    where = np.ones((40, 40), bool)
    where[:, :10] = False
    places = np.stack(np.meshgrid(np.arange(40), np.arange(40), indexing="ij"), axis=-1)
    drawn, classes = sample_pixels(places.astype(np.float32), labels, where, per_class=50)
    assert np.bincount(classes).tolist() == [50, 50]
    assert (drawn[:, 1] >= 10).all() and (drawn[:, 0] < 20).all()
    assert ((drawn[:, 0] < 3) == classes).all() and len(np.unique(drawn, axis=0)) == 100
    with pytest.raises(ValueError, match="no labelled pixel"):
        sample_pixels(places.astype(np.float32), labels, labels == IGNORE_ID, per_class=5)


def test_scales_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="0 < smallest <= largest"):
        pixel_features(np.zeros((8, 8, 3), np.uint8), mpp=1, smallest_um=4, largest_um=2)


# Heat maps


def test_window_net_has_its_count_and_inception_the_published_one():
    assert count_parameters(WindowNet()) == 97_938
    with torch.device("meta"):
        assert count_parameters(build_window_net("inception_v3", 3)) == 21_791_715
    assert build_window_net("small", 3)(torch.zeros(2, 3, 24, 24)).shape == (2, 3)
    with pytest.raises(ValueError, match="'big'; known: small, inception_v3"):
        build_window_net("big")


def test_windows_are_labelled_by_their_share_of_glomerulus():
    manifest = pd.DataFrame({"positive_fraction": [0.0, 0.05, 0.3, 0.5, 1.0]})
    found = label_windows(manifest, empty_below=0.05, full_from=0.5)
    assert found.tolist() == [0, IGNORE_ID, IGNORE_ID, 1, 1]
    with pytest.raises(ValueError, match="must ascend"):
        label_windows(manifest, empty_below=0.6, full_from=0.5)
    with pytest.raises(ValueError, match="no truth"):
        label_windows(manifest.replace(1.0, np.nan), empty_below=0.1, full_from=0.5)


def test_window_net_learns_to_tell_dark_windows_from_bright_ones():
    torch.manual_seed(0)
    shades = np.repeat([90, 160], 20)
    noise = np.random.default_rng(0).integers(-30, 30, (40, 16, 16, 3))
    windows = (shades[:, None, None, None] + noise).astype(np.uint8)
    labels = np.repeat([0, 1], 20)
    labels[0] = IGNORE_ID
    network = WindowNet(width=4)
    losses = train_window_net(network, windows, labels, steps=20, batch_size=16, seed=0)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    with pytest.raises(ValueError, match="show 1 classes"):
        train_window_net(network, windows, np.zeros(40, np.int64), steps=1)


def brightness(images: torch.Tensor) -> torch.Tensor:
    share = images.mean(dim=(1, 2, 3)).sigmoid()
    return torch.stack([1 - share, share], dim=1)


def test_heat_map_is_the_mean_over_the_windows_that_show_a_pixel():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 52, 3)).astype(np.uint8)
    found = heat_map(rgb, brightness, window_px=16, stride_px=12, batch_size=3)
    shows = [
        (x, y)
        for y in (0, 12, 24)
        for x in (0, 12, 24, 36)
        if x <= 14 < x + 16 and y <= 13 < y + 16
    ]
    alone = [
        heat_map(rgb[y : y + 16, x : x + 16], brightness, window_px=16, stride_px=16)[0, 0]
        for x, y in shows
    ]
    assert len(shows) == 4 and found[13, 14] == pytest.approx(np.mean(alone), abs=1e-6)
    assert found.shape == (40, 52) and 0 <= found.min() <= found.max() <= 1


def test_heat_map_of_a_network_is_constant_on_a_constant_image():
    classify = make_classifier(WindowNet(width=4))
    rgb = np.full((40, 40, 3), 100, np.uint8)
    found = heat_map(rgb, classify, window_px=16, stride_px=8)
    assert np.ptp(found) < 1e-5
    both = found + heat_map(rgb, classify, window_px=16, stride_px=8, class_id=0)
    assert both == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="smaller than a window of 64"):
        heat_map(rgb, classify, window_px=64, stride_px=8)
