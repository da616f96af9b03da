from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from specstream.evaluation.statistics import holm, ratio_of_ratios, sign_flips, speed_ratio


def test_the_ratio_is_of_sums():
    own, base = np.array([[10, 1.0], [30, 1.0]]), np.array([[10, 2.0], [30, 6.0]])
    estimate = speed_ratio(own, base)
    assert estimate is not None
    assert estimate.value == pytest.approx((40 / 2) / (40 / 8))
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.low < 2 < 6 < estimate.high, "two prompts say next to nothing about others"
    assert estimate.low * estimate.high == pytest.approx(estimate.value**2)


def test_no_prompt_and_one_prompt_say_so():
    assert speed_ratio(np.zeros((0, 2)), np.zeros((0, 2))) is None
    estimate = speed_ratio(np.array([[10, 1.0]]), np.array([[10, 3.0]]))
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(3), 0, math.inf)


def test_equal_sides_have_no_interval():
    own = np.array([[10, 1.0], [30, 7.0], [5, 2.0]])
    estimate = ratio_of_ratios([(own, own)])
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("size", [4, 8, 24])
def test_intervals_cover(size):
    """The true ratio is in 95 % of the intervals; quantiles of the resamples have 87 % at 4 prompts."""
    chance = np.random.default_rng(3)
    truth = 1.5 * math.exp(-(0.2**2) / 2)  # seconds add up, so it is the harmonic mean of the gains
    covered = 0
    for trial in range(300):
        tokens = np.full(size, 64.0)
        base = np.stack([tokens, chance.gamma(40, 1 / 40, size)], 1)
        gains = chance.lognormal(math.log(1.5), 0.2, size)
        own = np.stack([tokens, base[:, 1] / gains], 1)
        estimate = speed_ratio(own, base, seed=trial)
        assert estimate is not None
        covered += estimate.low <= truth <= estimate.high
    assert 0.9 <= covered / 300 <= 0.99


def test_an_interval_of_small_gains_is_students():
    gains = 1 + 0.01 * np.array([0.3, -1.1, 0.8, 1.9, -0.4, 0.2])
    base = np.stack([np.full(6, 64.0), np.ones(6)], 1)
    estimate = speed_ratio(base * np.stack([np.ones(6), 1 / gains], 1), base)
    assert estimate is not None
    reach = stats.t.ppf(0.975, 5) * gains.std(ddof=1) / math.sqrt(6)
    assert math.log(estimate.high / estimate.value) == pytest.approx(reach, rel=0.05)


def test_sign_flips_are_counted():
    assert sign_flips(np.array([1.0, 2.0, 3.0])) == 2 / 8, "all of one sign, either way"
    assert sign_flips(np.array([1.0, -1.0])) == 1
    assert sign_flips(np.array([])) == 1
    many = np.random.default_rng(0).normal(0.5, 1, 40)
    expected = stats.permutation_test(
        (many,), np.mean, permutation_type="samples", n_resamples=20_000, random_state=1
    ).pvalue
    assert sign_flips(many) == pytest.approx(expected, abs=0.005)


def test_sign_flips_seldom_see_what_is_not_there():
    chance = np.random.default_rng(1)
    seen = sum(sign_flips(chance.normal(0, 1, 9)) < 0.05 for _ in range(400))
    assert seen / 400 < 0.08


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
