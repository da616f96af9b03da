"""What a block head is trained on: at each depth the target's own distribution, behind the true tokens before it.

The loss of a depth is ``CROSS_ENTROPY`` times the cross-entropy of the true token, and for the rest the total variation
between draft and target: 1 minus the acceptance of a sampled draft (Leviathan et al., arXiv 2211.17192). Of the
target's distribution the likeliest tokens are known, and the mass of all others. A depth counts less the further on it
is, as it is reached less often.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from specstream.heads.block import BlockHead
from specstream.heads.depths import Judged, TargetStates, drafted_mask, judge, ranks_of
from specstream.heads.stream_loss import at_places, following_of, wanted_of

CROSS_ENTROPY = 0.1
"""Of a depth's loss, beside total variation."""

FADING = 4.0
"""Depth j counts ``exp(-(j - 1) / FADING)``."""


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
        The total, and means detached: ``accepted_1``, ...
    """
    judged = _depths(head, states, tokens, mask, anchors)
    weights = [math.exp(-at / FADING) for at in range(len(judged))]
    total, parts = tokens.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
    for at, (weight, each) in enumerate(zip(weights, judged, strict=True), 1):
        count, accepted = max(1, len(each.truth)), each.accepted
        entropy = functional.nll_loss(each.logs, each.truth, ignore_index=-1, reduction="sum")
        loss = CROSS_ENTROPY * entropy + (1 - CROSS_ENTROPY) * (1 - accepted).sum()
        total = total + weight / sum(weights) * loss / count
        parts[f"accepted_{at}"] = accepted.detach().sum() / count
    return total, parts


@torch.no_grad()
def block_ranks(head: BlockHead, states: TargetStates, tokens: Tensor, mask: Tensor) -> Tensor:
    """Where the true tokens stood in the drafts, at positions that all depths can judge.

    The arguments are those of ``block_loss``.

    Returns:
        ``[positions, gamma]`` int64, 0 the likeliest, a token that is not drafted last of all.
    """
    return ranks_of(_depths(head, states, tokens, mask, None))


def _depths(head: BlockHead, states: TargetStates, tokens: Tensor, mask: Tensor, anchors: int | None) -> list[Judged]:
    mask = drafted_mask(mask)
    positions = wanted_of(head, tokens, mask).positions
    if anchors is not None and anchors < positions.shape[1]:
        drawn = torch.rand(positions.shape, device=positions.device)
        drawn = drawn.masked_fill(following_of(tokens, mask, positions + 2) < 0, -1.0)
        positions = positions.gather(1, drawn.topk(anchors).indices.sort(1).values)
    ahead = positions[..., None] + torch.arange(1, head.gamma + 2, device=tokens.device)
    true = at_places(tokens, ahead)  # the token behind the anchor, and those of depths 1, 2, ...
    final = head.final_states(states.taps, positions, true[..., 0])
    final = head.chained(final, true[..., 1:-1])
    weight, bias = (None if each is None else each.float() for each in head.head())
    assert weight is not None
    known, found = following_of(tokens, mask, ahead[..., 1:]) >= 0, list[Judged]()
    for at in range(head.gamma):
        here = known[..., at]
        logits = functional.linear(final[:, :, at][here], weight, bias)
        found.append(judge(head, logits, here, ahead[..., at], states, tokens))
    return found
