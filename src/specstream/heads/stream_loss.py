"""What streams are trained on: stream j of position t says the token y_{t+1+j}, teacher-forced.

After Bhendawade et al. (arXiv 2402.11131), equation 3: the next token's loss, where the base is trained with them, plus
``weight`` times each stream's. The head is most of the work for a small model with a large vocabulary, so its logits
are computed in chunks, over the streams' own vocabulary, and only where there is something to learn; a frozen head's
gradient is taken while a chunk's logits are there.

The paper learns from the tokens alone. ``soften`` mixes in what the base itself says at the place that a stream
guesses: more to learn from each position, for one more look at the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from specstream.heads.multistream import MainStream
from specstream.heads.parallel import ParallelHead
from specstream.heads.published import PublishedHead
from specstream.heads.streams import Streams

LOGITS_AT_ONCE = 1 << 26
"""Logits of a chunk: 256 MB in float32, and as much again for their gradient."""


@dataclass(frozen=True)
class Wanted:
    """Which tokens to predict, and from where.

    Attributes:
        positions: ``[rows, count]`` int64.
        following: the tokens behind them, of the same shape.
        targets: what follows each position by 2, 3, ... tokens, in the streams' vocabulary: ``[rows, count, gamma]``;
            -1 where there is nothing to predict.
    """

    positions: Tensor
    following: Tensor
    targets: Tensor


def stream_loss(
    streams: Streams,
    tokens: Tensor,
    mask: Tensor,
    *,
    main: MainStream | None = None,
    soften: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its parts.

    Args:
        streams: what is trained. In the shared mode gradients reach whatever of the base asks for them too.
        tokens: ``[rows, length]`` int64, padded behind.
        mask: ``[rows, length]`` bool: the tokens to be predicted (answers, not prompts and no padding).
        main: the base's pass over the tokens, if it is there already.
        soften: how much of a stream's target is the base's distribution, from 0, the token alone, to 1.

    Returns:
        A scalar with its graph, and means over what was predicted, detached: ``stream_1`` ..., with an early exit
        ``early``, in the shared mode ``next``.
    """
    main = streams.read(tokens) if main is None else main
    wanted = wanted_of(streams, tokens, mask)
    final = _final_states(streams, main, tokens, wanted)
    parts = {}
    for j in range(1, streams.gamma + 1):
        teacher = states_at(main.final, wanted.positions + j).detach() if soften else None
        parts[f"stream_{j}"] = _mean(streams, final[:, :, j - 1], wanted.targets[:, :, j - 1], teacher, soften)
    if streams.early_exit is not None:
        parts["early"] = _early_loss(streams, main, wanted.positions, (tokens, mask), soften)
    total = streams.config.weight * torch.stack(list(parts.values())).sum()
    if streams.config.mode == "shared":
        parts["next"] = _next_loss(streams, main.final, tokens, mask)
        total = total + parts["next"]
    return total, {name: part.detach() for name, part in parts.items()}


def early_exit_loss(
    streams: Streams, tokens: Tensor, mask: Tensor, *, main: MainStream | None = None, soften: float = 0.0
) -> Tensor:
    """The early exit's loss alone, a scalar with its graph: no stream runs. Arguments as of ``stream_loss``."""
    main = streams.read(tokens) if main is None else main
    return _early_loss(streams, main, _but_the_last(tokens), (tokens, mask), soften)


@torch.no_grad()
def early_exit_chances(streams: Streams, tokens: Tensor, mask: Tensor, main: MainStream | None = None) -> Tensor:
    """What the early exit gives the true tokens; arguments as of ``stream_ranks``.

    Returns:
        ``[positions]`` float32, probabilities among the tokens that streams draft; of no others.
    """
    assert streams.early_exit is not None
    main = streams.read(tokens) if main is None else main
    targets = in_part(streams, following_of(tokens, mask, _but_the_last(tokens) + 1))
    there = targets >= 0
    states, wanted = streams.early_exit(main.states[:, :-1])[there], targets[there]
    weight, bias = streams.head()
    chances = [states.new_zeros(0, dtype=torch.float32)]
    for rows, aims, _ in _chunks(states, wanted, weight):
        shares = functional.linear(rows, weight, bias).float().softmax(-1)
        chances.append(shares.gather(1, aims[:, None])[:, 0])
    return torch.cat(chances)


def _but_the_last(tokens: Tensor) -> Tensor:
    """All positions ``[rows, length - 1]`` with a token behind them."""
    return torch.arange(tokens.shape[1] - 1, device=tokens.device).expand(len(tokens), -1)


@torch.no_grad()
def stream_ranks(streams: Streams, tokens: Tensor, mask: Tensor, main: MainStream | None = None) -> Tensor:
    """Where the true tokens stood in the streams' drafts (0 is the likeliest), at positions that all streams can judge.

    Args:
        streams: what is judged.
        tokens: ``[rows, length]`` int64, written by the target itself, padded behind.
        mask: ``[rows, length]`` bool: the tokens to be predicted.
        main: the base's pass over the tokens, if it is there already.

    Returns:
        ``[positions, gamma]`` int64; a token that the streams' vocabulary lacks has its size for a rank.
    """
    main = streams.read(tokens) if main is None else main
    wanted = wanted_of(streams, tokens, mask)
    final = _final_states(streams, main, tokens, wanted)
    ahead = wanted.positions[..., None] + torch.arange(2, streams.gamma + 2, device=tokens.device)
    judged = (following_of(tokens, mask, ahead) >= 0).all(-1)
    states, targets = final[judged], wanted.targets[judged]
    weight, bias = streams.head()
    ranks = []
    for rows, wished, _ in _chunks(states.flatten(0, 1), targets.flatten(), weight):
        logits = functional.linear(rows, weight, bias)
        own = logits.gather(1, wished.clamp_min(0)[:, None])
        ranks.append((logits > own).sum(1).masked_fill(wished < 0, len(weight)))
    return torch.cat(ranks).view(-1, streams.gamma) if ranks else targets


def _early_loss(
    streams: Streams, main: MainStream, positions: Tensor, given: tuple[Tensor, Tensor], soften: float
) -> Tensor:
    """Of the token behind each of the positions ``[rows, count]``; the model itself says it at that very place."""
    assert streams.early_exit is not None
    targets = in_part(streams, following_of(*given, positions + 1))
    teacher = states_at(main.final, positions).detach() if soften else None
    return _mean(streams, streams.early_exit(states_at(main.states, positions)), targets, teacher, soften)


def wanted_of(head: ParallelHead | PublishedHead, tokens: Tensor, mask: Tensor) -> Wanted:
    """Positions from which the first stream predicts something; rows with fewer have others, which predict nothing."""
    able = following_of(tokens, mask, torch.arange(2, tokens.shape[1] + 2, device=tokens.device).expand_as(tokens)) >= 0
    count = max(1, int(able.sum(1).max()))
    positions = able.int().argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values
    ahead = positions[..., None] + torch.arange(2, head.gamma + 2, device=tokens.device)
    targets = in_part(head, following_of(tokens, mask, ahead))
    behind = at_places(tokens, positions + 1)
    return Wanted(positions, behind, targets.masked_fill(~able.gather(1, positions)[..., None], -1))


def _final_states(streams: Streams, main: MainStream, tokens: Tensor, wanted: Wanted) -> Tensor:
    """Of the streams at the positions that are looked at, each behind the true token of the stream before it."""
    final = streams.final_states(main, wanted.positions, wanted.following)
    before = wanted.positions[..., None] + torch.arange(2, streams.gamma + 1, device=tokens.device)
    return streams.chained(final, at_places(tokens, before))


def at_places(tokens: Tensor, places: Tensor) -> Tensor:
    """``[rows, length]`` at ``[rows, ...]``; places beyond the end give the last."""
    return tokens.gather(1, places.clamp(max=tokens.shape[1] - 1).flatten(1)).view_as(places)


def states_at(states: Tensor, positions: Tensor) -> Tensor:
    """``[rows, length, hidden]`` at ``[rows, count]``; places beyond the end give the last."""
    inside = positions.clamp(max=states.shape[1] - 1)
    return states.gather(1, inside[..., None].expand(-1, -1, states.shape[-1]))


def following_of(tokens: Tensor, mask: Tensor, at: Tensor) -> Tensor:
    """The tokens at these places of each row, -1 where there is none to be predicted."""
    there = at_places(mask, at) & (at < tokens.shape[1])
    return at_places(tokens, at).masked_fill(~there, -1)


def in_part(head: ParallelHead | PublishedHead, tokens: Tensor) -> Tensor:
    """Token ids as places in the head's vocabulary, -1 where it lacks them."""
    if head.vocabulary is None:
        return tokens
    size = int(head.model.get_output_embeddings().weight.shape[0])
    places = torch.full((size + 1,), -1, device=tokens.device)
    places[head.vocabulary] = torch.arange(len(head.vocabulary), device=tokens.device)
    return places[tokens]  # -1 stays -1: it is the last place


def _mean(
    streams: Streams, states: Tensor, targets: Tensor, teacher: Tensor | None = None, soften: float = 0.0
) -> Tensor:
    """Mean cross-entropy of ``states`` ``[..., hidden]`` against ``targets`` ``[...]``; 0 if there are none."""
    there = targets >= 0
    said = None if teacher is None else teacher[there]
    return _cross_entropy(states, (states[there], targets[there], said), streams.head(), soften)


def _next_loss(streams: Streams, final: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The base's own loss, over its whole vocabulary."""
    own, there = streams.model.get_output_embeddings(), mask[:, 1:]
    return _cross_entropy(final, (final[:, :-1][there], tokens[:, 1:][there], None), (own.weight, own.bias))


def _cross_entropy(
    states: Tensor,
    pairs: tuple[Tensor, Tensor, Tensor | None],
    head: tuple[Tensor, Tensor | None],
    soften: float = 0.0,
) -> Tensor:
    """Mean over some rows of ``states``; where there are none, 0 with the graph of ``states``.

    Args:
        states: where the rows are from.
        pairs: the rows ``[n, hidden]``, their targets, and the base's own final states in their places.
        head: its weight and bias.
        soften: see ``stream_loss``.
    """
    rows, targets, teacher = pairs
    weight, bias = head
    if not len(rows):
        return states.sum() * 0.0
    losses = []
    for part, aims, said in _chunks(rows, targets, weight, teacher):
        if weight.requires_grad:
            losses.append(checkpoint(_summed, part, weight, bias, aims, use_reentrant=False))
        else:
            losses.append(_FrozenHead.apply(part, weight, bias, (aims, said, soften)))  # type: ignore[no-untyped-call]
    return torch.stack(losses).sum() / len(rows)


def _summed(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = functional.linear(states, weight, bias)
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


class _FrozenHead(torch.autograd.Function):
    """The summed cross-entropy behind a head that is not trained: its gradient, softmax - target, is taken at once.

    So nothing of the size of the vocabulary is kept, and nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, aims: tuple[Tensor, Tensor | None, float]
    ) -> Tensor:
        targets, teacher, soften = aims
        scores = functional.linear(states, weight, bias).float().log_softmax(-1)
        own = targets[:, None]
        loss = -(1 - soften) * scores.gather(1, own).sum()
        shares = None
        if teacher is not None and soften:
            shares = functional.linear(teacher, weight, bias).float().softmax(-1).mul_(soften)
            loss = loss - torch.dot(shares.flatten(), scores.flatten())
        if states.requires_grad:
            gradient = scores.exp_()
            gradient.scatter_add_(1, own, gradient.new_full((1, 1), soften - 1).expand(len(own), 1))
            gradient = gradient if shares is None else gradient.sub_(shares)
            ctx.save_for_backward(gradient.to(weight.dtype) @ weight)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (own,) = ctx.saved_tensors
        return own * gradient.to(own.dtype), None, None, None


def _chunks(
    rows: Tensor, targets: Tensor, weight: Tensor, teacher: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Rows, their targets and what the base had there, so many at a time that their logits fit."""
    size = max(1, LOGITS_AT_ONCE // len(weight))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield rows[part], targets[part], None if teacher is None else teacher[part]
