"""PiecewiseAffine as its name says: a lattice's points move, the triangles between them follow.

That of albumentations 2.0 moves the pixels of an image by blending the points' shifts by inverse
distance, pixel by pixel in Python: not affine in any piece, and slow. Here the map is linear within
each triangle, as in albumentations 1 and ``skimage.transform.PiecewiseAffineTransform``, which a
test compares it with.
"""

from typing import Any

import albumentations
import numpy as np
from jaxtyping import Float
from scipy.interpolate import LinearNDInterpolator

Points = Float[np.ndarray, "N 2"]


class PiecewiseAffine(albumentations.PiecewiseAffine):
    """albumentations' transform with its own way of moving pixels replaced; options are its.

    Each point shifts by a normal distribution whose standard deviation is ``scale`` times the
    image's side, as in albumentations 1 (version 2.0 takes a third of it), and stays within the
    image. ``absolute_scale`` is not heeded.
    """

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the points, and return where each pixel of the result comes from."""
        height, width = params["shape"][:2]
        rows, columns = (self.py_random.randint(*n) for n in (self.nb_rows, self.nb_cols))
        share = self.py_random.uniform(*self.scale)
        lattice = lattice_points((width, height), (columns, rows))
        shifts = self.random_generator.normal(0, share, lattice.shape) * (width, height)
        moved = np.clip(lattice + shifts, 0, (width - 1, height - 1))
        sources = move_triangles(lattice, moved, (width, height))
        return {"map_x": sources[..., 0].copy(), "map_y": sources[..., 1].copy()}


def lattice_points(size_px: tuple[int, int], counts: tuple[int, int]) -> Points:
    """Return a lattice's points (x, y), row by row, from the first pixel to the last.

    Args:
        size_px: Width and height of the image.
        counts: Points in a row and in a column, each at least 2.
    """
    ends = [np.linspace(0, side - 1, count) for side, count in zip(size_px, counts, strict=True)]
    return np.stack(np.meshgrid(*ends), axis=-1).reshape(-1, 2)


def move_triangles(
    lattice: Points, moved: Points, size_px: tuple[int, int]
) -> Float[np.ndarray, "H W 2"]:
    """Return where (x, y) each pixel goes when the lattice's points move and triangles follow.

    Args:
        lattice: Points whose hull covers the image.
        moved: Where they go.
        size_px: Width and height of the image.
    """
    width, height = size_px
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return LinearNDInterpolator(lattice, moved)(x, y).astype(np.float32)
