import numpy as np
import pytest
from skimage.transform import PiecewiseAffineTransform

from renal_utils.piecewise import PiecewiseAffine, lattice_points, move_triangles

pytestmark = pytest.mark.filterwarnings("ignore:This augmenter is very slow")


@pytest.mark.parametrize(
    ("size", "counts"), [((96, 96), (4, 4)), ((70, 41), (5, 2)), ((256, 256), (4, 4))]
)
def test_pixels_go_where_scikit_images_triangles_take_them(size, counts):
    rng = np.random.default_rng(1)
    lattice = lattice_points(size, counts)
    moved = lattice + rng.normal(0, 3, lattice.shape)
    triangles = PiecewiseAffineTransform.from_estimate(lattice, moved)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    expected = triangles(np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(*x.shape, 2)
    np.testing.assert_allclose(move_triangles(lattice, moved, size), expected, atol=1e-4)


def test_points_that_stay_leave_every_pixel_where_it_is():
    lattice = lattice_points((50, 30), (4, 4))
    x, y = np.meshgrid(np.arange(50), np.arange(30))
    found = move_triangles(lattice, lattice, (50, 30))
    np.testing.assert_allclose(found, np.stack([x, y], axis=-1), atol=1e-4)


def test_shifts_have_the_stated_spread_and_stay_within_the_image():
    transform = PiecewiseAffine(scale=(0.05, 0.05), p=1)
    transform.set_random_seed(0)
    inner, size = [], (61, 91)  # points of a 4 x 4 lattice lie on whole pixels of these
    x, y = np.meshgrid([0, 20, 40, 60], [0, 30, 60, 90])
    for _ in range(60):
        maps = transform.get_params_dependent_on_data({"shape": (91, 61, 3)}, {})
        assert min(m.min() for m in maps.values()) >= 0
        assert maps["map_x"].max() <= 60 and maps["map_y"].max() <= 90
        shift = maps["map_x"][y, x] - x, maps["map_y"][y, x] - y
        inner.append([s[1:3, 1:3] / side for s, side in zip(shift, size, strict=True)])
    assert np.std(inner) == pytest.approx(0.05, rel=0.1)
    assert abs(np.mean(inner)) < 0.01
