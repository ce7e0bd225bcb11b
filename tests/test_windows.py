import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renal_utils.windows import (
    WINDOWS,
    RowBlender,
    plan_windows,
    tissue_share,
    window_weights,
)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("patch", [1, 2, 7, 64, 512])
def test_weights_are_positive_and_symmetric(name, patch):
    weights = window_weights(name, patch)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.max() <= 1
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-5)
    np.testing.assert_allclose(weights, weights.T, rtol=1e-6)


def test_hann_windows_half_a_patch_apart_sum_to_one():
    weights = window_weights("hann", 64)
    total = weights[:32, :32] + weights[32:, :32] + weights[:32, 32:] + weights[32:, 32:]
    np.testing.assert_allclose(total, 1, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(list(WINDOWS)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    patch=st.integers(1, 30),
    data=st.data(),
)
def test_normalised_weights_sum_to_one_at_every_pixel(name, size, patch, data):
    """Where every window answers 1, each pixel is the sum of its windows' shares."""
    positions = plan_windows(size, patch, data.draw(st.integers(1, patch)))
    ones = [np.ones((1, patch, patch), np.float32) for _ in positions]
    total, _ = _blend(positions, ones, size=size, name=name)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_unknown_window_lists_the_known_ones():
    with pytest.raises(ValueError, match="hann, gaussian, uniform"):
        window_weights("triangle", 8)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    patch=st.integers(1, 40),
    data=st.data(),
)
def test_every_pixel_is_covered_and_windows_come_row_by_row(width, height, patch, data):
    stride = data.draw(st.integers(1, patch))
    positions = plan_windows((width, height), patch, stride)
    covered = np.zeros((height, width), bool)
    for x, y in positions:
        covered[y : y + patch, x : x + patch] = True
    assert covered.all()
    assert positions.tolist() == sorted(positions.tolist(), key=lambda xy: (xy[1], xy[0]))
    assert (positions + patch <= np.maximum((width, height), patch)).all()


def _blend(positions, predictions, *, size, name, start=0):
    """Blend windows as stitching does: finish what the next window's row no longer needs."""
    width, height = size
    channels, patch = predictions[0].shape[:2]
    blender = RowBlender(width, channels, weights=window_weights(name, patch), top=start)
    parts = []
    for (x, y), prediction in zip(positions, predictions, strict=True):
        if y > blender.top:
            parts.append(blender.finish(int(y)))
        blender.add((int(x), int(y)), prediction)
    parts.append(blender.finish(height))
    return np.concatenate([p[0] for p in parts], 1), np.concatenate([p[1] for p in parts])


@pytest.mark.parametrize("name", WINDOWS)
def test_blending_equals_the_weighted_mean_of_whole_canvases(name):
    size, patch, rng = (53, 71), 16, np.random.default_rng(1)
    positions = plan_windows(size, patch, 7)
    predictions = [rng.random((2, patch, patch), np.float32) for _ in positions]
    sums, weights = np.zeros((2, 71, 53)), np.zeros((71, 53))
    for (x, y), prediction in zip(positions, predictions, strict=True):
        sums[:, y : y + patch, x : x + patch] += prediction * window_weights(name, patch)
        weights[y : y + patch, x : x + patch] += window_weights(name, patch)
    blended, seen = _blend(positions, predictions, size=size, name=name)
    assert seen.all()
    np.testing.assert_allclose(blended, sums / weights, rtol=1e-5)


def test_a_run_that_starts_in_the_middle_gives_the_same_bits():
    size, patch, rng = (40, 90), 16, np.random.default_rng(2)
    positions = plan_windows(size, patch, 6)
    predictions = [rng.random((1, patch, patch), np.float32) for _ in positions]
    whole, _ = _blend(positions, predictions, size=size, name="hann")
    for start in (6, 42, 72):
        late = [i for i, (_, y) in enumerate(positions) if y + patch > start]
        rest, _ = _blend(
            positions[late], [predictions[i] for i in late], size=size, name="hann", start=start
        )
        assert np.array_equal(rest, whole[:, start:])


def test_rows_that_no_window_saw_are_zero_and_said_so():
    blender = RowBlender(8, 1, weights=window_weights("hann", 4))
    blender.add((0, 0), np.ones((1, 4, 4), np.float32))
    blended, seen = blender.finish(4)
    assert seen[:, :4].all() and not seen[:, 4:].any()
    assert (blended[0, :, :4] == 1).all() and (blended[0, :, 4:] == 0).all()


def test_a_window_below_the_open_rows_is_refused():
    blender = RowBlender(8, 1, weights=window_weights("hann", 4))
    with pytest.raises(ValueError, match="not finished"):
        blender.add((0, 2), np.ones((1, 4, 4), np.float32))
    with pytest.raises(ValueError, match="at most 4"):
        blender.finish(5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), cell=st.sampled_from([1.0, 3.7, 8.0]))
def test_no_window_that_touches_tissue_has_a_share_of_zero(seed, cell):
    rng = np.random.default_rng(seed)
    tissue = rng.random((13, 9)) < 0.03
    size = (int(9 * cell), int(13 * cell))
    positions = plan_windows(size, 6, 4)
    share = tissue_share(positions, 6, tissue, cell)
    for (x, y), found in zip(positions, share, strict=True):
        rows = slice(int(y // cell), int(np.ceil((y + 6) / cell)))
        columns = slice(int(x // cell), int(np.ceil((x + 6) / cell)))
        assert found == pytest.approx(tissue[rows, columns].mean())
