"""Butterworth band-pass: keep what is about as large as a glomerulus, drop the rest.

After Govind et al. (2018, "Glomerular detection and segmentation from multimodal microscopy images
using a Butterworth band-pass filter", SPIE Medical Imaging 10581). Nuclei lie denser in a tuft than
around it; blurred to the scale of a glomerulus, the image of nuclei shows bright blobs.

Deviations. The authors filter DAPI and autofluorescence of a second, registered scan; here the
stain itself is filtered. Their cut-offs are not available to us, so they are stated as sizes of
objects in microns: half a wave of a frequency f is 1 / (2 f) long, and that is the object that it
describes. The formula printed in the thesis that quotes them lost its brackets; this is the usual
one, 1 / (1 + (D / D_L)^(2n)).
"""

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import fft

from renal_utils.geometry import check_mpp

_CLIP = 3.0  # standard deviations beyond which the image is cut, so that ink does not ring


def butterworth_bandpass(
    distance: Float[np.ndarray, "*shape"],
    *,
    low_pass: float | int,
    high_pass: float | int,
    order: int = 1,
) -> Float[np.ndarray, "*shape"]:
    """Return how much of each frequency passes: H_LP H_HP, 0 to 1.

    H_LP = 1 / (1 + (D / D_L)^(2n)) lets low frequencies pass, H_HP = 1 - 1 / (1 + (D / D_H)^(2n))
    high ones. At the cut-offs themselves one factor is a half. Nothing passes fully: for n = 1 the
    most is (D_L / (D_L + D_H))^2, at D = sqrt(D_L D_H).

    Args:
        distance: D, the distance of a frequency from the origin, any unit, >= 0.
        low_pass: D_L, the upper end of the band, in the same unit.
        high_pass: D_H, its lower end.
        order: n; the published filter has 1. Higher ones are steeper, and ring.

    Raises:
        ValueError: If the band is empty or the order below 1.
    """
    if not 0 < high_pass < low_pass:
        raise ValueError(
            f"the band from {high_pass} to {low_pass} is empty; give 0 < high_pass < low_pass"
        )
    if order < 1:
        raise ValueError(f"a Butterworth filter has an order of 1 or more, not {order}")
    lower = (distance / low_pass) ** (2 * order)
    upper = (distance / high_pass) ** (2 * order)
    return upper / (1 + upper) / (1 + lower)


def filter_band(
    image: Float[np.ndarray, "H W"],
    *,
    mpp: float | int,
    smallest_um: float | int,
    largest_um: float | int,
    order: int = 1,
) -> Float32[np.ndarray, "H W"]:
    """Return the part of an image that varies over objects of the given sizes.

    The image is mirrored at its borders before the Fourier transform, which would otherwise take
    its left border for the neighbour of its right one.

    Args:
        image: Any intensity.
        mpp: Microns per pixel.
        smallest_um: Size of object at the upper cut-off frequency.
        largest_um: Size of object at the lower cut-off frequency.
        order: See ``butterworth_bandpass``.

    Returns:
        Same unit as the image; its mean over a whole image is about 0.

    Raises:
        ValueError: If the sizes are not 0 < smallest < largest.
    """
    check_mpp(float(mpp))
    if not 0 < smallest_um < largest_um:
        raise ValueError(
            f"objects from {smallest_um} to {largest_um} microns: give 0 < smallest < largest"
        )
    margin = min(round(largest_um / mpp), *(side - 1 for side in image.shape))
    padded = np.pad(image.astype(np.float32), margin, mode="reflect")
    rows, columns = padded.shape
    frequency = np.hypot(fft.fftfreq(rows, mpp)[:, None], fft.rfftfreq(columns, mpp)[None])
    transfer = butterworth_bandpass(
        frequency, low_pass=0.5 / smallest_um, high_pass=0.5 / largest_um, order=order
    )
    filtered = fft.irfft2(fft.rfft2(padded) * transfer.astype(np.float32), s=padded.shape)
    height, width = image.shape
    inside = filtered[margin : margin + height, margin : margin + width]
    return inside.astype(np.float32)


def band_response(
    image: Float[np.ndarray, "H W"],
    tissue: Bool[np.ndarray, "H W"],
    *,
    mpp: float | int,
    smallest_um: float | int,
    largest_um: float | int,
    order: int = 1,
) -> Float32[np.ndarray, "H W"]:
    """Return the band-passed image in standard deviations, so that one threshold fits many slides.

    Glass is set to the tissue's mean first, since the border of a section is a far stronger edge
    than anything within it, and values far from the mean are cut. Both, and the scaling, are ours.

    Args:
        image: Such as the concentration of haematoxylin.
        tissue: Where tissue lies.
        mpp: Microns per pixel.
        smallest_um: See ``filter_band``.
        largest_um: See ``filter_band``.
        order: See ``butterworth_bandpass``.

    Returns:
        Response, mean 0 and standard deviation 1 over the tissue; 0 on glass.

    Raises:
        ValueError: If there is no tissue, or the sizes are wrong.
    """
    if not tissue.any():
        raise ValueError("no tissue in this image, so there is nothing to filter")
    values = image[tissue]
    spread = max(float(values.std()), 1e-6)
    levelled = np.clip((image - values.mean()) / spread, -_CLIP, _CLIP)
    levelled[~tissue] = 0
    response = filter_band(
        levelled, mpp=mpp, smallest_um=smallest_um, largest_um=largest_um, order=order
    )
    inside = response[tissue]
    scaled = (response - inside.mean()) / max(float(inside.std()), 1e-6)
    return np.where(tissue, scaled, 0).astype(np.float32)
