"""Candidates of streams that depend on the token drafted before them.

A stream's final state s gives logits W s, whatever the streams before it say. Behind a token p of the stream before, it
becomes s + U D e(p), with e the token's embedding at unit size and U and D of a low rank: the logit of c then changes
by (W U)_c (D e(p)), a product of two short vectors. So nothing is computed anew for the tokens of a tree: their vectors
are kept, and of each stream only the candidates that were likely before are weighed again. After Hydra's sequentially
dependent heads (Ankner et al., arXiv 2402.05109), without a head of its own.

With a gate the state decides how much each of the ranks counts: U (g(s) * D e(p)), with g(s) between 0 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from specstream.core.tree_shapes import Candidates, Ranked

CHAINED_FROM = 4
"""Times as many candidates of each depth as are wanted are weighed again: the token before may lift some of them. Of
twice as many, at a rank of 128, NumPy's products start threads, which cost more than a block head gains."""


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Vectors of the tokens that streams draft, by their place in the streams' vocabulary, float32.

    Attributes:
        pulling: of a token before, ``[size, rank]``.
        pulled: of a token behind it, of the same shape. Their product is what is added to its logit.
    """

    pulling: Any
    pulled: Any

    def behind(self, places: Any, chances: Any, gates: Any = None) -> Any:
        """How likely each candidate is behind each one of the stream before.

        One product for all rows and streams: a NumPy call costs more than the sums of one tree.

        Args:
            places: of the candidates, ``[rows, depth, ranks]`` int64.
            chances: of them, of the same shape, float32.
            gates: of streams 2, 3, ..., ``[rows, depth - 1, rank]`` float32; None where there are none.

        Returns:
            ``[rows, depth - 1, ranks, ranks]`` float32: of streams 2, 3, ..., behind each candidate of the one before.
        """
        pulling = self.pulling[places[:, :-1]]
        if gates is not None:
            pulling = pulling * gates[:, :, None]
        pulls = pulling @ self.pulled[places[:, 1:]].swapaxes(-1, -2)
        own = chances[:, 1:, None]
        lifted = own * np.exp(pulls)
        # The tokens whose changes nobody counts are taken to keep their chances.
        rest = np.maximum(0.0, 1 - own.sum(-1, keepdims=True))
        return lifted / (lifted.sum(-1, keepdims=True) + rest)


def unit(states: Tensor) -> Tensor:
    """``[..., hidden]`` at unit size, float32."""
    return functional.rms_norm(states.float(), states.shape[-1:], eps=1e-12)


class Chain(nn.Module):
    """The map.

    Args:
        hidden: size of a state.
        rank: of the map.
        gated: whether the state has a gate; at first it is open for all ranks alike.
    """

    def __init__(self, hidden: int, rank: int, *, gated: bool = False) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, hidden) / hidden**0.5)
        self.up = nn.Parameter(torch.zeros(hidden, rank))
        self.gate = nn.Parameter(torch.zeros(rank, hidden)) if gated else None

    def forward(self, final: Tensor, before: Tensor) -> Tensor:
        """Final states ``[..., gamma, hidden]`` behind tokens, at unit size ``[..., gamma - 1, hidden]``."""
        down, gates = functional.linear(before, self.down), self.gates(final[..., 1:, :])
        pull = functional.linear(down if gates is None else down * gates, self.up)
        return torch.cat([final[..., :1, :], final[..., 1:, :] + pull.to(final.dtype)], -2)

    def gates(self, final: Tensor) -> Tensor | None:
        """How much each rank counts, 0 to 2, at final states: ``[..., hidden]`` -> ``[..., rank]``."""
        if self.gate is None:
            return None
        return 2 * functional.linear(unit(final), self.gate).sigmoid()

    @torch.no_grad()
    def token_map(self, head: Tensor, tokens: Tensor) -> TokenMap:
        """Of tokens with these rows of the head and these embeddings at unit size, both ``[size, hidden]``."""
        pulling, pulled = functional.linear(tokens, self.down), head.float() @ self.up
        return TokenMap(pulling.cpu().numpy(), pulled.cpu().numpy())


@dataclass(frozen=True, eq=False)
class Chained(Candidates):
    """Those of streams with a chain.

    Attributes:
        chained: a row of ``TokenMap.behind``.
        count: candidates behind each token.
    """

    chained: Any
    count: int

    def behind(self, at: int, rank: int) -> Ranked:
        if at == 0:
            return super().behind(at, rank)[: self.count]
        own = self.chained[at - 1, rank]
        order = own.argsort()[::-1][: self.count]
        return list(zip(own[order].tolist(), order.tolist(), strict=True))
