"""Pixel classification: each pixel is judged by the look of its surroundings.

As ilastik does (Sommer et al. 2011, ISBI, p. 230): the image is blurred at several scales, and each
pixel is described by its colour, edge strength and texture (eigenvalues of the Hessian) at each of
them. A random forest (Breiman 2001; scikit-learn's) learns classes from some labelled pixels and
judges all others.

Deviation: in ilastik a person draws a few strokes, looks, and draws more. Here pixels are drawn at
random from a finished truth, so nobody helps where the forest errs.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Integer, UInt8
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

from renal_utils.geometry import check_mpp
from renal_utils.labels import IGNORE_ID


def pixel_features(
    rgb: UInt8[np.ndarray, "H W 3"],
    *,
    mpp: float | int,
    smallest_um: float | int,
    largest_um: float | int,
) -> Float32[np.ndarray, "H W F"]:
    """Return each pixel's features: four for every channel and scale.

    Colour, edge strength and the two eigenvalues of the Hessian, of the image blurred with standard
    deviations that double from ``smallest_um`` to at most ``largest_um`` (scikit-image's
    ``multiscale_basic_features``).

    Args:
        rgb: Image.
        mpp: Microns per pixel.
        smallest_um: Smallest standard deviation of the blur.
        largest_um: Largest one: how far a pixel sees, about.

    Raises:
        ValueError: If the scales are not 0 < smallest <= largest.
    """
    check_mpp(float(mpp))
    if not 0 < smallest_um <= largest_um:
        raise ValueError(
            f"scales from {smallest_um} to {largest_um} microns: give 0 < smallest <= largest"
        )
    found = multiscale_basic_features(
        rgb.astype(np.float32) / 255,
        sigma_min=smallest_um / mpp,
        sigma_max=largest_um / mpp,
        channel_axis=-1,
    )
    return found.astype(np.float32)


def sample_pixels(
    features: Float32[np.ndarray, "H W F"],
    labels: UInt8[np.ndarray, "H W"],
    where: Bool[np.ndarray, "H W"],
    *,
    per_class: int,
    seed: int = 0,
) -> tuple[Float32[np.ndarray, "N F"], Int64[np.ndarray, " N"]]:
    """Draw equally many pixels of each class, and return their features and classes.

    Equally many, since glomeruli are a small part of the tissue and a forest that never says
    "glomerulus" would hardly ever be wrong.

    Args:
        features: Of one image.
        labels: Class ids; ``IGNORE_ID`` is never drawn.
        where: Where to draw from, such as the tissue.
        per_class: How many of each; fewer where a class has fewer.
        seed: Draws them.
    """
    rng = np.random.default_rng(seed)
    usable = np.where(where, labels, IGNORE_ID).ravel()
    chosen = []
    for class_id in np.unique(usable[usable != IGNORE_ID]):
        places = np.flatnonzero(usable == class_id)
        chosen.append(rng.choice(places, min(per_class, len(places)), replace=False))
    if not chosen:
        raise ValueError("no labelled pixel to draw from: labels or tissue are empty")
    rows = np.concatenate(chosen)
    return features.reshape(-1, features.shape[2])[rows], usable[rows].astype(np.int64)


def grow_forest(
    values: Float[np.ndarray, "N F"],
    classes: Integer[np.ndarray, " _"],
    *,
    trees: int = 30,
    depth: int = 10,
    min_rows: int = 5,
    seed: int = 0,
) -> RandomForestClassifier:
    """Grow scikit-learn's random forest; the same seed gives the same one.

    It grows in one process, since lessons run side by side. What is not set here is the library's
    default: each tree sees rows drawn with replacement, each node tries sqrt(F) features.

    Args:
        values: One row a pixel, one column a feature.
        classes: Class of each row.
        trees: How many.
        depth: Questions from root to leaf, at most.
        min_rows: Rows that a leaf holds at least.
        seed: Draws rows and features.

    Raises:
        ValueError: If rows and classes differ in number, there is one class only, a value is not
            finite (the trees would take NaN for a value like any other), or ``trees``, ``depth`` or
            ``min_rows`` is not positive.
    """
    if len(values) != len(classes):
        raise ValueError(f"{len(values)} rows, but {len(classes)} classes; give one for each row")
    if len(np.unique(classes)) < 2:
        raise ValueError(f"classes {np.unique(classes).tolist()}: a forest needs two or more")
    if not np.isfinite(values).all():
        raise ValueError("a feature is NaN or infinite; look at the image it was computed from")
    forest = RandomForestClassifier(
        trees, max_depth=depth, min_samples_leaf=min_rows, random_state=seed, n_jobs=1
    )
    return forest.fit(values, classes)


def pixel_probability(
    forest: RandomForestClassifier,
    features: Float32[np.ndarray, "H W F"],
    where: Bool[np.ndarray, "H W"],
    *,
    class_id: int = 1,
) -> Float32[np.ndarray, "H W"]:
    """Return the probability of a class at each pixel; 0 where ``where`` is not.

    Args:
        forest: Grown on features of the same scales.
        features: Of the image.
        where: Pixels to judge, such as the tissue: the others cost no time.
        class_id: Which class.

    Raises:
        ValueError: If the forest was not grown on that class, or on other features.
    """
    known = forest.classes_.tolist()
    if class_id not in known:
        raise ValueError(f"the forest knows the classes {known}, not {class_id}")
    result = np.zeros(where.shape, np.float32)
    if where.any():
        result[where] = forest.predict_proba(features[where])[:, known.index(class_id)]
    return result
