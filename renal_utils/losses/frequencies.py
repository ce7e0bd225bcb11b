"""Weights against class imbalance, from how many pixels each class has in the training data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64

from renal_utils.labels import IGNORE_ID

# Unscaled weights of the shares of classes that occur.
SCHEMES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverse": lambda share: 1 / share,
    "inverse_square": lambda share: 1 / share**2,
    "inverse_root": lambda share: 1 / np.sqrt(share),
}


def count_classes(
    labels: Iterable[Any], num_classes: int, *, ignore_index: int = IGNORE_ID
) -> Int64[np.ndarray, " C"]:
    """Count the pixels of each class.

    Args:
        labels: Label maps, arrays or tensors of any shape, for instance
            ``(sample["target"] for sample in dataset)``.
        num_classes: Classes of the label set.
        ignore_index: Id that is not counted.

    Raises:
        ValueError: If a label map holds an id that is none of the classes.
    """
    counts = np.zeros(num_classes, dtype=np.int64)
    for label_map in labels:
        ids, found = np.unique(np.asarray(label_map), return_counts=True)
        found, ids = found[ids != ignore_index], ids[ids != ignore_index]
        if len(ids) and not 0 <= ids.min() <= ids.max() < num_classes:
            raise ValueError(
                f"a label map holds ids {ids.tolist()}, but there are {num_classes} classes (0 to "
                f"{num_classes - 1}); convert the labels"
            )
        counts[ids.astype(np.int64)] += found
    return counts


def count_foreground(manifest: pd.DataFrame) -> Int64[np.ndarray, "2"]:
    """Count background and foreground pixels from a manifest, without reading a slide.

    Args:
        manifest: With ``patch_px`` and ``positive_fraction``; rows whose fraction is NaN have no
            truth and are left out. Give it the training split only.

    Raises:
        ValueError: If no row has a fraction.
    """
    known = manifest[manifest["positive_fraction"].notna()]
    if known.empty:
        raise ValueError(
            "no patch of the manifest has a positive_fraction; cut patches from images with truth"
        )
    pixels = known["patch_px"].to_numpy(dtype=np.int64) ** 2
    foreground = np.rint(known["positive_fraction"].to_numpy() * pixels).astype(np.int64)
    return np.array([(pixels - foreground).sum(), foreground.sum()], dtype=np.int64)


def class_weights(
    counts: Sequence[int] | Int64[np.ndarray, " C"], *, scheme: str = "inverse"
) -> tuple[float, ...]:
    """Return one weight a class, for ``class_weights`` of the losses; their mean is 1.

    Args:
        counts: Pixels of each class.
        scheme: What the weight is proportional to: ``inverse`` is 1 / frequency (median frequency
            balancing is the same up to scale), ``inverse_square`` 1 / frequency^2, generalised
            Dice's (Sudre et al. 2017), ``inverse_root`` 1 / root of the frequency.

    Returns:
        Weights; 0 for a class without a pixel, which takes no part in the mean of 1.

    Raises:
        ValueError: If the scheme is unknown, or no class has a pixel.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"no scheme {scheme!r}; known: {', '.join(SCHEMES)}")
    pixels: Float[np.ndarray, " C"] = np.asarray(counts, dtype=float)
    occurs = pixels > 0
    if not occurs.any() or (pixels < 0).any():
        raise ValueError(f"counts must be pixels of classes, some above 0, given {list(counts)}")
    weights = np.zeros_like(pixels)
    weights[occurs] = SCHEMES[scheme](pixels[occurs] / pixels.sum())
    weights /= weights[occurs].mean()
    return tuple(weights.tolist())


def positive_weight(counts: Sequence[int] | Int64[np.ndarray, "2"]) -> float:
    """Return how many background pixels there are for one foreground pixel.

    As ``positive_weight`` of a loss it makes both classes weigh the same in total.

    Args:
        counts: Background and foreground pixels.

    Raises:
        ValueError: If there are not two counts, or no foreground.
    """
    if len(counts) != 2 or not counts[1] > 0:
        raise ValueError(
            f"counts must be of background and foreground, with some foreground, given "
            f"{list(counts)}"
        )
    return float(counts[0] / counts[1])
