"""What an EAGLE-3 head is trained on: it drafts as it will, each step from its own output of the step before.

After the training-time test of Li et al. (arXiv 2503.01840). The first step reads the target's states at all positions.
Step k of a draft behind position p stands at p + k - 1, and sees the first step's keys up to p and its own chain's
since. The tokens are the true ones: behind a wrong one nothing is accepted. The loss of a step is the cross-entropy to
the target's distribution over the drafted tokens; step k counts ``DECAY ** (k - 1)``.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from specstream.heads.depths import Judged, TargetStates, drafted_mask, judge, ranks_of
from specstream.heads.eagle import EagleHead
from specstream.heads.stream_loss import at_places, following_of, states_at, wanted_of

DECAY = 0.8
"""The authors'."""

KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Of attention on a GPU. cuDNN's plans every new shape, and all batches have others: a step took 5 seconds."""


def eagle_loss(head: EagleHead, states: TargetStates, tokens: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, a scalar with its graph, and its parts.

    Args:
        head: what is trained.
        states: of the target at these tokens.
        tokens: ``[rows, length]`` int64, padded behind.
        mask: ``[rows, length]`` bool: the tokens to be predicted.

    Returns:
        The total, and means detached: ``accepted_1``, ...
    """
    judged = _depths(head, states, tokens, mask)
    weights = [DECAY**at for at in range(len(judged))]
    total, parts = tokens.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
    for at, (weight, each) in enumerate(zip(weights, judged, strict=True), 1):
        count = max(1, len(each.truth))
        total = total - weight / sum(weights) * (each.chances * each.said).sum() / count
        parts[f"accepted_{at}"] = each.accepted.detach().sum() / count
    return total, parts


@torch.no_grad()
def eagle_ranks(head: EagleHead, states: TargetStates, tokens: Tensor, mask: Tensor) -> Tensor:
    """Where the true tokens stood in the drafts, ``[positions, gamma]`` int64; the arguments are ``eagle_loss``'s."""
    return ranks_of(_depths(head, states, tokens, mask))


def unrolled(head: EagleHead, taps: Tensor, tokens: Tensor, positions: Tensor) -> list[Tensor]:
    """What each step puts out of drafts behind some positions, differentiable.

    Args:
        head: that drafts.
        taps: the target's states, ``[rows, length, taps, hidden]``.
        tokens: ``[rows, length]`` int64.
        positions: ``[rows, count]`` int64: the last ones with a state of the target's.

    Returns:
        ``gamma`` outputs ``[rows, count, width]``, not normed.
    """
    every = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    hidden, at, seen = head.combined(taps.flatten(0, 1)), every, every[:, None] <= every[..., None]
    chain = torch.eye(positions.shape[1], dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
    keys, values, outputs = list[Tensor](), list[Tensor](), list[Tensor]()
    for step in range(head.gamma):
        if step:
            at = positions + step
            seen = torch.cat([every[:, None] <= positions[..., None], *[chain] * step], -1)
        residual, *own = head.queried(hidden, at_places(tokens, at + 1).flatten(), at.flatten())
        query, key, value = (
            torch.unflatten(each, 0, at.shape).transpose(1, 2) for each in own
        )  # [rows, heads, n, dim]
        keys.append(key)
        values.append(value)
        with sdpa_kernel(KERNELS) if tokens.is_cuda else nullcontext():
            found = functional.scaled_dot_product_attention(
                query, torch.cat(keys, 2), torch.cat(values, 2), attn_mask=seen[:, None], enable_gqa=True
            )
        output = torch.unflatten(head.finished(residual, found.transpose(1, 2).flatten(2).flatten(0, 1)), 0, at.shape)
        outputs.append(output if step else states_at(output, positions))
        hidden = head.fed_back(outputs[-1]).flatten(0, 1)
    return outputs


def _depths(head: EagleHead, states: TargetStates, tokens: Tensor, mask: Tensor) -> list[Judged]:
    mask = drafted_mask(mask)
    positions, found = wanted_of(head, tokens, mask).positions, list[Judged]()
    for step, output in enumerate(unrolled(head, states.taps, tokens, positions), 1):
        here = following_of(tokens, mask, positions + step + 1) >= 0
        found.append(judge(head, head.logits(output[here]), here, positions + step, states, tokens))
    return found
