"""Verification of chains without a word to the host: `verify.verify_sampled` for all rows and nodes at once.

The target's distributions after all nodes, the acceptance of every drafted token, how far each row got and the token
that follows are computed on the device; chance is drawn beforehand, on the CPU, from each row's own generator. One
small transfer then says how far every row got and what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specstream.core.device.deferred import fetch, shared_drafts, upload
from specstream.core.sampling import NO_CHOICE, Sampling, distributions, draw_each
from specstream.core.tree import TokenTree


def judge_chains(
    trees: Sequence[TokenTree], logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]
) -> list[tuple[int, int]]:
    """For every row: how many of its drafted tokens are accepted, and the token drawn behind them.

    The token is ``NO_CHOICE`` where the logits after the last accepted one are NaN or infinite.

    Args:
        trees: chains.
        logits: ``[rows, width, vocab]``.
        sampling: not greedy, and without need of a context.
        generators: each row's, on the CPU; a row takes as many numbers as its chain has nodes.

    Raises:
        NumericalError: a token was drafted from NaN.
    """
    depth, device = max(tree.drafted for tree in trees), logits.device
    chance = upload([_chance(tree, depth, chooser) for tree, chooser in zip(trees, generators, strict=True)], device,
                    torch.float64)  # fmt: skip
    counts = upload([tree.drafted for tree in trees], device)
    target, sound = distributions(logits[:, : depth + 1], sampling)
    tokens = _tokens(trees, depth, device)
    drawn_from = _proposals(trees, tokens, target)
    proposed = torch.ones_like(tokens) if drawn_from is None else _of(drawn_from, tokens)
    accepts = chance[:, :depth] * proposed < _of(target[:, :depth], tokens).double()
    # A token of no probability was not drawn from there after all: to ignore it is lossless, to weigh it is not.
    accepts &= (proposed > 0) & (torch.arange(depth, device=device) < counts[:, None])
    accepted = accepts.long().cumprod(1).sum(1)
    weights = _left(target, drawn_from, tokens, proposed > 0, accepted, accepted < counts)
    following = draw_each(weights, chance[:, -1])
    following = following.masked_fill(~sound.gather(1, accepted[:, None])[:, 0], NO_CHOICE)
    return [(count, token) for count, token in fetch(trees, torch.stack([accepted, following], 1))]


def _chance(tree: TokenTree, depth: int, generator: torch.Generator) -> list[float]:
    """One number for each drafted token, padding, and one for the token behind the accepted ones."""
    numbers: list[float] = torch.rand(len(tree), generator=generator, dtype=torch.float64).tolist()
    return [*numbers[:-1], *[0.0] * (depth - tree.drafted), numbers[-1]]


def _tokens(trees: Sequence[TokenTree], depth: int, device: torch.device) -> Tensor:
    """The drafted tokens ``[rows, depth]``."""
    drafts = shared_drafts(trees)
    if drafts is not None:
        return drafts.tokens[:, :depth]
    return upload([[*tree.tokens[1:], *[0] * (depth - tree.drafted)] for tree in trees], device).view(len(trees), depth)


def _proposals(trees: Sequence[TokenTree], tokens: Tensor, target: Tensor) -> Tensor | None:
    """What the tokens were drawn from, ``[rows, depth, vocab]``; None if nothing was drawn.

    A token that was chosen without chance comes from a point mass.
    """
    drafts, (rows, depth) = shared_drafts(trees), tokens.shape
    if drafts is not None:
        return None if drafts.proposals is None else drafts.proposals[:, :depth]
    if not any(tree.proposals for tree in trees):
        return None
    proposals = target.new_zeros(rows, depth, target.shape[-1]).scatter_(2, tokens[..., None], 1.0)
    for row, tree in enumerate(trees):
        for node in range(tree.drafted):
            if node in tree.proposals:
                proposals[row, node] = tree.proposals[node]
    return proposals


def _of(distributions: Tensor, tokens: Tensor) -> Tensor:
    """The probability of each token ``[rows, depth]`` in ``[rows, depth, vocab]``."""
    return distributions.gather(2, tokens[..., None])[..., 0].double()


def _left(
    target: Tensor, proposals: Tensor | None, tokens: Tensor, weighs: Tensor, accepted: Tensor, rejected: Tensor
) -> Tensor:
    """What the token behind the accepted ones is drawn from, ``[rows, vocab]``, not normalised."""
    rows = torch.arange(len(tokens), device=tokens.device)
    stopped = target[rows, accepted]
    if tokens.shape[1] == 0:
        return stopped
    at = accepted.clamp(max=tokens.shape[1] - 1)
    point = torch.zeros_like(stopped).scatter_(1, tokens[rows, at][:, None], 1.0)
    rest = (stopped - (point if proposals is None else proposals[rows, at])).clamp_min(0)
    # Where nothing is left only rounding can have caused the rejection.
    residual = rejected & weighs[rows, at] & (rest.sum(-1) > 0)
    return torch.where(residual[:, None], rest, stopped)
