"""What a block head is trained on: at each depth the target's own distribution, behind the true tokens before it.

The loss of a depth is ``CROSS_ENTROPY`` times the cross-entropy of the true token, and for the rest the total variation
between draft and target: 1 minus the acceptance of a sampled draft (Leviathan et al., arXiv 2211.17192). Of the
target's distribution the likeliest tokens are known, and the mass of all others. A depth counts less the further on it
is, as it is reached less often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from specstream.heads.block import BlockHead
from specstream.heads.stream_loss import at_places, following_of, in_part, wanted_of

CROSS_ENTROPY = 0.1
"""Of a depth's loss, beside total variation."""

FADING = 4.0
"""Depth j counts ``exp(-(j - 1) / FADING)``."""


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
class _Judged:
    """One depth at all places where the true token is known.

    Attributes:
        logs: the draft's log-probabilities, ``[n, vocabulary]``.
        truth: the true tokens in that vocabulary, -1 for one that it lacks.
        accepted: how often a sampled draft would be accepted, ``[n]``.
        confidence: the head's estimate of that, as a logit.
        here: which of the anchors these places are, bool ``[rows, count]``.
    """

    logs: Tensor
    truth: Tensor
    accepted: Tensor
    confidence: Tensor
    here: Tensor


def block_loss(
    head: BlockHead, states: TargetStates, tokens: Tensor, mask: Tensor, anchors: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, a scalar with its graph, and its parts.

    Args:
        head: what is trained.
        states: of the target at these tokens.
        tokens: ``[rows, length]`` int64, padded behind.
        mask: ``[rows, length]`` bool: the tokens to be predicted.
        anchors: positions of a row, drawn by PyTorch's generator, whose blocks are trained on; None for all.

    Returns:
        The total, and means detached: ``accepted_1``, ..., and ``confidence``.
    """
    judged = _depths(head, states, tokens, mask, anchors)
    weights = [math.exp(-at / FADING) for at in range(len(judged))]
    total, sure, parts = tokens.new_zeros((), dtype=torch.float32), list[Tensor](), dict[str, Tensor]()
    for at, (weight, each) in enumerate(zip(weights, judged, strict=True), 1):
        count = max(1, len(each.truth))
        entropy = functional.nll_loss(each.logs, each.truth, ignore_index=-1, reduction="sum")
        loss = CROSS_ENTROPY * entropy + (1 - CROSS_ENTROPY) * (1 - each.accepted).sum()
        total = total + weight / sum(weights) * loss / count
        parts[f"accepted_{at}"] = each.accepted.detach().sum() / count
        sure.append(functional.binary_cross_entropy_with_logits(each.confidence, each.accepted.detach().clamp(0, 1)))
    parts["confidence"] = torch.stack(sure).mean()
    return total + parts["confidence"], {name: part.detach() for name, part in parts.items()}


@torch.no_grad()
def block_ranks(head: BlockHead, states: TargetStates, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the true tokens stood in the drafts, at positions that all depths can judge.

    The arguments are those of ``block_loss``.

    Returns:
        ``[positions, gamma]`` int64, 0 the likeliest, a token that is not drafted last of all. Beside it how likely the
        head holds its first candidate to be accepted, by its confidence and by its probability: ``[2, positions,
        gamma]``.
    """
    judged = _depths(head, states, tokens, mask, None)
    every = torch.stack([each.here for each in judged]).all(0)
    ranks, sure, likely = list[Tensor](), list[Tensor](), list[Tensor]()
    for each in judged:
        here = every[each.here]
        logs, truth = each.logs[here], each.truth[here]
        own = logs.gather(1, truth.clamp_min(0)[:, None])
        ranks.append((logs > own).sum(1).masked_fill(truth < 0, logs.shape[1]))
        sure.append(each.confidence[here].sigmoid())
        likely.append(logs.amax(1).exp())
    return torch.stack(ranks, 1), torch.stack([torch.stack(sure, 1), torch.stack(likely, 1)])


def _depths(head: BlockHead, states: TargetStates, tokens: Tensor, mask: Tensor, anchors: int | None) -> list[_Judged]:
    begin = mask.int().argmax(1)  # the answer's first token comes of the pass over the prompt's last: no draft of it
    mask = mask & (torch.arange(mask.shape[1], device=mask.device) > begin[:, None])
    positions = wanted_of(head, tokens, mask).positions
    if anchors is not None and anchors < positions.shape[1]:
        drawn = torch.rand(positions.shape, device=positions.device)
        drawn = drawn.masked_fill(following_of(tokens, mask, positions + 2) < 0, -1.0)
        positions = positions.gather(1, drawn.topk(anchors).indices.sort(1).values)
    ahead = positions[..., None] + torch.arange(1, head.gamma + 2, device=tokens.device)
    true = at_places(tokens, ahead)  # the token behind the anchor, and those of depths 1, 2, ...
    final = head.final_states(states.taps, positions, true[..., 0], (begin - 1).clamp_min(0))
    final = head.chained(final, true[..., 1:-1])
    weight, bias = (None if each is None else each.float() for each in head.head())
    assert weight is not None
    known, found = following_of(tokens, mask, ahead[..., 1:]), list[_Judged]()
    confidence = head.confidence(final)
    for at in range(head.gamma):
        here = known[..., at] >= 0
        logs = functional.linear(final[:, :, at][here], weight, bias).log_softmax(-1)
        rows, places = here.nonzero()[:, 0], ahead[..., at][here]
        accepted = _accepted(logs, in_part(head, states.tokens[rows, places]), states.chances[rows, places])
        found.append(_Judged(logs, in_part(head, known[..., at][here]), accepted, confidence[..., at][here], here))
    return found


def _accepted(logs: Tensor, places: Tensor, chances: Tensor) -> Tensor:
    """The sum of min(target, draft), ``[n]``, of the target's likeliest tokens and of all others as one."""
    inside = places >= 0
    drafted = torch.where(inside, logs.gather(1, places.clamp_min(0)).exp(), 0.0)
    rest = torch.minimum(1 - chances.sum(-1), 1 - drafted.sum(-1)).clamp_min(0)
    return torch.minimum(chances, drafted).sum(-1) + rest
