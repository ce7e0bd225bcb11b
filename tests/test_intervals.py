import math

import numpy as np
import pytest
from scipy import stats

from renal_utils.intervals import (
    bootstrap_mean,
    bootstrap_median,
    bootstrap_ratio,
    poisson_rate,
    wilson_share,
)


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (3, 17), (80, 400)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_the_root_of_the_score_equation(hits, total, level):
    """Both ends p solve |share - p| = z * sqrt(p (1 - p) / n), the quadratic solved by hand."""
    z = stats.norm.ppf(0.5 + level / 2)
    share = hits / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    root = share * (1 - share) / total + z**2 / (4 * total**2)
    half = z * math.sqrt(root) / (1 + z**2 / total)
    found = wilson_share(hits, total, level=level)
    assert (found.value, found.units) == (share, total)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_poisson_ends_leave_half_of_the_rest_on_each_side():
    for count in (1, 7, 60):
        found = poisson_rate(count, 4.0)
        low, high = found.low * 4, found.high * 4
        assert stats.poisson.sf(count - 1, low) == pytest.approx(0.025)
        assert stats.poisson.cdf(count, high) == pytest.approx(0.025)
        assert found.value == count / 4
    none = poisson_rate(0, 2.0)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(-math.log(0.025) / 2)


def test_the_bootstrap_of_a_mean_agrees_with_students_t_on_many_values():
    values = np.random.default_rng(1).normal(80, 10, 400)
    found = bootstrap_mean(values)
    ends = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(ends, abs=0.15)


def test_resampling_donors_covers_and_resampling_their_objects_does_not():
    """Donors differ by more than the objects within one, as kidneys do."""
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(60):
        donors = [rng.normal(mean, 5, 30) for mean in rng.normal(100, 15, 12)]
        sums, counts = [d.sum() for d in donors], [d.size for d in donors]
        clustered = bootstrap_ratio(sums, counts, unit="donors")
        pooled = bootstrap_mean(np.concatenate(donors))
        hits += clustered.low <= 100 <= clustered.high
        naive += pooled.low <= 100 <= pooled.high
    assert hits >= 50  # 95 of 100 meant; few donors make it somewhat fewer
    assert naive <= 40


def test_a_ratio_weighs_units_by_their_denominators_and_leaves_out_empty_ones():
    tops, bottoms = [1, 4, 9, 2, 3, 0], [1, 2, 3, 4, 5, 0]
    found = bootstrap_ratio(tops, bottoms, unit="blocks")
    assert found.value == pytest.approx(19 / 15)
    assert (found.units, found.method) == (5, "bootstrap, blocks")
    assert found.low < found.value < found.high
    assert found == bootstrap_ratio(tops, bottoms, unit="blocks")
    assert found != bootstrap_ratio(tops, bottoms, unit="blocks", seed=1)


def test_a_median_lies_within_its_interval_and_a_wider_level_is_wider():
    values = np.random.default_rng(2).lognormal(4, 0.4, 90)
    near, far = (bootstrap_median(values, level=level) for level in (0.8, 0.99))
    assert near.value == np.median(values)
    assert far.low < near.low < near.value < near.high < far.high


def test_few_or_equal_units_promise_nothing():
    few = bootstrap_ratio([1, 2, 3, 4], [2, 2, 2, 2], unit="donors")
    assert (few.value, few.low, few.high) == (1.25, None, None)
    assert few.method == "none: fewer than 5 donors"
    equal = bootstrap_mean([3.0] * 8)
    assert (equal.low, equal.high) == (3.0, 3.0)
    assert bootstrap_mean([]).value is None
    assert wilson_share(0, 0).value is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson_share(5, 4),
        lambda: wilson_share(1, 4, level=95),
        lambda: poisson_rate(3, 0),
        lambda: poisson_rate(-1, 1.0),
        lambda: bootstrap_mean([1.0, float("nan")] * 5),
        lambda: bootstrap_ratio([1.0], [1.0, 2.0], unit="donors"),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(ValueError):
        call()
