"""The exact distribution of several generated tokens, and whether samples could have come from it.

What a token is drawn from is computed with transformers' own processors, so nothing of `core` judges itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specstream.core.sampling import Sampling
from tests.lossless.table_model import TableModel

P_VALUE = 1e-4
"""A correct sampler fails the chi-squared test with this probability; the seeds are fixed, so it does so never or
always."""

TV_RISK = 1e-6
"""A correct sampler exceeds the bound on the total variation with at most this probability."""

Next = Callable[[Sequence[int]], Tensor]
"""context -> the exact distribution ``[vocab]`` of the next token, float64."""


def generates_list(sampling: Sampling) -> LogitsProcessorList:
    """The processors that transformers' generate would apply, in its order."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.extend(sampling.processors)
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors


def exact_next(model: TableModel, sampling: Sampling) -> Next:
    processors = generates_list(sampling)

    def distribution(context: Sequence[int]) -> Tensor:
        scores = processors(torch.tensor([list(context)]), model.logits(context)[None].clone())
        return scores[0].double().softmax(-1)

    return distribution


def joint(
    following: Next, prompt: Sequence[int], length: int, ends: frozenset[int] = frozenset()
) -> dict[tuple[int, ...], float]:
    """Every continuation that can happen, of ``length`` tokens or up to one of ``ends``, with its probability."""
    running, ended = {(): 1.0}, {}
    for _ in range(length):
        continued = {
            (*tokens, token): probability * share
            for tokens, probability in running.items()
            for token, share in enumerate(following([*prompt, *tokens]).tolist())
            if share > 0
        }
        ended |= {tokens: share for tokens, share in continued.items() if tokens[-1] in ends}
        running = {tokens: share for tokens, share in continued.items() if tokens[-1] not in ends}
    return ended | running


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Samples against the distribution they should have come from.

    Attributes:
        p_value: of the chi-squared test over the cells that expect at least 5 samples, all others merged into one.
        distance: total variation between the frequencies and the distribution.
        bound: ``E[distance] + sqrt(ln(1 / TV_RISK) / 2n)`` (McDiarmid), with the expectation bounded by
            ``sum(sqrt(p (1 - p) / n)) / 2``.
        impossible: samples that have no probability at all.
        cells: how many cells the chi-squared test had.
    """

    p_value: float
    distance: float
    bound: float
    impossible: int
    cells: int

    @property
    def matches(self) -> bool:
        return not self.impossible and self.p_value >= P_VALUE and self.distance <= self.bound


def compare(counts: Mapping[tuple[int, ...], int], exact: Mapping[tuple[int, ...], float]) -> Comparison:
    total = sum(counts.values())
    cells = [(counts.get(cell, 0), probability * total) for cell, probability in exact.items()]
    large = [cell for cell in cells if cell[1] >= 5]
    small = [cell for cell in cells if cell[1] < 5]
    if small:
        large.append((sum(cell[0] for cell in small), sum(cell[1] for cell in small)))
    possible = sum(cell[0] for cell in cells)
    observed = [cell[0] for cell in large]
    # The test wants equal sums; impossible samples are counted apart and fail the comparison by themselves.
    expected = [cell[1] * possible / total for cell in large]
    p_value = float(stats.chisquare(observed, expected).pvalue) if possible and len(large) > 1 else 1.0
    distance = (sum(abs(seen - wanted) for seen, wanted in cells) + total - possible) / 2 / total
    expectation = sum(math.sqrt(p * max(0.0, 1 - p) / total) for p in exact.values()) / 2
    bound = expectation + math.sqrt(math.log(1 / TV_RISK) / 2 / total)
    return Comparison(p_value=p_value, distance=distance, bound=bound, impossible=total - possible, cells=len(large))


def frequencies(samples: Sequence[Sequence[int]]) -> Counter[tuple[int, ...]]:
    return Counter(map(tuple, samples))
