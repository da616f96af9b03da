"""What samples allow to say: intervals by resampling prompts, and a test of whether two runs differ.

Prompts are what is drawn by chance, so prompts are resampled, each with both of the sides that are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

from specstream.evaluation.quality import LEVEL, RESAMPLES, Estimate

Values = NDArray[np.float64]

EXACT = 12
"""Up to so many prompts all sign flips are looked at, beyond a random part of them."""

FLIPS = 20_000
"""How many of those."""


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
    drawn = np.random.default_rng(seed).integers(size, size=(RESAMPLES, size))

    def figure(weights: Values | None) -> Values:
        logs = [_log_speed(own, weights) - _log_speed(base, weights) for own, base in sides]
        total: Values = np.exp(logs[0] - sum(logs[1:]))
        return total

    value = float(figure(None))
    if size == 1:
        return Estimate(value=value, low=0.0, high=float("inf"))
    weights = np.stack([np.bincount(each, minlength=size) for each in drawn]).astype(np.float64)
    reach = _quantile(size) * float(np.std(np.log(figure(weights))))
    return Estimate(value=value, low=value * exp(-reach), high=value * exp(reach))


def sign_flips(values: Values, seed: int = 0) -> float:
    """How often flipping the signs of some values gives a sum as far from 0: the p-value of "they scatter around 0".

    Args:
        values: one of each prompt, such as the logarithm of a ratio.
        seed: of the flips, where not all are looked at.
    """
    size = len(values)
    if not size:
        return 1.0
    reached = abs(values.sum()) * (1 - 1e-12)
    if size <= EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=size)))
        return float(np.mean(abs(signs @ values) >= reached))
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(FLIPS, size))
    return float((1 + np.sum(abs(signs @ values) >= reached)) / (1 + FLIPS))


def holm(probabilities: Sequence[float]) -> list[float]:
    """p-values of several tests, such that all of them together are rarely wrong (Holm 1979)."""
    order = sorted(range(len(probabilities)), key=lambda at: probabilities[at])
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[at]))
        adjusted[at] = largest
    return adjusted


def student(probability: float, freedom: int) -> float:
    """The quantile of Student's t: its density is cos^(n-1) of an angle whose tangent is t / sqrt(n)."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.tan(np.interp(probability, below / below[-1], angles)) * sqrt(freedom))


def _quantile(size: int) -> float:
    """What to multiply a standard deviation over resamples with.

    Few values, resampled, scatter less than they should, by sqrt((n-1)/n), and how much is badly known from them, which
    is what Student's t is for. Quantiles of the resamples could not lie outside of what the few prompts show.
    """
    return sqrt(size / (size - 1)) * student((1 + LEVEL) / 2, size - 1)


def _log_speed(amounts: Values, weights: Values | None) -> Values:
    sums = amounts.sum(0) if weights is None else weights @ amounts
    return np.asarray(np.log(sums[..., 0]) - np.log(sums[..., 1]))
