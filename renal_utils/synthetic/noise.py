"""Seamless noise: tiles that repeat, looked up by the slide's own coordinates.

A pixel's noise depends on its place on the slide alone, so neighbouring blocks agree.
"""

from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float32, Shaped

from renal_utils.synthetic.canvas import Canvas


def periodic_noise(
    size: tuple[int, int], sigma: float | tuple[float, float], rng: np.random.Generator
) -> Float32[np.ndarray, "H W"]:
    """Return Gaussian noise of unit variance, smoothed by ``sigma`` pixels, that tiles the plane.

    Args:
        size: (width, height) of the tile.
        sigma: Smoothing in pixels, one number or (along x, along y).
        rng: Source of the noise.
    """
    width, height = size
    sx, sy = (sigma, sigma) if isinstance(sigma, float | int) else sigma
    fx, fy = np.fft.rfftfreq(width), np.fft.fftfreq(height)
    transfer = np.exp(-2 * np.pi**2 * ((sy * fy[:, None]) ** 2 + (sx * fx[None]) ** 2))
    transfer[0, 0] = 0
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    tile = np.fft.irfft2(spectrum * transfer, s=(height, width))
    return (tile / tile.std()).astype(np.float32)


class NoiseTile:
    """A repeating tile of noise; `window` reads it at any place of the slide."""

    def __init__(self, tile: np.ndarray, reach: int) -> None:
        self.period = tile.shape[0]
        self._padded = np.pad(tile, ((0, reach), (0, reach)), mode="wrap")

    def window(self, canvas: Canvas) -> Float32[np.ndarray, "S S"]:
        """Return the noise of a canvas's pixels."""
        top, left = canvas.y % self.period, canvas.x % self.period
        return self._padded[top : top + canvas.size, left : left + canvas.size]


@lru_cache(maxsize=4)
def noise_tiles(mpp: float, reach: int) -> dict[str, NoiseTile]:
    """Return the textures that all slides of one scale share.

    Args:
        mpp: Microns per pixel; textures have fixed sizes in micrometres.
        reach: Largest window that will be asked for, in pixels.
    """
    rng = np.random.default_rng(20240917)
    um = 1 / mpp
    blur = lambda period, size_um: periodic_noise((period, period), size_um * um, rng)  # noqa: E731
    grain = 0.8 * blur(971, 0.35) + 0.6 * blur(971, 0.9)
    fibre = _ridges(blur(1151, 2.2), um)
    tiles = {
        "grain": grain,
        "cloud": blur(1151, 3.0),
        "wave": blur(1291, 9.0),
        "fibre": fibre,
        "camera": rng.standard_normal((977, 977)).astype(np.float32),
    }
    return {name: NoiseTile(np.ascontiguousarray(tile), reach) for name, tile in tiles.items()}


def _ridges(noise: Float32[np.ndarray, "H W"], um: float) -> Float32[np.ndarray, "H W"]:
    """Turn blobs into thin bright lines where the noise crosses zero: collagen fibres."""
    lines = np.exp(-((noise / 0.25) ** 2))
    return ((lines - lines.mean()) / lines.std()).astype(np.float32)


def coarse_field(
    shape: tuple[int, int], sigma: float, rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """Return smooth noise of about unit variance on a coarse grid; it does not repeat."""
    field = rng.standard_normal(shape).astype(np.float32)
    smooth = cv2.GaussianBlur(field, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return np.asarray(smooth * np.float32(2 * np.sqrt(np.pi) * sigma))


def sample_field(
    field: Shaped[np.ndarray, "h w"], xy: Shaped[np.ndarray, "*n 2"], cell: float | int
) -> Shaped[np.ndarray, "*n"]:
    """Return the values of a coarse grid at slide pixels, nearest cell.

    Args:
        field: Values on a grid whose cells are ``cell`` slide pixels wide.
        xy: Places, slide pixels; those outside take the nearest cell.
        cell: Width of a cell in slide pixels.
    """
    columns = np.clip((xy[..., 0] / cell).astype(int), 0, field.shape[1] - 1)
    rows = np.clip((xy[..., 1] / cell).astype(int), 0, field.shape[0] - 1)
    return np.asarray(field[rows, columns])
