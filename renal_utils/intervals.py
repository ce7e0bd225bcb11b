"""Intervals: how far a number read off a slide can be trusted, by three plain rules.

A share of objects gets Wilson's interval, a count on an area the exact Poisson interval, and a
mean, a median or a ratio of sums a bootstrap. What is resampled is the unit that varies by itself:
objects of one slide, blocks of its area, or, over several kidneys, donors. The objects of one
donor resemble each other, so that resampling them one by one would promise too much.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
MIN_UNITS = 5  # fewer than these cannot say by resampling how much they vary
RESAMPLES = 2000

Values = Sequence[float | int] | Sequence[np.floating] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval that its data leave it.

    Attributes:
        value: The number; None where there is nothing to compute it from.
        low: Lower end of the interval; None where there is none.
        high: Upper end.
        units: How many units it rests on (objects, blocks, donors).
        method: How the interval was made, or why there is none.
    """

    value: float | None
    low: float | None
    high: float | None
    units: int
    method: str

    def row(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def no_estimate(reason: str, units: int = 0) -> Estimate:
    """Return an estimate without a value, and why."""
    return Estimate(None, None, None, units, reason)


def wilson_share(hits: int, total: int, *, level: float | int = LEVEL) -> Estimate:
    """Return a share with Wilson's score interval (J Am Stat Assoc 22:209, 1927).

    It stays within 0 and 1 and is honest where hits are few or all. The objects are taken as
    independent.

    Args:
        hits: Objects that have what is asked.
        total: All objects.
        level: Confidence, between 0 and 1.

    Raises:
        ValueError: If ``hits`` is not within 0 to ``total``, or the level not between 0 and 1.
    """
    _check_level(level)
    if not 0 <= hits <= total:
        raise ValueError(f"{hits} hits of {total} is no share; expected 0 to {total}")
    if total == 0:
        return no_estimate("no object")
    found = stats.binomtest(hits, total).proportion_ci(level, method="wilson")
    return Estimate(hits / total, float(found.low), float(found.high), total, "Wilson, objects")


def poisson_rate(count: int, amount: float | int, *, level: float | int = LEVEL) -> Estimate:
    """Return a count per amount (an area) with the exact interval of Garwood (Biometrika 28, 1936).

    The objects are taken as lying independently of each other; where they keep their distance, as
    glomeruli do, the interval is rather too wide.

    Args:
        count: Objects counted.
        amount: What they were counted on, above 0, in the unit of the rate.
        level: Confidence, between 0 and 1.

    Raises:
        ValueError: If ``count`` is negative, ``amount`` not positive, or the level out of range.
    """
    _check_level(level)
    if count < 0 or not amount > 0:
        raise ValueError(f"a rate needs a count from 0 and an amount above 0, not {count}/{amount}")
    tail = (1 - level) / 2
    low = float(stats.chi2.ppf(tail, 2 * count)) / 2 if count else 0.0
    high = float(stats.chi2.ppf(1 - tail, 2 * count + 2)) / 2
    return Estimate(count / amount, low / amount, high / amount, count, "exact Poisson, objects")


def bootstrap_mean(values: Values, *, level: float | int = LEVEL, seed: int = 0) -> Estimate:
    """Return the mean of independent values with a bootstrap interval (BCa)."""
    ones = np.ones(len(values))
    return bootstrap_ratio(values, ones, unit="objects", level=level, seed=seed)


def bootstrap_median(values: Values, *, level: float | int = LEVEL, seed: int = 0) -> Estimate:
    """Return the median of independent values with a percentile bootstrap interval."""
    samples = (np.asarray(values, float),)
    return _bootstrap(samples, np.median, "objects", (level, seed, "percentile"))


def bootstrap_ratio(
    numerators: Values,
    denominators: Values,
    *,
    unit: str,
    level: float | int = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Return the ratio of two sums with a bootstrap over the units that they are sums over.

    With a donor's objects and area as one pair, this is the bootstrap clustered by donor: donors
    are drawn again, each with all it has. The interval is bias-corrected and accelerated (Efron,
    J Am Stat Assoc 82:171, 1987). Units whose denominator is 0 say nothing and are left out.

    Args:
        numerators: One a unit.
        denominators: One a unit, not negative.
        unit: What the units are, for ``method``: "donors", "blocks".
        level: Confidence, between 0 and 1.
        seed: Of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: If the two differ in length, a value is not finite, or a denominator negative.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if top.shape != bottom.shape or (bottom < 0).any():
        raise ValueError(
            f"{len(top)} numerators and {len(bottom)} denominators: expected equally many, and "
            "none of the latter below 0"
        )
    samples = (top[bottom > 0], bottom[bottom > 0])
    return _bootstrap(samples, _ratio, unit, (level, seed, "BCa"))


def _ratio(top: np.ndarray, bottom: np.ndarray, axis: int = -1) -> Any:
    return top.sum(axis=axis) / bottom.sum(axis=axis)


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., Any],
    unit: str,
    settings: tuple[float | int, int, str],
) -> Estimate:
    level, seed, method = settings
    _check_level(level)
    if not all(np.isfinite(sample).all() for sample in samples):
        raise ValueError("a value is NaN or infinite; leave such objects out and say so")
    count = len(samples[0])
    if count == 0:
        return no_estimate(f"no {unit}")
    value = float(statistic(*samples, axis=-1))
    if count < MIN_UNITS:
        return Estimate(value, None, None, count, f"none: fewer than {MIN_UNITS} {unit}")
    low, high = _ends(samples, statistic, level, seed, method)
    if math.isnan(low):  # all units equal, so nothing to accelerate by
        low, high = _ends(samples, statistic, level, seed, "percentile")
    return Estimate(value, low, high, count, f"bootstrap, {unit}")


def _ends(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., Any],
    level: float | int,
    seed: int,
    method: str,
) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            batch=max(1, (1 << 22) // len(samples[0])),
            vectorized=True,
            paired=True,
            axis=-1,
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def _check_level(level: float | int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, not {level}; 0.95 is the usual one")
