import time

import cv2
import numpy as np
import pytest
from skimage import color

from renal_utils.stain import (
    _MIDDLE,
    _SPREAD,
    STAIN_VECTORS,
    _pen_mask,
    combine_stains,
    density_to_rgb,
    estimate_stains,
    jitter_stain,
    optical_density,
    separate_stains,
    standardise_stain,
    tissue_mask,
)
from renal_utils.synthetic.artefacts import INKS


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def colours(rng):
    return rng.integers(0, 256, (64, 48, 3), np.uint8)


@pytest.fixture
def pas(rng):
    """A PAS-like texture: two smooth stain fields on every pixel."""
    fields = [cv2.GaussianBlur(rng.random((96, 128)), (0, 0), 4) for _ in range(2)]
    nuclei, counter = [(f - f.min()) / np.ptp(f) for f in fields]
    conc = np.stack([0.05 + 0.7 * nuclei, 0.15 + 0.4 * counter, 0 * nuclei], axis=-1)
    return combine_stains(conc.astype(np.float32), "pas")


def glass(rng, height=120, width=160):
    return np.clip(rng.normal(238, 2, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("stain", sorted(STAIN_VECTORS))
def test_separating_and_combining_gives_the_same_image(colours, stain):
    conc = separate_stains(colours, stain)
    assert conc.dtype == np.float32
    np.testing.assert_array_equal(combine_stains(conc, stain), colours)


@pytest.mark.parametrize("stain", sorted(STAIN_VECTORS))
def test_vectors_are_units_and_the_residual_is_orthogonal(stain):
    vectors = STAIN_VECTORS[stain]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[:2] @ vectors[2], 0, atol=1e-6)


def test_a_pure_stain_fills_only_its_own_channel():
    conc = np.zeros((2, 1, 3), np.float32)
    conc[[0, 1], 0, [0, 1]] = 0.3
    found = separate_stains(combine_stains(conc, "he"), "he")
    np.testing.assert_allclose(found, conc, atol=0.01)


def test_separation_agrees_with_skimage_up_to_scale(pas):
    theirs = color.separate_stains(pas, color.hpx_from_rgb)[..., :2]
    ours = separate_stains(pas, "pas")[..., :2]
    assert np.corrcoef(theirs[..., 0].ravel(), ours[..., 0].ravel())[0, 1] > 0.999
    assert np.corrcoef(theirs[..., 1].ravel(), ours[..., 1].ravel())[0, 1] > 0.999


def test_white_is_density_zero_and_darker_is_denser():
    density = optical_density(np.array([[255, 128, 0]], np.uint8))
    np.testing.assert_allclose(density, [[0, -np.log10(129 / 256), np.log10(256)]], atol=1e-6)


@pytest.mark.parametrize("stain", ["he", "pas"])
def test_estimated_vectors_are_those_the_image_was_mixed_from(rng, stain):
    # pure haematoxylin, pure counter stain and all mixtures, on some glass
    share = rng.beta(0.3, 0.3, 20_000)
    amount = rng.uniform(0.9, 1.5, 20_000)
    conc = np.stack([share * amount, (1 - share) * amount, 0 * share], axis=-1)
    rgb = combine_stains(conc.astype(np.float32), stain)
    rgb[:3000] = 245
    found = estimate_stains(rgb, min_density=0.05)
    cosines = (found[:2] * STAIN_VECTORS[stain][:2]).sum(axis=1)
    assert cosines.min() > 0.99
    assert found[0, 0] > found[1, 0]


def test_estimating_on_glass_or_one_colour_is_refused(rng):
    with pytest.raises(ValueError, match="0 pixels are stained"):
        estimate_stains(glass(rng))
    with pytest.raises(ValueError, match="one colour"):
        estimate_stains(np.full((50, 50, 3), (150, 80, 140), np.uint8))


def test_unknown_stain_lists_the_known_ones(colours):
    with pytest.raises(ValueError, match=r"'giemsa'.*pas, he"):
        separate_stains(colours, "giemsa")


def test_flat_vectors_are_refused(colours):
    with pytest.raises(ValueError, match="one plane"):
        separate_stains(colours, np.ones((3, 3), np.float32))


def test_jitter_of_strength_zero_changes_nothing(colours, rng):
    np.testing.assert_array_equal(jitter_stain(colours, rng, strength=0.0), colours)


def test_jitter_is_the_affine_map_of_concentrations(pas):
    strength = 0.3
    draws = np.random.default_rng(3)
    scale = draws.uniform(1 - strength, 1 + strength, 3)
    shift = draws.uniform(-strength, strength, 3) * 0.1
    expected = combine_stains((separate_stains(pas) * scale + shift).astype(np.float32))
    found = jitter_stain(pas, np.random.default_rng(3), strength=strength)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_jitter_depends_on_the_generator_alone(pas):
    one, same, other = (
        jitter_stain(pas, np.random.default_rng(s), strength=0.3) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one.astype(int) - other).mean() > 1


@pytest.mark.parametrize("strength", [-0.1, 1.0, float("nan")])
def test_absurd_jitter_is_refused(pas, rng, strength):
    with pytest.raises(ValueError, match="strength"):
        jitter_stain(pas, rng, strength=strength)


def test_tissue_on_glass_is_found_to_a_pixel_or_two(pas, rng):
    slide = glass(rng)
    slide[12:108, 16:144] = pas
    truth = np.zeros(slide.shape[:2], bool)
    truth[12:108, 16:144] = True
    assert (tissue_mask(slide) ^ truth).mean() < 0.04


def test_all_glass_is_empty_and_all_tissue_is_whole(pas, rng):
    assert not tissue_mask(glass(rng)).any()
    assert not tissue_mask(np.full((40, 40, 3), 255, np.uint8)).any()
    assert not tissue_mask(np.zeros((40, 40, 3), np.uint8)).any()
    assert tissue_mask(pas).mean() > 0.98


@pytest.mark.parametrize(
    "ink", [(30, 60, 170), (3, 16, 180), (20, 120, 60), (15, 15, 18), (60, 160, 200)]
)
def test_pen_marks_are_not_tissue(pas, rng, ink):
    slide = glass(rng)
    slide[12:108, 16:80] = pas[:, :64]
    cv2.line(slide, (100, 10), (150, 110), ink, 9)
    mask = tissue_mask(slide)
    assert not mask[:, 90:].any()
    assert mask[16:104, 20:76].mean() > 0.95


@pytest.mark.parametrize("ink", [INKS[0], INKS[2]], ids=["blue", "green"])
def test_dense_ink_is_not_tissue_on_glass_and_on_tissue(pas, rng, ink):
    slide = glass(rng)
    slide[12:108, 16:144] = pas
    stroke = cv2.line(np.zeros(slide.shape[:2], np.uint8), (2, 2), (150, 110), 1, 11) > 0
    density = optical_density(slide)
    density[stroke] += np.float32(ink)
    mask = tissue_mask(density_to_rgb(density))
    assert not mask[cv2.erode(stroke.astype(np.uint8), np.ones((3, 3))) > 0].any()
    away = cv2.dilate(stroke.astype(np.uint8), np.ones((9, 9))) == 0
    np.testing.assert_array_equal(mask[away], tissue_mask(slide)[away])


@pytest.mark.real
@pytest.mark.parametrize("downsample", [2, 8])
def test_no_real_pas_tissue_is_taken_for_ink(shared_data, downsample):
    paths = sorted((shared_data / "hubmap_pas_slide" / "images").iterdir())[::5]
    assert len(paths) > 5
    for path in paths:
        rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        small = cv2.resize(rgb, None, fx=1 / downsample, fy=1 / downsample, interpolation=3)
        assert not _pen_mask(cv2.GaussianBlur(small, (0, 0), 1)).any(), path.name


def _stained(rgb, strength):
    """Return an image as a longer or shorter time in the stains would have left it."""
    return density_to_rgb(optical_density(rgb) * np.float32(strength))


@pytest.mark.parametrize("strength", [0.8, 1.3])
def test_standardised_images_hardly_depend_on_the_strength_of_the_stain(pas, strength):
    """A longer time in the stains multiplies densities: differences shrink to a few grey levels."""
    other = _stained(pas, strength)
    before = np.abs(other.astype(int) - pas).mean()
    after = np.abs(standardise_stain(other).astype(int) - standardise_stain(pas)).mean()
    assert before > 10 and after < 0.15 * before


def test_standardising_brings_densities_to_the_stated_middle_and_spread(pas):
    density = optical_density(standardise_stain(pas, smooth_px=0.0)).reshape(-1, 3)
    low, middle, high = np.percentile(density, [16, 50, 84], axis=0)
    np.testing.assert_allclose(middle, _MIDDLE, atol=0.02)
    np.testing.assert_allclose((high - low) / 2, _SPREAD, atol=0.02)


def test_a_part_standardised_like_the_whole_is_the_part_of_the_whole(pas):
    whole = standardise_stain(pas)
    np.testing.assert_array_equal(
        standardise_stain(pas[20:60, 30:90], like=pas), whole[20:60, 30:90]
    )


def test_standardising_keeps_the_order_of_values_in_every_channel(pas):
    done = standardise_stain(pas)
    for channel in range(3):
        order = np.argsort(pas[..., channel], axis=None, kind="stable")
        assert (np.diff(done[..., channel].ravel()[order].astype(int)) >= 0).all()


def test_an_image_without_tissue_cannot_be_standardised(rng):
    with pytest.raises(ValueError, match="like="):
        standardise_stain(glass(rng))


def test_specks_are_dropped(rng):
    slide = glass(rng)
    slide[40:44, 40:44] = (150, 60, 140)
    slide[80:100, 80:100] = (150, 60, 140)
    mask = tissue_mask(slide, min_area_px=100)
    assert mask[85:95, 85:95].all()
    assert not mask[30:50, 30:50].any()
    assert tissue_mask(slide, min_area_px=1)[41:43, 41:43].all()


@pytest.mark.real
def test_haematoxylin_tells_real_nuclei_from_the_rest(shared_data):
    folder = shared_data / "monuseg"
    path = sorted((folder / "images").iterdir())[1]
    mask_path = next((folder / "masks_instance").glob(f"{path.stem}*"))
    rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    nuclei = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED) > 0
    haematoxylin = separate_stains(rgb, estimate_stains(rgb))[..., 0]
    assert haematoxylin[nuclei].mean() > 2 * haematoxylin[~nuclei].mean()


@pytest.mark.slow
def test_jitter_is_fast_enough_for_a_loader(rng):
    rgb = rng.integers(0, 256, (256, 256, 3), np.uint8)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        jitter_stain(rgb, rng, strength=0.2)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.01  # about 0.002 s; the limit leaves room for a busy machine
