"""Outlines and pixels: drawing against shapely's point test, tracing against drawing."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from shapely import MultiPolygon, Polygon, box

from renal_utils.labels import FOUR_TISSUES, GLOMERULI, IGNORE_ID, KIDNEY_TISSUES, NUCLEI
from renal_utils.polygons import (
    PolygonObject,
    class_id_of,
    draw_polygons,
    fill_polygon,
    instances_to_polygons,
    mask_to_polygons,
    rasterise,
    rasterise_labels,
    simplify_polygon,
)

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=11))


def centres(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(width) + 0.5, np.arange(height) + 0.5


def star(rng: np.random.Generator, corners: int = 9) -> Polygon:
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(3, 14, corners)
    return Polygon(np.stack([15 + radii * np.cos(angles), 16 + radii * np.sin(angles)], axis=1))


@pytest.mark.parametrize("seed", range(8))
def test_filling_equals_shapely_contains_at_pixel_centres(seed):
    rng = np.random.default_rng(seed)
    shape = star(rng).difference(Polygon([(13, 12), (18, 14), (14, 19)]))
    x, y = np.meshgrid(*centres(32, 30))
    inside = fill_polygon(shape, *centres(32, 30))
    np.testing.assert_array_equal(inside, shapely.contains_xy(shape, x, y))


def test_filling_takes_any_ascending_grid():
    shape = star(np.random.default_rng(0))
    columns, rows = np.array([1.5, 2.5, 9.5, 14.25, 15.0, 28.5]), np.array([10.5, 16.0, 16.1])
    x, y = np.meshgrid(columns, rows)
    np.testing.assert_array_equal(
        fill_polygon(shape, columns, rows), shapely.contains_xy(shape, x, y)
    )


@pytest.mark.parametrize("seed", range(5))
def test_shapes_that_share_borders_share_no_pixel_and_leave_none_out(seed):
    rng = np.random.default_rng(seed)
    points = shapely.MultiPoint(rng.integers(0, 41, (25, 2)) / 2)  # many centres lie on borders
    cells = shapely.voronoi_polygons(points, extend_to=box(0, 0, 20, 20))
    count = sum(fill_polygon(c, *centres(20, 20)).astype(int) for c in shapely.get_parts(cells))
    assert (count == 1).all()


def test_crossing_outline_follows_the_even_odd_rule():
    bow_tie = Polygon([(0, 0), (8, 8), (8, 0), (0, 8)])
    inside = fill_polygon(bow_tie, *centres(8, 8))
    assert inside[4, 0]
    assert inside[4, 7]
    assert not inside[0, 4]


def test_first_object_keeps_the_pixels_that_two_claim():
    objects = [PolygonObject("a", box(0, 0, 4, 4)), PolygonObject("b", box(2, 2, 6, 6))]
    instances = rasterise(objects, (7, 6))
    assert instances.dtype == np.int32
    assert instances.shape == (6, 7)
    assert (instances == 1).sum() == 16
    assert (instances == 2).sum() == 12
    assert instances[3, 3] == 1


def test_parts_outside_the_image_are_cut_off():
    objects = [PolygonObject("", box(-50, -3, 2, 2)), PolygonObject("", box(90, 90, 99, 99))]
    instances = rasterise(objects, (5, 4))
    assert (instances == 1).sum() == 4
    assert (instances == 2).sum() == 0


def test_label_map_holds_class_ids_and_leaves_the_rest_background_or_unlabelled():
    objects = [PolygonObject("Glomeruli", box(1, 1, 3, 3))]
    objects.append(PolygonObject("vessel", box(4, 0, 5, 2)))
    tissue = rasterise_labels(objects, (6, 4), KIDNEY_TISSUES)
    assert set(np.unique(tissue)) == {0, 3, 4}
    four = rasterise_labels(objects, (6, 4), FOUR_TISSUES)
    assert set(np.unique(four)) == {2, 3, IGNORE_ID}
    assert (four == 3).sum() == 4


def test_drawing_overwrites_only_inside_polygons():
    canvas = np.full((4, 5), 9, np.uint8)
    draw_polygons([box(1, 1, 3, 3)], [0], canvas, *centres(5, 4))
    assert (canvas == 0).sum() == 4
    assert (canvas == 9).sum() == 16


@pytest.mark.parametrize(
    ("label", "label_set", "name"),
    [
        ("glomerulus", GLOMERULI, "glomerulus"),
        ("Glomeruli", GLOMERULI, "glomerulus"),
        ("", GLOMERULI, "glomerulus"),
        ("Sclerosed glomerulus", GLOMERULI, "glomerulus"),
        ("Sclerosed-Glomeruli", KIDNEY_TISSUES, "sclerosed_glomerulus"),
        ("Normal tubules", KIDNEY_TISSUES, "normal_tubule"),
        ("nuclei", NUCLEI, "nucleus"),
        ("interstitial fibrosis", KIDNEY_TISSUES, "interstitial_fibrosis"),
    ],
)
def test_labels_of_files_are_matched_to_classes(label, label_set, name):
    assert class_id_of(label, label_set) == label_set.id_of(name)


@pytest.mark.parametrize(("label", "label_set"), [("Cortex", GLOMERULI), ("", KIDNEY_TISSUES)])
def test_unknown_label_lists_the_known_ones(label, label_set):
    with pytest.raises(ValueError, match=r"is no class of label set .*glomerulus"):
        class_id_of(label, label_set)


@given(masks, st.sampled_from([1, 2]))
@settings(max_examples=200, deadline=None)
def test_tracing_then_drawing_gives_the_mask_back(mask, connectivity):
    polygons = mask_to_polygons(mask, connectivity=connectivity)
    assert all(shapely.is_valid(p) for p in polygons)
    _, regions = ndimage.label(mask, ndimage.generate_binary_structure(2, connectivity))
    assert len(polygons) == regions
    assert sum(p.area for p in polygons) == mask.sum()
    drawn = rasterise([PolygonObject("", p) for p in polygons], mask.shape[::-1])
    np.testing.assert_array_equal(drawn > 0, mask)


def test_ring_becomes_a_polygon_with_a_hole_and_an_island_in_it():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    ring, island = mask_to_polygons(mask)
    assert ring.equals(box(1, 1, 8, 8).difference(box(2, 2, 7, 7)))
    assert len(ring.interiors) == 1
    assert island.equals(box(4, 4, 5, 5))
    assert len(island.exterior.coords) == 5


def test_regions_that_touch_by_a_corner_are_one_object_only_when_asked():
    mask = np.eye(2, dtype=bool)
    assert len(mask_to_polygons(mask)) == 2
    (both,) = mask_to_polygons(mask, connectivity=2)
    assert isinstance(both, MultiPolygon)
    with pytest.raises(ValueError, match="connectivity must be 1"):
        mask_to_polygons(mask, connectivity=8)


def test_empty_mask_has_no_polygons():
    assert mask_to_polygons(np.zeros((3, 3), bool)) == []
    assert instances_to_polygons(np.zeros((3, 3), np.int32)) == []


def test_instances_come_back_with_their_ids_and_places():
    instances = np.zeros((20, 30), np.uint16)
    instances[3:7, 20:28] = 2
    instances[10:14, 5:9] = 5
    instances[16:18, 5:9] = 5
    (first, plain), (second, parts) = instances_to_polygons(instances)
    assert (first, second) == (2, 5)
    assert plain.equals(box(20, 3, 28, 7))
    assert parts.equals(MultiPolygon([box(5, 10, 9, 14), box(5, 16, 9, 18)]))


@pytest.mark.parametrize("tolerance_px", [0.75, 2, 5])
def test_simplified_outline_stays_within_its_tolerance(tolerance_px):
    y, x = np.mgrid[:80, :80]
    mask = (x - 40) ** 2 + (y - 38) ** 2 < 30**2
    (exact,) = mask_to_polygons(mask)
    (simple,) = mask_to_polygons(mask, tolerance_px=tolerance_px)
    assert simple.is_valid
    assert len(simple.exterior.coords) < len(exact.exterior.coords)
    assert exact.exterior.hausdorff_distance(simple.exterior) <= tolerance_px
    assert not simplify_polygon(exact, 1000).is_empty
