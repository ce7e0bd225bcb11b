"""Segmentation without a segmentation network: three older ways, for comparison.

- ``bandpass``: keep what is as large as a glomerulus, by a Butterworth filter (Govind et al. 2018).
- ``pixels``: classify each pixel by its surroundings with a random forest (as ilastik does).
- ``heatmaps``: classify windows, and draw where they say yes (Kannan et al. 2019).
- ``cleaning``: what all three need afterwards: fill, open, drop specks, part what touches.
"""

from renal_utils.classic.bandpass import band_response, butterworth_bandpass, filter_band
from renal_utils.classic.cleaning import clean_mask, split_touching
from renal_utils.classic.heatmaps import (
    WINDOW_NETS,
    WindowNet,
    build_window_net,
    heat_map,
    label_windows,
    make_classifier,
    train_window_net,
)
from renal_utils.classic.pixels import (
    grow_forest,
    pixel_features,
    pixel_probability,
    sample_pixels,
)

__all__ = [
    "WINDOW_NETS",
    "WindowNet",
    "band_response",
    "build_window_net",
    "butterworth_bandpass",
    "clean_mask",
    "filter_band",
    "grow_forest",
    "heat_map",
    "label_windows",
    "make_classifier",
    "pixel_features",
    "pixel_probability",
    "sample_pixels",
    "split_touching",
    "train_window_net",
]
