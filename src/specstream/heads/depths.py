"""What drafts of several depths are trained on: behind the true tokens before it, each says what the target says there.

Of the target's distributions the likeliest tokens are known, and the mass of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specstream.heads.parallel import ParallelHead
from specstream.heads.published import PublishedHead
from specstream.heads.stream_loss import at_places, in_part


@dataclass(frozen=True, eq=False)
class TargetStates:
    """What the frozen target computed at every position.

    Attributes:
        taps: what went into the tapped layers, ``[rows, length, taps, hidden]``.
        tokens: the likeliest next tokens, ``[rows, length, k]`` int64.
        chances: theirs, of the same shape, float32.
    """

    taps: Tensor
    tokens: Tensor
    chances: Tensor


@dataclass(frozen=True, eq=False)
class Judged:
    """One depth at all places where the true token is known.

    Attributes:
        logs: the draft's log-probabilities, ``[n, vocabulary]``.
        truth: the true tokens in that vocabulary, -1 for one that it lacks.
        here: which of the positions that are drafted from these places are, bool ``[rows, count]``.
        likely: the target's likeliest tokens in that vocabulary, likewise, ``[n, k]``.
        chances: theirs, ``[n, k]``.
    """

    logs: Tensor
    truth: Tensor
    here: Tensor
    likely: Tensor
    chances: Tensor

    @property
    def accepted(self) -> Tensor:
        """How often a sampled draft would be accepted, ``[n]``: the sum of min(target, draft), all others as one."""
        drafted = torch.where(self.likely >= 0, self.said.exp(), 0.0)
        rest = torch.minimum(1 - self.chances.sum(-1), 1 - drafted.sum(-1)).clamp_min(0)
        return torch.minimum(self.chances, drafted).sum(-1) + rest

    @property
    def said(self) -> Tensor:
        """What the draft says of the target's likeliest tokens, as logarithms, ``[n, k]``; 0 of one that it lacks."""
        return torch.where(self.likely >= 0, self.logs.gather(1, self.likely.clamp_min(0)), 0.0)


def drafted_mask(mask: Tensor) -> Tensor:
    """Of tokens to be predicted those that are drafted: an answer's first one comes of the pass over its prompt."""
    return mask & (torch.arange(mask.shape[1], device=mask.device) > mask.int().argmax(1)[:, None])


def judge(
    head: ParallelHead | PublishedHead,
    logits: Tensor,
    here: Tensor,
    places: Tensor,
    states: TargetStates,
    tokens: Tensor,
) -> Judged:
    """One depth.

    Args:
        head: that drafts.
        logits: its, at the places that are ``here``, ``[n, vocabulary]``.
        here: where the true token is known, bool ``[rows, count]``.
        places: at which the target says that token, ``[rows, count]`` int64.
        states: the target's.
        tokens: ``[rows, length]`` int64.
    """
    rows, own = here.nonzero()[:, 0], places[here]
    truth = in_part(head, at_places(tokens, places + 1)[here])
    likely = in_part(head, states.tokens[rows, own])
    return Judged(logits.log_softmax(-1), truth, here, likely, states.chances[rows, own])


def ranks_of(judged: Sequence[Judged]) -> Tensor:
    """Where the true tokens stood in the drafts, at positions that all depths can judge.

    Returns:
        ``[positions, depths]`` int64, 0 the likeliest, a token that is not drafted last of all.
    """
    every, ranks = torch.stack([each.here for each in judged]).all(0), list[Tensor]()
    for each in judged:
        logs, truth = each.logs[every[each.here]], each.truth[every[each.here]]
        own = logs.gather(1, truth.clamp_min(0)[:, None])
        ranks.append((logs > own).sum(1).masked_fill(truth < 0, logs.shape[1]))
    return torch.stack(ranks, 1)
