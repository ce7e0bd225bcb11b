import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from renal_utils.geometry import Box
from renal_utils.objects import trace_objects
from renal_utils.polygons import fill_polygon, pixel_centres

EIGHT = np.ones((3, 3), int)


def _bands(labels, probability, height):
    for y in range(0, len(labels), height):
        yield labels[y : y + height], probability[y : y + height]


def _trace(labels, *, height=1000, probability=None, class_ids=(1, 2), min_area_px=0):
    probability = np.full_like(labels, 255) if probability is None else probability
    bands = _bands(labels, probability, height)
    return list(trace_objects(bands, class_ids=class_ids, min_area_px=min_area_px))


def _blobs(seed, shape, classes=2, smooth=2.0):
    """Random class regions with holes, corners that touch, and pieces of every size."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), smooth) for _ in range(classes)]
    labels = np.zeros(shape, np.uint8)
    for class_id, values in enumerate(fields, start=1):
        labels[values > np.quantile(values, 0.65)] = class_id
    return labels


@pytest.mark.parametrize("smooth", [0.6, 2.0])
def test_count_and_areas_match_labelling_the_whole_image(smooth):
    labels = _blobs(0, (90, 70), smooth=smooth)
    for height in (1, 3, 17, 64, 90):
        found = _trace(labels, height=height)
        for class_id in (1, 2):
            ids, count = ndimage.label(labels == class_id, EIGHT)
            areas = sorted(ndimage.sum_labels(ids > 0, ids, range(1, count + 1)))
            assert sorted(o.area_px for o in found if o.class_id == class_id) == areas


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 50),
    width=st.integers(1, 40),
    height=st.integers(1, 25),
    smooth=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_everything_is_independent_of_the_height_of_the_bands(seed, rows, width, height, smooth):
    labels = _blobs(seed, (rows, width), smooth=smooth)
    probability = np.random.default_rng(seed).integers(0, 256, labels.shape, np.uint8)
    assert _trace(labels, probability=probability, height=height) == _trace(
        labels, probability=probability
    )


@pytest.mark.parametrize("height", [4, 100])
def test_outlines_drawn_again_give_back_the_label_map(height):
    labels = _blobs(3, (40, 50), smooth=1.0)
    again = np.zeros_like(labels)
    for found in _trace(labels, height=height):
        assert found.outline.is_valid
        assert found.outline.area == found.area_px
        assert found.outline.bounds == (
            found.box.x,
            found.box.y,
            found.box.right,
            found.box.bottom,
        )
        inside = fill_polygon(found.outline, *pixel_centres((50, 40)))
        assert not again[inside].any()
        again[inside] = found.class_id
    assert np.array_equal(again, labels)


def test_mean_probability_and_centroid_are_those_of_the_pixels():
    labels = _blobs(4, (60, 40), classes=1)
    probability = np.random.default_rng(0).integers(0, 256, labels.shape, np.uint8)
    ids, count = ndimage.label(labels, EIGHT)
    index = range(1, count + 1)
    means = ndimage.mean(probability, ids, index) / 255
    centres = [(x + 0.5, y + 0.5) for y, x in ndimage.center_of_mass(labels, ids, index)]
    found = _trace(labels, probability=probability, height=7)
    assert sorted(o.mean_probability for o in found) == pytest.approx(sorted(means))
    np.testing.assert_allclose(sorted(o.centroid_px for o in found), sorted(centres))


def test_two_arms_that_meet_below_are_one_object():
    labels = np.zeros((30, 21), np.uint8)
    labels[:, 2:5] = labels[:, 16:19] = 1
    labels[29, 2:19] = 1
    (found,) = _trace(labels, height=5)
    assert found.box == Box(2, 0, 17, 30)
    assert found.area_px == int(labels.sum())
    assert isinstance(found.outline, shapely.Polygon)
    assert len(found.outline.exterior.coords) == 9


def test_corners_that_touch_across_a_seam_join_and_other_classes_do_not():
    labels = np.zeros((4, 8), np.uint8)
    labels[0:2, 0:2] = labels[2:4, 2:4] = 1
    labels[0:2, 5:6], labels[2:4, 6:7] = 1, 2
    found = _trace(labels, height=2)
    assert [(o.class_id, o.area_px) for o in found] == [(1, 2), (1, 8), (2, 2)]
    assert found[1].outline.geom_type == "MultiPolygon"


def test_small_objects_are_dropped_by_their_whole_area():
    labels = np.zeros((12, 12), np.uint8)
    labels[0:2, 0:2] = 1
    labels[4:10, 3:5] = 1  # 12 pixels, but only 2 a row
    found = _trace(labels, height=1, min_area_px=12)
    assert [o.area_px for o in found] == [12]


@pytest.mark.parametrize("height", [3, 7, 100])
def test_an_object_too_large_for_an_outline_has_its_box(monkeypatch, height):
    monkeypatch.setattr("renal_utils.objects.MAX_OUTLINED_PX", 40)
    labels = np.zeros((20, 20), np.uint8)
    labels[2:12, 3:9] = 1
    labels[15:19, 3:9] = 1
    large, small = _trace(labels, height=height)
    assert (large.is_outlined, large.area_px, large.outline.bounds) == (False, 60, (3, 2, 9, 12))
    assert (small.is_outlined, small.outline.area) == (True, 24)


def test_classes_not_asked_for_and_empty_maps_give_nothing():
    labels = _blobs(5, (20, 20))
    assert {o.class_id for o in _trace(labels, class_ids=(2,))} == {2}
    assert _trace(np.zeros((20, 20), np.uint8)) == []
    assert _trace(np.full((3, 4), 255, np.uint8)) == []


def test_memory_holds_only_open_objects():
    """A generator of many bands is taken one band at a time, and finished objects leave at once."""
    taken = 0

    def bands():
        nonlocal taken
        for _ in range(100):
            taken += 1
            band = np.zeros((4, 8), np.uint8)
            band[1:3, 2:5] = 1
            yield band, band

    objects = trace_objects(bands(), class_ids=(1,))
    next(objects)
    assert taken == 1
