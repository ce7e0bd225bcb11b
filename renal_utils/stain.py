"""Stain: how much of each dye lies in a pixel, and where on the glass there is tissue.

Light that passes a dye is attenuated exponentially (Beer and Lambert), so colours of two dyes add
up only after taking the logarithm. *Optical density* is ``OD = -log10((value + 1) / 256)``: 0 for
white glass, 2.41 for black, and exactly reversible for ``uint8``. A stain is a unit vector in OD
space; a pixel's *concentrations* c say how much of each stain it holds: ``OD = c @ vectors``.

Channel 0 is always haematoxylin (nuclei), channel 1 the counter stain (PAS or eosin), channel 2
the residual: what neither explains, such as ink or a bad choice of vectors.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from skimage import color
from skimage.filters import threshold_otsu

RgbImage = UInt8[np.ndarray, "H W 3"]
Vectors = Float[np.ndarray, "3 3"]

# The optical density of every uint8 value.
_DENSITY = (-np.log10((np.arange(256) + 1) / 256)).astype(np.float32)
# Otsu always finds some split; outside this range of saturations it has split noise or tissue.
_SATURATION_RANGE = (0.06, 0.15)
_DARK = 30  # below this value in all channels: black fill around the scan, or black ink
_PEN_MARGIN = 0.15  # optical density by which ink breaks the rule that tissue absorbs green most
# Optical densities of standardised tissue, red, green and blue: medians and half central ranges.
_MIDDLE = np.array([0.24, 0.45, 0.2], np.float32)
_SPREAD = np.array([0.06, 0.13, 0.05], np.float32)
_STAINED = 0.12  # density of green above that of tinted glass
_SHIFT_DENSITY = 0.1  # optical density by which a jitter of strength 1 shifts a stain


def _complete(first: np.ndarray, second: np.ndarray) -> Vectors:
    """Return two stain vectors, scaled to unit length, with their cross product as residual."""
    rows = np.stack([first, second, np.cross(first, second)]).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Published vectors, as scikit-image holds them: H&E of Ruifrok and Johnston (2001, Analytical and
# Quantitative Cytology and Histology 23:291), haematoxylin+PAS of Landini's "colour deconvolution".
STAIN_VECTORS: dict[str, Vectors] = {
    "pas": _complete(color.rgb_from_hpx[0], color.rgb_from_hpx[1]),
    "he": _complete(color.rgb_from_hed[0], color.rgb_from_hed[1]),
}


def stain_vectors(stain: str | Vectors) -> Vectors:
    """Return the stain vectors called ``stain``, or the given ones checked.

    Args:
        stain: ``"pas"``, ``"he"``, or three rows such as ``estimate_stains`` returns.

    Raises:
        ValueError: If the name is unknown, or the rows do not span colour space.
    """
    if isinstance(stain, str):
        if stain not in STAIN_VECTORS:
            raise ValueError(f"no stain {stain!r}; known: {', '.join(STAIN_VECTORS)}")
        return STAIN_VECTORS[stain]
    if abs(np.linalg.det(stain)) < 1e-4:
        raise ValueError(f"stain vectors {stain.tolist()} lie in one plane; no two may be equal")
    return stain.astype(np.float32)


def optical_density(rgb: UInt8[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    """Return the optical density of each channel, 0 (white) to 2.41 (black), float32."""
    return _DENSITY[rgb]


def density_to_rgb(density: Float[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Return the colours of optical densities, rounded and clipped to 0..255."""
    values = np.exp(density * np.float32(-np.log(10))) * np.float32(256) - np.float32(1)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def separate_stains(
    rgb: UInt8[np.ndarray, "*shape 3"], stain: str | Vectors = "pas"
) -> Float[np.ndarray, "*shape 3"]:
    """Return how much of each stain every pixel holds (Ruifrok and Johnston 2001).

    Unlike ``skimage.color.separate_stains`` negative concentrations are kept, so that
    ``combine_stains`` gives back the very same image.

    Args:
        rgb: Colours, 0 to 255.
        stain: ``"pas"``, ``"he"``, or stain vectors.

    Returns:
        Concentrations in units of optical density, float32: haematoxylin, counter stain, residual.
    """
    return optical_density(rgb) @ np.linalg.inv(stain_vectors(stain))


def combine_stains(
    concentrations: Float[np.ndarray, "*shape 3"], stain: str | Vectors = "pas"
) -> UInt8[np.ndarray, "*shape 3"]:
    """Return the colours of stain concentrations: the inverse of ``separate_stains``."""
    return density_to_rgb(concentrations.astype(np.float32) @ stain_vectors(stain))


def estimate_stains(
    rgb: UInt8[np.ndarray, "*shape 3"], *, min_density: float = 0.15, percentile: float = 1.0
) -> Vectors:
    """Estimate an image's own two stain vectors (Macenko et al., ISBI 2009).

    The stained pixels lie in a plane of OD space; its extreme directions are the stains. The one
    that absorbs more red is called haematoxylin. At most about 200,000 pixels are looked at.

    Args:
        rgb: Colours, 0 to 255, holding both stains.
        min_density: Pixels below this density in any channel count as glass (the paper's beta).
        percentile: Angles beyond this percentile at either end are outliers (the paper's alpha).

    Returns:
        Three unit rows: haematoxylin, counter stain, residual.

    Raises:
        ValueError: If fewer than 100 pixels are stained, or they show only one colour.
    """
    pixels = rgb.reshape(-1, 3)
    density = optical_density(pixels[:: max(1, len(pixels) // 200_000)])
    density = density[(density > min_density).all(axis=1)]
    if len(density) < 100:
        raise ValueError(
            f"only {len(density)} pixels are stained (density over {min_density}); at least 100 "
            "are needed: give a region with tissue, or lower min_density"
        )
    _, directions = np.linalg.eigh(np.cov(density.T))
    plane = directions[:, :0:-1]  # the two directions of greatest variance, greatest first
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    angles = np.arctan2(density @ plane[:, 1], density @ plane[:, 0])
    low, high = np.percentile(angles, [percentile, 100 - percentile])
    if high - low < 0.01:
        raise ValueError("the stained pixels have one colour; two stains cannot be told apart")
    ends = [plane @ np.array([np.cos(a), np.sin(a)]) for a in (low, high)]
    ends = [np.maximum(end, 0) / np.linalg.norm(np.maximum(end, 0)) for end in ends]
    return _complete(*sorted(ends, key=lambda end: -end[0]))


def jitter_stain(
    rgb: RgbImage,
    rng: np.random.Generator,
    *,
    strength: float = 0.2,
    stain: str | Vectors = "pas",
) -> RgbImage:
    """Return the image as another laboratory might have stained it.

    Each stain's concentration c becomes ``a c + b`` with a from U(1 - s, 1 + s) and b from
    U(-s, s) x 0.1 optical density (Tellez et al. 2018, IEEE TMI 37:2126, who shift by s itself,
    which tints the glass). Since all of it is linear in OD, it is one 3x3 matrix and an offset.

    Args:
        rgb: Image, 0 to 255.
        rng: Source of the six random numbers, the only state.
        strength: s, 0 (unchanged) up to but not including 1.
        stain: Which stains to vary.

    Raises:
        ValueError: If ``strength`` is outside [0, 1).
    """
    if not 0 <= strength < 1:
        raise ValueError(f"strength must lie in [0, 1), not {strength}; 0.2 is moderate")
    vectors = stain_vectors(stain)
    scale = rng.uniform(1 - strength, 1 + strength, 3)
    shift = rng.uniform(-strength, strength, 3) * _SHIFT_DENSITY
    mixed = np.linalg.inv(vectors) * scale @ vectors
    affine = np.column_stack([mixed.T, shift @ vectors]) * -np.log(10)
    affine[:, 3] += np.log(256)
    values = np.exp(cv2.transform(cv2.LUT(rgb, _DENSITY), affine.astype(np.float32)))
    values -= 0.5  # minus 1 as in density_to_rgb, plus a half since the cast below cuts off
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def standardise_stain(
    rgb: RgbImage, *, like: UInt8[np.ndarray, "h w 3"] | None = None, smooth_px: float = 1.0
) -> RgbImage:
    """Return the image with its tissue's optical densities at a fixed middle and spread.

    Each channel's density d becomes ``(d - m) * S / s + M``: m is the median and s half the range
    between the 16th and 84th percentile over the tissue, M and S are constants. Two sections
    stained for a long and for a short time look alike afterwards. It needs no labels and no other
    image; what a network was trained with must be done to what it is asked about too.

    After Reinhard et al. (2001, IEEE Computer Graphics and Applications 21:34), who match mean and
    standard deviation in a colour space of their own; densities and ranks are ours.

    Args:
        rgb: Image, 0 to 255.
        like: What is measured instead of the image itself: the same section seen coarsely, say, of
            which the image is a part. Best at 2 to 8 microns a pixel.
        smooth_px: Standard deviation of the blur before measuring, pixels; 0 for none.

    Raises:
        ValueError: If what is measured shows fewer than 100 pixels of tissue.
    """
    middle, spread = _density_range(rgb if like is None else like, smooth_px)
    gain = _SPREAD / np.maximum(spread, 0.02)
    levels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    return cv2.LUT(rgb, density_to_rgb((_DENSITY[levels] - middle) * gain + _MIDDLE)[None])


def _density_range(rgb: RgbImage, smooth_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the median density of tissue in each channel and half its central range."""
    soft = cv2.GaussianBlur(rgb, (0, 0), smooth_px) if smooth_px > 0 else rgb
    density = optical_density(soft)[tissue_mask(rgb)]
    density = density[density[:, 1] > _STAINED]
    if len(density) < 100:
        raise ValueError(
            f"only {len(density)} pixels show tissue; at least 100 are needed to standardise its "
            "stain: give a larger part of the section as like="
        )
    low, middle, high = np.percentile(density, [16, 50, 84], axis=0).astype(np.float32)
    return middle, (high - low) / 2


def tissue_mask(
    rgb: RgbImage, *, smooth_px: float = 1.0, min_area_px: int = 16
) -> Bool[np.ndarray, "H W"]:
    """Return where tissue lies: Otsu's threshold on the saturation of the smoothed image.

    Guards, since Otsu always splits: the threshold is kept within 0.06 to 0.15, so an image that is
    all glass gives an empty mask and one that is all tissue stays whole. Black fill around a scan
    and black ink are not tissue. Nor is blue or green ink: histological stains absorb green more
    than red and blue, ink does not. Red ink looks like eosin and is *not* told apart.

    Best used on a thumbnail (4 to 16 microns per pixel), where lumens do not leave holes.

    Args:
        rgb: Image, 0 to 255.
        smooth_px: Standard deviation of the blur that removes noise; 0 for none.
        min_area_px: Specks of fewer pixels are dropped.
    """
    blurred = cv2.GaussianBlur(rgb, (0, 0), smooth_px) if smooth_px > 0 else rgb
    saturation = _saturation(blurred)
    threshold = float(np.clip(threshold_otsu(saturation), *_SATURATION_RANGE))
    mask = (saturation > threshold) & (blurred.max(axis=2) >= _DARK) & ~_pen_mask(blurred)
    return _drop_specks(mask, min_area_px)


def _saturation(rgb: RgbImage) -> Float[np.ndarray, "H W"]:
    """Return (max - min) / max of the channels, 0 (grey) to 1."""
    high, low = rgb.max(axis=2), rgb.min(axis=2)
    return (high - low).astype(np.float32) / np.maximum(high, 1)


def _pen_mask(rgb: RgbImage) -> Bool[np.ndarray, "H W"]:
    """Return where ink lies: strokes of at least 5 pixels whose green is not the darkest.

    Judged by density: in ink as dark as it is dense, the grey values hardly differ.
    """
    red, green, blue = cv2.split(cv2.LUT(rgb, _DENSITY))
    ink = (cv2.max(red, blue) - green > _PEN_MARGIN).astype(np.uint8)
    if not ink.any():
        return ink.astype(bool)
    strokes = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    # one ring more: the blurred rim of a stroke is too pale for the margin
    return cv2.dilate(strokes, np.ones((5, 5), np.uint8)).astype(bool)


def _drop_specks(mask: Bool[np.ndarray, "H W"], min_area_px: int) -> Bool[np.ndarray, "H W"]:
    if min_area_px <= 1:
        return mask
    _, ids, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    keep[0] = False
    return keep[ids]
