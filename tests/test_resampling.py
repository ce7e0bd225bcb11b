import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renal_utils.resampling import (
    area_mean,
    bilinear,
    bilinear_span,
    block_mean,
    covered_span,
    nearest_indices,
    pixel_edges,
)

RATIOS = st.one_of(st.integers(1, 7).map(float), st.floats(1.0, 9.0))


def noise(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def weights(count, length, ratio):
    """How much of each source pixel lies in each pixel, by brute force."""
    left = np.arange(count)[:, None] * ratio
    pixel = np.arange(length)[None, :]
    shared = np.minimum(left + ratio, pixel + 1) - np.maximum(left, pixel)
    return np.clip(shared, 0, None) / ratio


@settings(max_examples=40, deadline=None)
@given(ratio=RATIOS, seed=st.integers(0, 2**31))
def test_area_mean_agrees_with_the_integral_over_each_pixel(ratio, seed):
    pixels = noise(64, 80, seed=seed)
    height, width = int(64 / ratio), int(80 / ratio)
    edges = pixel_edges(0, width, ratio), pixel_edges(0, height, ratio)
    found = area_mean(pixels, *edges)
    rows, columns = weights(height, 64, ratio), weights(width, 80, ratio)
    wanted = np.stack([rows @ pixels[:, :, c] @ columns.T for c in range(3)], axis=2)
    assert np.abs(found - wanted).max() <= 0.5 + 0.2


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8])
def test_block_mean_equals_area_mean_of_whole_ratios_and_opencv_to_rounding(factor):
    pixels = noise(12 * factor, 9 * factor)
    found = block_mean(pixels, factor)
    edges = pixel_edges(0, 9, float(factor)), pixel_edges(0, 12, float(factor))
    np.testing.assert_array_equal(found, area_mean(pixels, *edges))
    by_opencv = cv2.resize(pixels, (9, 12), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - by_opencv).max() <= 1


@pytest.mark.parametrize("ratio", [0.5, 0.4, 0.8])
def test_bilinear_agrees_with_opencv_inside_the_image(ratio):
    pixels = noise(40, 40, channels=1)
    count = int(40 / ratio)
    span = bilinear_span(0, count, ratio)
    rows = np.clip(np.arange(*span), 0, 39)
    found = bilinear(pixels[rows][:, rows], (0, 0), (count, count), ratio)
    by_opencv = cv2.resize(pixels, (count, count), interpolation=cv2.INTER_LINEAR)
    assert np.abs(found[:, :, 0].astype(int) - by_opencv).max() <= 1


def test_a_constant_stays_that_constant_at_every_ratio():
    for value in (0, 1, 127, 254, 255):
        pixels = np.full((70, 70, 3), value, np.uint8)
        for ratio in (1.0001, 1.6, 2.5, 6.99):
            edges = pixel_edges(0, 10, ratio)
            assert (area_mean(pixels, edges, edges) == value).all()
        span = bilinear_span(5, 20, 0.37)
        part = np.full((span[1] - span[0],) * 2 + (1,), value, np.uint8)
        assert (bilinear(part, (5, 5), (20, 20), 0.37) == value).all()


@settings(max_examples=60, deadline=None)
@given(ratio=RATIOS, start=st.integers(-50, 10**6), skip=st.integers(0, 30))
def test_edges_and_spans_depend_on_the_pixel_and_not_on_the_window(ratio, start, skip):
    whole = pixel_edges(start, 40, ratio)
    np.testing.assert_array_equal(pixel_edges(start + skip, 40 - skip, ratio), whole[skip:])
    first, stop = covered_span(whole)
    assert first * 4096 <= whole[0] and whole[-1] <= stop * 4096
    assert (stop - first) * 4096 - (whole[-1] - whole[0]) < 2 * 4096


def test_nearest_indices_are_the_pixels_under_the_centres():
    np.testing.assert_array_equal(nearest_indices(0, 4, 2.0), [1, 3, 5, 7])
    np.testing.assert_array_equal(nearest_indices(0, 4, 3.0), [1, 4, 7, 10])
    np.testing.assert_array_equal(nearest_indices(2, 2, 0.5), [1, 1])
