"""What samples allow to say: intervals by resampling prompts, and a test of whether two runs differ.

Prompts are what is drawn by chance, so prompts are resampled, each with both of the sides that are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import exp, isfinite, sqrt
from typing import Any

import numpy as np

from specstream.evaluation.quality import LEVEL, Estimate, Indices, Values, resampled

FLIPS = 9_999
"""Sign flips that are looked at: all of them where there are no more, else a random part."""


def speed_ratio(own: Values, base: Values, seed: int = 0) -> Estimate | None:
    """The speed of one side over another's, all prompts together.

    Args:
        own: ``[prompts, 2]``, tokens and seconds of every prompt.
        base: likewise, of the same prompts in the same order.
        seed: of the resamples.

    Returns:
        None without prompts; with a single one the interval is unknown, and is said to be from 0 to infinity.
    """
    return ratio_of_ratios([(own, base)], seed)


def ratio_of_ratios(sides: Sequence[tuple[Values, Values]], seed: int = 0) -> Estimate | None:
    """As ``speed_ratio``, of two such ratios: the first's over the second's. With one side it is that ratio."""
    size = len(sides[0][0])
    if not size:
        return None

    def figure(drawn: Indices, axis: int = -1) -> Values:
        """The logarithm of the ratio over some of the prompts."""
        logs = [_log_speed(own[drawn]) - _log_speed(base[drawn]) for own, base in sides]
        return logs[0] - sum(logs[1:])

    value = exp(float(figure(np.arange(size))))
    if size == 1:
        return Estimate(value=value, low=0.0, high=float("inf"))
    from scipy import stats  # type: ignore[import-untyped]

    # Few values, resampled, scatter less than they should, by sqrt((n-1)/n), and how much is badly known from them,
    # which is what Student's t is for. Quantiles of the resamples could not lie outside of what the few prompts show.
    scatter = resampled(figure, size, seed).standard_error * sqrt(size / (size - 1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, size - 1) * scatter)
    return Estimate(value=value, low=value * exp(-reach), high=value * exp(reach))


def plain_estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate as JSON holds it; an interval that is not known is null."""
    if estimate is None:
        return None
    return asdict(estimate) if isfinite(estimate.high) else {"value": estimate.value, "low": None, "high": None}


def median_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """The median of some values, at least one, with a percentile interval by resampling them.

    Args:
        values: such as the ratios of pairs.
        seed: of the resamples.

    Returns:
        With a single value the interval is unknown, and is said to be from 0 to infinity.
    """
    table = np.array(values, np.float64)
    value = float(np.median(table))
    if len(table) == 1:
        return Estimate(value=value, low=0.0, high=float("inf"))

    def figure(drawn: Indices, axis: int = -1) -> Values:
        return np.asarray(np.median(table[drawn], axis=-1))

    low, high = resampled(figure, len(table), seed).confidence_interval
    return Estimate(value=value, low=float(low), high=float(high))


def sign_flips(values: Values, seed: int = 0) -> float:
    """How often flipping the signs of some values gives a sum as far from 0: the p-value of "they scatter around 0".

    Args:
        values: one of each prompt, such as the logarithm of a ratio.
        seed: of the flips, where not all are looked at.
    """
    if len(values) < 2:
        return 1.0
    from scipy import stats

    test = stats.permutation_test(
        (values,), np.sum, vectorized=True, permutation_type="samples", n_resamples=FLIPS, rng=seed
    )
    return float(test.pvalue)


def holm(probabilities: Sequence[float]) -> list[float]:
    """p-values of several tests, such that all of them together are rarely wrong (Holm 1979)."""
    order = sorted(range(len(probabilities)), key=lambda at: probabilities[at])
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[at]))
        adjusted[at] = largest
    return adjusted


def _log_speed(amounts: Values) -> Values:
    sums = amounts.sum(-2)
    return np.asarray(np.log(sums[..., 0]) - np.log(sums[..., 1]))
