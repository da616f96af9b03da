"""How good answers are: one metric a line, each as sums over examples, so that every resample is a sum again.

A metric gives numbers for each example and a function from their sums to a figure. For exact match and ROUGE the
number is the score; for BLEU they are what sacrebleu counts, as BLEU of a corpus is no mean of sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specstream.environment import require
from specstream.errors import UsageError
from specstream.evaluation.tasks.task import Metric

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

RESAMPLES = 2000
"""Of a bootstrap."""

LEVEL = 0.95
"""Of an interval."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and the interval that a bootstrap over examples gives it.

    Attributes:
        value: of all examples.
        low: the interval's lower end.
        high: its upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """A metric.

    Attributes:
        count: an answer and its references -> the numbers of that example.
        figure: their sums ``[..., n]`` over some examples, and how many those are -> figures ``[...]``, from 0 to 100.
    """

    count: Callable[[str, Sequence[str]], list[float]]
    figure: Callable[[Values, int], Values]


def counted(metric: Metric, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Values:
    """The numbers of all examples, ``[examples, n]``.

    Raises:
        MissingPackageError: the package that computes the metric is not installed.
    """
    judge = _judge(metric)
    return np.array([judge.count(answer, own) for answer, own in zip(answers, references, strict=True)], np.float64)


def estimate(metric: Metric, numbers: Values, seed: int = 0) -> Estimate:
    """A metric over examples, from 0 to 100, with a percentile interval.

    Args:
        metric: its name.
        numbers: from ``counted``.
        seed: of the resamples.
    """
    figure, size = _judge(metric).figure, len(numbers)
    return _estimate(lambda drawn, axis=-1: figure(numbers[drawn].sum(-2), size), size, seed)


def difference(metric: Metric, numbers: Values, others: Values, seed: int = 0) -> Estimate:
    """How much more ``numbers`` give than ``others`` on the same examples, resampled in pairs.

    Args:
        metric: its name.
        numbers: from ``counted``.
        others: likewise, the same examples in the same order.
        seed: of the resamples.
    """
    figure, size = _judge(metric).figure, len(numbers)
    return _estimate(
        lambda drawn, axis=-1: figure(numbers[drawn].sum(-2), size) - figure(others[drawn].sum(-2), size), size, seed
    )


def resampled(figure: Callable[..., Values], size: int, seed: int) -> Any:
    """A figure over resamples, by scipy's bootstrap.

    Args:
        figure: ``(drawn, axis) -> figures [...]``, of the indices ``drawn``, ``[..., size]`` int64.
        size: how many there are, at least 2.
        seed: of the draws, which are the same for the same seed and size.
    """
    from scipy import stats  # type: ignore[import-untyped]  # here: it takes a second to import

    return stats.bootstrap(
        (np.arange(size),), figure, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", rng=seed
    )


def final_number(text: str) -> Decimal | None:
    """The number that an answer ends in: the first behind its last "####", "answer is" or "boxed", else the last."""
    marked = re.split(r"####|answer is:?|\\boxed\{", text, flags=re.IGNORECASE)
    numbers = re.findall(r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?", marked[-1])
    if len(marked) == 1 or not numbers:
        numbers = re.findall(r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?", text)[-1:]
    try:
        return Decimal(numbers[0].replace(",", "")) if numbers else None
    except InvalidOperation:
        return None


def normalised(text: str) -> str:
    """SQL without what does not matter: case, spaces, a semicolon at the end."""
    return re.sub(r"\s+", " ", text).strip().removesuffix(";").strip().lower()


def _estimate(figure: Callable[..., Values], size: int, seed: int) -> Estimate:
    value = float(figure(np.arange(size)))
    if size == 1:  # every resample is that example
        return Estimate(value=value, low=value, high=value)
    low, high = resampled(figure, size, seed).confidence_interval
    return Estimate(value=value, low=float(low), high=float(high))


def _judge(metric: Metric) -> _Judge:
    if metric == "exact_match":
        return _Judge(count=_exact, figure=_percent)
    if metric == "exact_answer":
        return _Judge(count=_exact_answer, figure=_percent)
    if metric == "pass@1":
        return _Judge(count=_not_counted, figure=_percent)
    if metric == "bleu":
        return _bleu()
    return _rouge(metric)


def _exact(answer: str, references: Sequence[str]) -> list[float]:
    return [float(normalised(answer) in map(normalised, references))]


def _exact_answer(answer: str, references: Sequence[str]) -> list[float]:
    found = final_number(answer)
    return [float(found is not None and found in map(final_number, references))]


def _not_counted(answer: str, references: Sequence[str]) -> list[float]:
    raise UsageError("the metric pass@1 runs programs; give the task to: specstream evaluate --execute-code")


def _percent(sums: Values, examples: int) -> Values:
    return 100 * sums[..., 0] / examples


def _rouge(metric: Metric) -> _Judge:
    """F1 with stemming, of the reference that fits best."""
    scorer = require("rouge_score.rouge_scorer", "eval", f"the metric {metric}").RougeScorer([metric], use_stemmer=True)

    def count(answer: str, references: Sequence[str]) -> list[float]:
        return [float(scorer.score_multi(references, answer)[metric].fmeasure)]

    return _Judge(count=count, figure=_percent)


def _bleu() -> _Judge:
    """Of the corpus, as sacrebleu computes it: matched and possible n-grams, and the lengths."""
    kind: Any = require("sacrebleu.metrics", "eval", "the metric bleu").BLEU
    bleu = kind()
    orders = int(bleu.max_ngram_order)

    def count(answer: str, references: Sequence[str]) -> list[float]:
        found = bleu.corpus_score([answer], [[each] for each in references])
        return [*map(float, found.counts), *map(float, found.totals), float(found.sys_len), float(found.ref_len)]

    def figure(sums: Values, examples: int) -> Values:
        rows = sums.reshape(-1, sums.shape[-1]).astype(int).tolist()
        scores = [
            kind.compute_bleu(
                correct=row[:orders],
                total=row[orders:-2],
                sys_len=row[-2],
                ref_len=row[-1],
                smooth_method=bleu.smooth_method,
                smooth_value=bleu.smooth_value,
                effective_order=bleu.effective_order,
                max_ngram_order=orders,
            ).score
            for row in rows
        ]
        return np.array(scores).reshape(sums.shape[:-1])

    return _Judge(count=count, figure=figure)
