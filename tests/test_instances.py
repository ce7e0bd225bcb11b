"""Separating nuclei: growth against the printed algorithm, contours, leftovers, tiles and seams."""

import numpy as np
import pytest
from nuclei_scenes import draw_nuclei, grow_literally
from scipy import ndimage

from renal_utils.growth import grow_seeds
from renal_utils.instance_maps import (
    check_instances,
    contour_map,
    count_pairs,
    number_anew,
    remove_small,
)
from renal_utils.instances import METHODS, label_components, separate_nuclei
from renal_utils.seams import join_tiles


def blobs(seed: int, shape: tuple[int, int] = (60, 80), smooth: float = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, smooth) > 0


def same_parts(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two maps cut the pixels into the same objects, whatever the ids."""
    a, b, _ = count_pairs(one.astype(np.int32), other.astype(np.int32))
    return len(a) == len(np.unique(a)) == len(np.unique(b)) and ((a == 0) == (b == 0)).all()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("passes", [None, 1, 6])
def test_growth_equals_the_printed_algorithm(seed, passes):
    mask, contour = blobs(seed), blobs(seed + 100, smooth=1)
    seeds = ndimage.label(mask & ~contour, np.ones((3, 3)))[0].astype(np.int32)
    ours = grow_seeds(seeds, mask, max_rings=passes)
    np.testing.assert_array_equal(ours, grow_literally(seeds, mask, passes=passes))


@pytest.mark.parametrize("seed", range(4))
def test_growth_equals_repeated_minimum_filters(seed):
    """An independent form of the rule, over the whole image, with seeds outside the mask too."""
    mask, big = blobs(seed, (120, 90)), 2**31 - 1
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(mask.shape) < 0.01, rng.integers(1, 99, mask.shape), 0)
    ours = grow_seeds(labels.astype(np.int32), mask)
    for _ in range(200):
        least = ndimage.minimum_filter(
            np.where(labels > 0, labels, big), 3, mode="constant", cval=big
        )
        labels = np.where(mask & (labels == 0) & (least < big), least, labels)
    np.testing.assert_array_equal(ours, labels)


def test_a_tie_goes_to_the_lower_label():
    row = np.array([[2, 0, 1]], np.int32)
    np.testing.assert_array_equal(grow_seeds(row, np.ones((1, 3), bool)), [[2, 1, 1]])


def test_growth_goes_round_corners_and_never_over_background():
    mask = np.ones((7, 9), bool)
    mask[:6, 4] = False
    seeds = np.zeros(mask.shape, np.int32)
    seeds[0, 0] = 5
    labels = grow_seeds(seeds, mask)
    np.testing.assert_array_equal(labels, np.where(mask, 5, 0))
    assert (grow_seeds(seeds, mask, max_rings=5)[:, 5:] == 0).all()


def test_growth_refuses_other_sizes_and_negative_labels():
    with pytest.raises(ValueError, match=r"\(2, 2\), the mask \(3, 2\)"):
        grow_seeds(np.zeros((2, 2), np.int32), np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="seeds hold -1"):
        grow_seeds(np.full((2, 2), -1, np.int32), np.ones((2, 2), bool))


@pytest.mark.parametrize("seed", range(10))
def test_components_are_numbered_in_the_order_of_a_scan(seed):
    mask = blobs(seed, (70, 130), smooth=0.7)
    np.testing.assert_array_equal(label_components(mask), ndimage.label(mask, np.ones((3, 3)))[0])


@pytest.mark.parametrize("method", ["algorithm_1", "six_passes"])
def test_growth_gives_nuclei_back_from_thick_contours(method):
    truth = draw_nuclei(200, 30, radii=(12, 16))
    kept = number_anew(remove_small(truth, 300))[0]
    contour = contour_map(kept, thickness_px=3)
    labels = separate_nuclei(kept > 0, contour, method=method)
    seeds = label_components((kept > 0) & ~contour)
    assert ((labels > 0) == (kept > 0)).all()
    assert (labels[seeds > 0] == seeds[seeds > 0]).all()
    assert labels.max() > 15


def test_six_passes_stop_after_six_rings_and_algorithm_1_does_not():
    mask, contour = np.ones((1, 20), bool), np.zeros((1, 20), bool)
    contour[0, 1:] = True
    assert (separate_nuclei(mask, contour, method="six_passes") > 0).sum() == 7
    assert (separate_nuclei(mask, contour) == 1).all()


@pytest.mark.parametrize("method", ["algorithm_1", "six_passes"])
def test_a_nucleus_all_contour_is_labelled_or_dropped(method):
    mask = np.array([[1, 1, 0, 1, 1]], bool)
    contour = np.array([[0, 1, 0, 1, 1]], bool)
    kept = separate_nuclei(mask, contour, method=method, leftovers="label")
    np.testing.assert_array_equal(kept, [[1, 1, 0, 2, 2]])
    dropped = separate_nuclei(mask, contour, method=method, leftovers="drop")
    np.testing.assert_array_equal(dropped, [[1, 1, 0, 0, 0]])


def test_leftovers_go_by_the_rule_of_each_method_and_nothing_else_is_known():
    mask = np.array([[1, 1, 0, 1, 1]], bool)
    contour = np.array([[0, 1, 0, 1, 1]], bool)
    assert separate_nuclei(mask, contour).max() == 2
    assert separate_nuclei(mask, contour, method="six_passes").max() == 1
    with pytest.raises(ValueError, match=r"leftovers 'keep' is not one of \('label', 'drop'\)"):
        separate_nuclei(mask, contour, leftovers="keep")


def test_erosion_parts_a_thin_bridge_and_growth_gives_the_pixels_back():
    mask = np.zeros((11, 25), bool)
    mask[1:10, 1:10] = mask[1:10, 15:24] = mask[5, 10:15] = True
    assert separate_nuclei(mask).max() == 1
    parted = separate_nuclei(mask, erode_px=1)
    assert parted.max() == 2
    assert ((parted > 0) == mask).all()
    with pytest.raises(ValueError, match="erode_px is -1"):
        separate_nuclei(mask, erode_px=-1)


def test_subtraction_drops_specks_and_widens_the_rest():
    mask = np.zeros((30, 30), bool)
    mask[5:25, 5:25] = mask[0, 29] = True
    contour = contour_map(mask.astype(np.int32), thickness_px=4)
    bare = separate_nuclei(mask, contour, method="subtract", dilate_px=0, min_area_px=5)
    np.testing.assert_array_equal(bare > 0, mask & ~contour)
    wide = separate_nuclei(mask, contour, method="subtract", dilate_px=2, min_area_px=5)
    distance = ndimage.distance_transform_edt(bare == 0)
    np.testing.assert_array_equal(wide > 0, distance <= 2)


def test_watershed_parts_overlapping_discs_along_their_waist():
    y, x = np.ogrid[:60, :90]
    mask = ((y - 30) ** 2 + (x - 30) ** 2 < 400) | ((y - 30) ** 2 + (x - 60) ** 2 < 400)
    labels = separate_nuclei(mask, method="watershed")
    assert labels.max() == 2
    assert set(np.unique(labels[:, :44])) == {0, 1}
    assert set(np.unique(labels[:, 47:])) == {0, 2}
    assert ((labels > 0) == mask).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_an_empty_and_a_full_mask(method):
    empty = np.zeros((12, 9), bool)
    assert separate_nuclei(empty, method=method).max() == 0
    full = separate_nuclei(~empty, method=method)
    assert (full.dtype, full.shape) == (np.int32, empty.shape)
    assert set(np.unique(full)) == {1}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_ids_run_from_one_without_gaps(method, seed):
    labels = separate_nuclei(blobs(seed), blobs(seed + 9, smooth=1), method=method)
    ids = np.unique(labels[labels > 0])
    np.testing.assert_array_equal(ids, np.arange(1, len(ids) + 1))


def test_unknown_methods_and_other_sizes_are_refused():
    mask = np.zeros((4, 5), bool)
    with pytest.raises(ValueError, match="no method 'magic'; known: algorithm_1, six_passes"):
        separate_nuclei(mask, method="magic")
    with pytest.raises(ValueError, match=r"\(4, 5\), the contour \(5, 4\)"):
        separate_nuclei(mask, mask.T)


def contour_literally(ids: np.ndarray, thickness: int) -> np.ndarray:
    found = np.zeros(ids.shape, bool)
    for y, x in np.ndindex(*ids.shape):
        reach = thickness // 2 if ids[y, x] == 0 else (thickness + 1) // 2
        near = ids[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        found[y, x] = (near != ids[y, x]).any()
    return found


@pytest.mark.parametrize("thickness", [1, 2, 3, 4, 5])
def test_contours_are_as_thick_as_stated(thickness):
    ids = draw_nuclei(60, 14, radii=(2, 10))
    ours = contour_map(ids, thickness_px=thickness)
    np.testing.assert_array_equal(ours, contour_literally(ids, thickness))


def test_contours_run_between_touching_nuclei_but_not_along_the_image():
    ids = np.ones((8, 8), np.int32)
    assert not contour_map(ids).any()
    ids[:, 4:] = 2
    assert contour_map(ids, thickness_px=1).nonzero()[1].tolist() == [3, 4] * 8
    with pytest.raises(ValueError, match="thickness_px is 0"):
        contour_map(ids, thickness_px=0)


def test_small_objects_go_and_ids_close_up():
    ids = np.array([[7, 7, 0, 9], [7, 0, 0, 40], [0, 0, 40, 40]], np.int32)
    cleaned = remove_small(ids, 2)
    np.testing.assert_array_equal(cleaned, [[1, 1, 0, 0], [1, 0, 0, 2], [0, 0, 2, 2]])


@pytest.mark.parametrize("scale", [1, 10**6])
def test_numbering_anew_keeps_the_order_with_small_and_huge_gaps(scale):
    ids = np.array([[30, 30, 5], [9, 5, 5]], np.int32) * np.int32(scale)
    numbered, count = number_anew(ids)
    assert count == 3
    np.testing.assert_array_equal(numbered, [[3, 3, 1], [2, 1, 1]])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((3, 3)), "of type float64, expected integer"),
        (np.zeros((3, 3), bool), "label its components first"),
        (np.full((3, 3), -4), "negative id -4"),
        (np.full((3, 3), 2**40), "number its objects anew"),
        (np.zeros((3, 3, 1), int), r"shape \(3, 3, 1\)"),
    ],
)
def test_what_is_no_instance_map_is_refused(ids, message):
    with pytest.raises(ValueError, match=rf"here: .*{message}"):
        check_instances(ids, where="here")


def tiles_of(labels_of, size: int, tile: int, step: int):
    """Tiles of a square map in a shuffled order, each labelled on its own."""
    places = [(x, y) for y in range(0, size, step) for x in range(0, size, step)]
    for n in np.random.default_rng(0).permutation(len(places)):
        x, y = places[n]
        yield (x, y), labels_of(np.s_[y : y + tile, x : x + tile])


def test_abutting_tiles_give_the_components_of_the_whole():
    """With a share of 0 and neighbours by edges, joining is connected components, exactly."""
    mask = blobs(3, (96, 96), smooth=2)
    out = np.empty(mask.shape, np.int32)
    tiles = tiles_of(lambda window: ndimage.label(mask[window])[0], 96, 20, 20)
    count = join_tiles(tiles, out, rule="touch", min_share=0)
    whole, expected = ndimage.label(mask)
    assert count == expected == out.max()
    assert same_parts(out, whole)


@pytest.mark.parametrize(("rule", "step"), [("overlap", 40), ("touch", 80)])
def test_nuclei_cut_by_seams_come_out_once(rule, step):
    truth = number_anew(remove_small(draw_nuclei(240, 60, radii=(6, 11)), 60))[0]
    contour = contour_map(truth, thickness_px=2)
    whole = separate_nuclei(truth > 0, contour)
    if rule == "touch":  # it cannot part nuclei that touch along a seam
        whole = label_components((truth > 0) & ~contour)

    def cut(window):
        return number_anew(whole[window])[0]

    out = np.empty(whole.shape, np.int32)
    count = join_tiles(tiles_of(cut, 240, 80, step), out, rule=rule, min_share=0.4)
    assert count == whole.max()
    assert same_parts(out, whole)


def test_tiles_separated_on_their_own_agree_with_the_whole_slide():
    truth = draw_nuclei(240, 60, radii=(6, 11))
    mask, contour = truth > 0, contour_map(truth, thickness_px=2)
    whole, out = separate_nuclei(mask, contour), np.empty(truth.shape, np.int32)
    tiles = tiles_of(lambda w: separate_nuclei(mask[w], contour[w]), 240, 80, 40)
    count = join_tiles(tiles, out)
    assert ((out > 0) == mask).all()
    assert abs(count - whole.max()) <= 0.05 * whole.max()


def test_neighbours_that_touch_along_a_seam_stay_two():
    """A nucleus left of the seam and one right of it, with a short contact, are not one."""
    left, right = np.zeros((20, 10), int), np.zeros((20, 10), int)
    left[0:11, 3:], right[10:20, :6] = 1, 1
    out = np.empty((20, 20), np.int32)
    assert join_tiles([((0, 0), left), ((10, 0), right)], out, rule="touch") == 2
    assert join_tiles([((0, 0), left), ((10, 0), right)], out, rule="touch", min_share=0) == 1


def test_first_tile_keeps_the_overlap_and_unseen_pixels_are_background():
    out = np.full((6, 12), 77, np.int32)
    one, two = np.full((4, 6), 3), np.full((4, 6), 8)
    two[:, :3] = 0
    assert join_tiles([((0, 0), one), ((4, 0), two)], out) == 2
    np.testing.assert_array_equal(out[0], [1] * 6 + [0] + [2] * 3 + [0] * 2)
    assert (out[4:] == 0).all()


def test_joining_writes_into_a_file_on_disk(tmp_path):
    out = np.memmap(tmp_path / "labels.bin", np.int32, "w+", shape=(40, 40))
    assert (
        join_tiles([((0, 0), np.ones((40, 20), int)), ((20, 0), np.ones((40, 20), int))], out) == 2
    )
    assert set(np.unique(out)) == {1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "glue"}, "no rule 'glue'; known: overlap, touch"),
        ({"min_share": 1.0}, "min_share is 1.0"),
        ({}, r"tile at \(5, 0\) of 4 x 4 reaches beyond the map of 8 x 8"),
    ],
)
def test_joining_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        join_tiles([((5, 0), np.ones((4, 4), int))], np.zeros((8, 8), np.int32), **options)


def test_joining_refuses_tiles_of_floats():
    with pytest.raises(ValueError, match=r"tile at \(0, 0\): is of type float64"):
        join_tiles([((0, 0), np.ones((4, 4)))], np.zeros((8, 8), np.int32))
