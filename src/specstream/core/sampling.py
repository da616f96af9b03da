"""The one place where logits become probabilities.

The order and the rules are those of transformers' ``generate``: repetition penalty, the caller's logits
processors, temperature, top-k, top-p, min-p; so a distribution here is the model's own as users know it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specstream.errors import NumericalError, UsageError, shown

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""``(input_ids [1, n] int64, scores [1, vocab] float32) -> scores``: what transformers calls a LogitsProcessor."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: 0 is greedy decoding; above 0, logits are divided by it.
        top_k: keep the k likeliest tokens (ties with the k-th stay); 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probability reaches this.
        min_p: drop tokens less likely than this times the likeliest.
        repetition_penalty: divide the positive and multiply the negative logits of tokens already in the
            context (CTRL, arXiv 1909.05858); 1.0 changes nothing.
        processors: called on the context and the scores, in order, once per emitted token.

    Raises:
        UsageError: a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    processors: tuple[LogitsProcessor, ...] = ()

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 (greedy) or above"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or a positive count"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0"),
        )
        for name, value, valid, remedy in checks:
            if not valid:
                raise UsageError(f"{name} is {value}; give a value {remedy}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def needs_context(self) -> bool:
        """Whether scores depend on the tokens before, so that every node needs its own context."""
        return self.repetition_penalty != 1 or bool(self.processors)

    def without_processors(self) -> Sampling:
        """The same, for a draft: processors may keep state and are only shown the tokens of the output."""
        return replace(self, processors=())


def process(logits: Tensor, sampling: Sampling, context: Sequence[int]) -> Tensor:
    """Scores ``[vocab]`` float32 after the repetition penalty and the processors, before the temperature."""
    scores = logits.float()
    if not sampling.needs_context:
        return scores
    input_ids = torch.tensor([list(context)], dtype=torch.int64, device=scores.device)
    scores = scores[None].clone()
    if sampling.repetition_penalty != 1:
        seen = scores.gather(1, input_ids)
        penalty = sampling.repetition_penalty
        scores.scatter_(1, input_ids, torch.where(seen < 0, seen * penalty, seen / penalty))
    for processor in sampling.processors:
        scores = _same_shape(processor(input_ids, scores), scores.shape[1], processor)
    return scores[0]


def _same_shape(scores: Any, vocab: int, processor: LogitsProcessor) -> Tensor:
    if isinstance(scores, Tensor) and scores.shape == (1, vocab):
        return scores
    returned = f"scores of the shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else shown(scores)
    name = getattr(processor, "__name__", type(processor).__name__)
    raise UsageError(f"the logits processor {name} returned {returned}; it has to return scores of (1, {vocab})")


def probabilities(logits: Tensor, sampling: Sampling, context: Sequence[int] = ()) -> Tensor:
    """The distribution a token is drawn from.

    Args:
        logits: ``[vocab]``, any float dtype.
        sampling: the transformations; greedy gives a point mass on the argmax.
        context: the tokens before this one; read only if ``sampling.needs_context``.

    Returns:
        ``[vocab]`` float32, sums to 1.

    Raises:
        NumericalError: the logits hold NaN or plus infinity, or no token is left.
    """
    scores = process(logits, sampling, context)
    if not sampling.greedy:  # before the check: a tiny temperature overflows too
        scores = scores / sampling.temperature
    best = scores.max()
    if not torch.isfinite(best):
        if best == -torch.inf and sampling.processors:
            raise NumericalError("the logits processors leave no token: all scores are -inf; leave one finite")
        if torch.isfinite(logits.float().max()):
            raise NumericalError(
                f"the largest logit becomes {best.item()} by temperature {sampling.temperature}, repetition_penalty "
                f"{sampling.repetition_penalty} or a logits processor; give values nearer to 1"
            )
        raise NumericalError(f"the largest logit is {best.item()} (temperature {sampling.temperature}): {_BAD_LOGITS}")
    if sampling.greedy:
        point = torch.zeros_like(scores)
        point[largest(scores)] = 1.0
        return point
    return _truncate(scores, sampling).softmax(-1)


_BAD_LOGITS = "check the weights and the dtype (float16 overflows on some models; try bfloat16 or float32)"
NO_CHOICE = -1
"""Stands for a token where the logits allow none."""


def largest(scores: Tensor) -> Tensor:
    """The argmax of ``[..., vocab]``, int64, the first of equals, or of NaN.

    On the CPU numpy looks for it: of 152,000 numbers in 14 us, torch in 270 (x86 with AVX-512).
    """
    return scores.argmax(-1) if scores.device.type != "cpu" else torch.as_tensor(_numbers(scores).argmax(-1))


def greedy_choices(logits: Tensor) -> Tensor:
    """The argmax of every position: ``[rows, width, vocab]`` -> token ids ``[rows, width]``, still on the device.

    Read them through ``checked``: a bad position counts only where the output meets it, as in plain decoding; it
    may as well lie beyond the row's tree or below a rejected draft.
    """
    choices = largest(logits)
    best = logits.gather(-1, choices[..., None])[..., 0]
    return choices.masked_fill(~torch.isfinite(best), NO_CHOICE)


class Finder:
    """Looks for the tokens with the largest logits of a pass. A runtime may have a faster one."""

    def choices(self, logits: Tensor) -> Tensor | list[list[int]]:
        """``greedy_choices``, still on the device; as lists where they are on the host."""
        return greedy_choices(logits)

    def likeliest(self, logits: Tensor, places: Sequence[tuple[int, int]], k: int) -> list[list[int]]:
        """The ``k`` tokens with the largest of ``logits``, ``[rows, width, vocab]``, the largest first.

        Where the largest is NaN or infinite, the first of them means nothing.

        Args:
            logits: of a pass.
            places: rows and nodes after which to look.
            k: at most ``vocab``.
        """
        rows, nodes = zip(*places, strict=True)
        found: list[list[int]] = logits[list(rows), list(nodes)].topk(k).indices.tolist()
        return found


def _numbers(scores: Tensor) -> Any:
    """As an array of numpy, which knows no bfloat16."""
    return (scores if scores.dtype in (torch.float32, torch.float64) else scores.float()).detach().numpy()


def checked(choice: int) -> int:
    """A token of ``greedy_choices``.

    Raises:
        NumericalError: the logits there hold NaN or plus infinity, or no token is possible.
    """
    if choice == NO_CHOICE:
        raise NumericalError(f"the model's logits hold NaN or infinity: {_BAD_LOGITS}")
    return choice


def draw(distribution: Tensor, generator: torch.Generator) -> int:
    """One token drawn from ``[vocab]``; the generator is the row's own and lives on the CPU."""
    point = torch.rand((), generator=generator, dtype=torch.float64)
    cumulative = distribution.double().cumsum(-1)
    index = int(torch.searchsorted(cumulative, (point * cumulative[-1].cpu()).to(cumulative), right=True))
    if index >= len(distribution) or distribution[index] == 0:  # rounding at the far end of the support
        index = int(distribution.nonzero()[-1])
    return index


def distributions(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """``probabilities`` of many positions at once, without a word to the host.

    Args:
        logits: ``[..., vocab]``, any float dtype.
        sampling: not greedy, and without need of a context.

    Returns:
        ``[..., vocab]`` float32, and whether each sums to 1, ``[...]`` bool: False where ``probabilities`` would raise.
    """
    scores = logits.float() / sampling.temperature
    sound = torch.isfinite(scores.amax(-1))
    return _truncate(scores, sampling).softmax(-1), sound


def draw_each(weights: Tensor, points: Tensor) -> Tensor:
    """``draw`` for every row of ``[rows, vocab]`` with the chance ``[rows]`` float64 in [0, 1): tokens ``[rows]``."""
    cumulative = weights.double().cumsum(-1)
    wanted = points[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    possible = weights.gather(1, drawn[:, None])[:, 0] > 0
    return torch.where(possible, drawn, last)  # rounding at the far end of the support


def _truncate(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores ``[..., vocab]`` without the tokens that top-k, top-p and min-p leave out, which get minus infinity."""
    if 0 < sampling.top_k < scores.shape[-1]:
        kth = scores.topk(sampling.top_k, -1).values[..., -1:]
        scores = scores.masked_fill(scores < kth, -math.inf)
    if sampling.top_p < 1 and scores.dim() == 1:  # of one position, what top-k has left is found and sorted alone
        kept = torch.isfinite(scores).nonzero()[:, 0]
        scores = scores.index_copy(0, kept, _nucleus(scores[kept], sampling.top_p))
    elif sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    if sampling.min_p > 0:
        likelihood = scores.softmax(-1)
        scores = scores.masked_fill(likelihood < sampling.min_p * likelihood.amax(-1, keepdim=True), -math.inf)
    return scores


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    ascending, order = scores.sort(-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[..., -1] = False
    return scores.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)
