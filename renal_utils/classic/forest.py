"""A random forest (Breiman 2001): many decision trees that each saw other data, and vote.

Each tree is grown on a sample of the data drawn with replacement. Each of its nodes tries a few
features drawn at random, and asks the one question ``is feature f above t?`` that parts the classes
best (Gini impurity, sum of p (1 - p)). Trees overfit; the mean of many different ones does less.

Features are cut into ``BINS`` classes of equal frequency first. A node then only has to count, and
all nodes of a depth are grown at once by NumPy. scikit-learn's exact trees would need a dependency
more, and that the thresholds lie on quantiles changes little with thousands of pixels.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, Int64, Integer, UInt8

BINS = 64
_CHUNK = 16_384  # rows classified at once, so that they stay in the processor's cache

Binned = UInt8[np.ndarray, "N F"]


@dataclass(frozen=True)
class Forest:
    """Grown trees; node i has the children 2i+1 (no) and 2i+2 (yes).

    Attributes:
        edges: Borders of the bins of each feature.
        features: Which feature a node asks for; -1 in a leaf.
        thresholds: The question is ``bin > threshold``.
        shares: Share of each class among what reached the node in training.
        importance: How much each feature lowered the impurity; sums to 1.
    """

    edges: Float[np.ndarray, "F edges"] = field(repr=False)
    features: Int[np.ndarray, "T nodes"] = field(repr=False)
    thresholds: UInt8[np.ndarray, "T nodes"] = field(repr=False)
    shares: Float[np.ndarray, "T nodes K"] = field(repr=False)
    importance: Float[np.ndarray, " F"] = field(repr=False)

    def predict(self, values: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N K"]:
        """Return the probability of each class: the mean of the leaves that a row falls into.

        Raises:
            ValueError: If the rows have other features than those of the training, or a NaN.
        """
        if values.shape[1] != len(self.edges):
            raise ValueError(f"{values.shape[1]} features, but the forest has {len(self.edges)}")
        result = np.empty((len(values), self.shares.shape[2]), np.float32)
        for start in range(0, len(values), _CHUNK):
            binned = _bin(values[start : start + _CHUNK], self.edges)
            result[start : start + _CHUNK] = self._vote(binned)
        return result

    def _vote(self, binned: Binned) -> Float[np.ndarray, "N K"]:
        rows = np.arange(len(binned))
        total = np.zeros((len(binned), self.shares.shape[2]), self.shares.dtype)
        depth = int(np.log2(self.features.shape[1] + 1)) - 1
        for asked, threshold, share in zip(
            self.features, self.thresholds, self.shares, strict=True
        ):
            node = np.zeros(len(binned), np.int64)
            for _ in range(depth):
                feature = asked[node]
                answer = binned[rows, feature] > threshold[node]
                node = np.where(feature < 0, node, 2 * node + 1 + answer)
            total += share[node]
        return (total / len(self.features)).astype(np.float32)


def grow_forest(
    values: Float[np.ndarray, "N F"],
    classes: Integer[np.ndarray, " _"],
    *,
    trees: int = 30,
    depth: int = 10,
    min_rows: int = 5,
    seed: int = 0,
) -> Forest:
    """Grow a forest; the same seed gives the same one.

    Args:
        values: One row an example, one column a feature.
        classes: Class of each row, 0 to K - 1.
        trees: How many.
        depth: Questions from root to leaf, at most.
        min_rows: A node with fewer rows asks nothing more.
        seed: Draws rows and features.

    Raises:
        ValueError: If rows and classes differ in number, there is one class only, a value is NaN,
            or depth or trees are not positive.
    """
    _check(values, classes, trees, depth)
    rng = np.random.default_rng(seed)
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    edges = np.quantile(values, inner, axis=0).T.astype(np.float32)
    binned = _bin(values, edges)
    grown = []
    for _ in range(trees):
        drawn = rng.integers(0, len(values), len(values))
        rows = binned[drawn], classes[drawn].astype(np.int64)
        grown.append(_grow(*rows, int(classes.max()) + 1, depth, min_rows, rng))
    features, thresholds, shares, gains = map(np.stack, zip(*grown, strict=True))
    gain = gains.sum(axis=0)
    return Forest(edges, features, thresholds, shares, gain / max(gain.sum(), 1e-12))


def _check(values: np.ndarray, classes: np.ndarray, trees: int, depth: int) -> None:
    if len(values) != len(classes):
        raise ValueError(f"{len(values)} rows, but {len(classes)} classes; give one for each row")
    if len(np.unique(classes)) < 2 or classes.min() < 0:
        raise ValueError(
            f"classes {np.unique(classes).tolist()}: a forest needs two or more, counted from 0"
        )
    if trees < 1 or not 1 <= depth <= 16:
        raise ValueError(f"{trees} trees of depth {depth}: give one or more, of depth 1 to 16")


def _bin(values: Float[np.ndarray, "N F"], edges: Float[np.ndarray, "F edges"]) -> Binned:
    """Return the bin of each value: how many borders lie below it."""
    if not np.isfinite(values).all():
        raise ValueError("a feature is NaN or infinite; look at the image it was computed from")
    binned = np.empty(values.shape, np.uint8)
    for feature, borders in enumerate(edges):
        binned[:, feature] = np.searchsorted(borders, values[:, feature], side="left")
    return binned


def _grow(
    binned: Binned,
    classes: Int64[np.ndarray, " N"],
    num_classes: int,
    depth: int,
    min_rows: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grow one tree, a depth at a time; return features, thresholds, shares, gain by feature."""
    nodes, number = 2 ** (depth + 1) - 1, binned.shape[1]
    asked, threshold = np.full(nodes, -1), np.zeros(nodes, np.uint8)
    shares, gains = np.zeros((nodes, num_classes), np.float32), np.zeros(number)
    tries = max(1, round(number**0.5))
    node = np.zeros(len(binned), np.int64)
    alive = np.ones(len(binned), bool)
    for level in range(depth + 1):
        first, width = 2**level - 1, 2**level
        place = node[alive] - first
        counts = _count(place, classes[alive], (width, num_classes))
        shares[first : first + width] = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        if level == depth:
            break
        features = rng.integers(0, number, (width, tries))
        gain, best, cut = _best_cut(binned[alive], classes[alive], place, features, counts)
        splits = (gain > 1e-9) & (counts.sum(1) >= min_rows)
        asked[first : first + width][splits] = best[splits]
        threshold[first : first + width] = cut
        np.add.at(gains, best[splits], gain[splits])
        alive &= asked[node] >= 0
        answer = binned[alive, asked[node[alive]]] > threshold[node[alive]]
        node[alive] = 2 * node[alive] + 1 + answer
    return asked, threshold, shares, gains


def _best_cut(
    binned: Binned,
    classes: Int64[np.ndarray, " N"],
    place: Int64[np.ndarray, " N"],
    features: Int[np.ndarray, "nodes tries"],
    counts: Float[np.ndarray, "nodes K"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each node the largest gain, its feature and its threshold.

    With counts c of n rows the impurity n (1 - sum p^2) is n - sum c^2 / n, so the gain of a cut is
    the sum of c^2 / n over both sides less that of the node.
    """
    nodes, num_classes = counts.shape
    rows = np.arange(len(binned))
    whole = _purity(counts)
    best: tuple[np.ndarray, np.ndarray, np.ndarray]
    best = np.zeros(nodes), np.zeros(nodes, np.int64), np.zeros(nodes, np.uint8)
    for feature in features.T:
        bins = binned[rows, feature[place]].astype(np.int64)
        table = _count(place * BINS + bins, classes, (nodes * BINS, num_classes))
        below = table.reshape(nodes, BINS, num_classes).cumsum(axis=1)
        gain = _purity(below) + _purity(counts[:, None] - below) - whole[:, None]
        cut = gain.argmax(axis=1)
        value = gain[np.arange(nodes), cut]
        better = value > best[0]
        for kept, new in zip(best, (value, feature, cut.astype(np.uint8)), strict=True):
            kept[better] = new[better]
    return best


def _purity(counts: Float[np.ndarray, "*shape K"]) -> Float[np.ndarray, "*shape"]:
    return (counts**2).sum(axis=-1) / np.maximum(counts.sum(axis=-1), 1)


def _count(
    places: Int64[np.ndarray, " N"], classes: Int64[np.ndarray, " N"], size: tuple[int, int]
) -> Float[np.ndarray, "places K"]:
    """Return how many rows of each class are at each place."""
    flat = np.bincount(places * size[1] + classes, minlength=size[0] * size[1])
    return flat.reshape(size).astype(np.float64)
