"""Medusa heads as a drafter: from the last accepted node's hidden state, a tree of each head's likeliest tokens.

The state comes out of the pass that verified the last tree, so a round is one pass of the target and one look of the
heads at one vector. Cai et al. (arXiv 2401.10774) take one tree of 64 nodes, made by hand or from a calibration set;
here trees of several sizes are offered, each grown by how often the candidate of each rank turned out right
(``core/candidates.py``), and what a pass of each width costs decides. They verify with typical acceptance; here
verification is lossless unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from specstream.core.candidates import RankAcceptance, Shape, ShapedOffer
from specstream.core.deferred import upload
from specstream.core.ports import DraftRequest, Offer, TargetSession
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.verify import Verdict
from specstream.errors import UsageError

SIZES = (3, 7, 15, 31)
"""Drafted nodes of the trees on offer: with the root they fill passes of the usual widths."""

RANKS = 8
"""Candidates of each head."""


class Heads(Protocol):
    """What is needed of ``heads/medusa.py``."""

    @property
    def depth(self) -> int:
        """How many heads there are."""

    @property
    def nbytes(self) -> int:
        """Bytes of their weights."""

    @property
    def extra_parameters(self) -> int:
        """How many parameters there are beside the base's."""

    layer: int
    rates: list[list[float]]

    def draft(self, states: Tensor, depth: int, ranks: int) -> Tensor:
        """Tokens ``[n, depth, ranks]`` from the states ``[n, hidden]`` of ``layer``, the likeliest first."""


class MedusaDrafter:
    """Drafts with heads.

    Args:
        heads: of the target.
        nodes: drafted nodes of the tree that is preferred unseen: it stays as it is, so that seeds repeat.
        ranks: candidates of each head.

    Raises:
        UsageError: a tree without a node, a head without a candidate.
    """

    name = "medusa"

    def __init__(self, heads: Heads, *, nodes: int = 15, ranks: int = RANKS) -> None:
        for name, value in (("nodes", nodes), ("ranks", ranks)):
            if value < 1:
                raise UsageError(f"{name} is {value}; give 1 or more")
        self.heads = heads
        rates = [each[:ranks] for each in heads.rates]
        self._acceptance = RankAcceptance(rates) if rates else RankAcceptance.unknown(heads.depth, ranks)
        self.ranks = max(map(len, self._acceptance.rates))
        self._preferred = [self._acceptance.grow(nodes, depth) for depth in range(heads.depth + 1)]
        self._offers: dict[int, list[ShapedOffer]] = {}

    @property
    def nodes(self) -> int:
        """Drafted nodes of the largest tree."""
        return max(*SIZES, len(self._preferred[-1].paths))

    def offers(self, depth: int) -> list[ShapedOffer]:
        """Trees of several sizes, no deeper than ``depth``; the preferred one first."""
        depth = min(depth, self.heads.depth)
        if depth not in self._offers:
            largest = self._acceptance.grow(SIZES[-1], depth)
            shapes = [self._acceptance.rate(self._preferred[depth]), *(largest.first(nodes) for nodes in SIZES)]
            self._offers[depth] = [shape.offer("medusa") for shape in shapes]
        return self._offers[depth]

    def learn(self, candidates: Sequence[Sequence[int]], tokens: Sequence[int]) -> None:
        """See ``RankAcceptance.observe``; over all rows and requests."""
        if candidates:
            self._acceptance.observe(candidates, tokens)
            self._offers.clear()

    def begin(self, prompts: Sequence[Sequence[int]], sampling: Sampling, session: TargetSession) -> MedusaSession:
        session.tap([self.heads.layer])
        return MedusaSession(self, session, len(prompts))


class MedusaSession:
    """The last accepted node's state of every row. A row's first pass drafts nothing: there is none yet."""

    def __init__(self, drafter: MedusaDrafter, session: TargetSession, rows: int) -> None:
        self._drafter, self._session = drafter, session
        self._states: Tensor | None = None  # [rows, hidden]
        self._known = [False] * rows  # whether a row has one
        self._candidates: list[list[list[int]]] = [[]] * rows  # of the trees just proposed: depth, rank -> token

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        """Trees of several sizes for each row; a step of the drafter is one head, asked for all rows."""
        return [
            [*self._drafter.offers(request.depth)] if known and request.depth > 0 else []
            for known, request in zip(self._known, requests, strict=True)
        ]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        shapes = [self._shape(request) if known else None for known, request in zip(self._known, requests, strict=True)]
        drafted = [row for row, shape in enumerate(shapes) if shape is not None]
        self._candidates = [[]] * len(requests)
        if drafted and self._states is not None:
            depth = max(min(shapes[row].depth, requests[row].depth) for row in drafted)  # type: ignore[union-attr]
            states = self._states if len(drafted) == len(requests) else self._states[drafted]
            tokens = self._drafter.heads.draft(states, depth, self._drafter.ranks).tolist()
            for row, candidates in zip(drafted, tokens, strict=True):
                self._candidates[row] = candidates[: requests[row].depth]
        return [
            TokenTree.chain(request.tokens[-1:]) if shape is None else shape.tree(request.tokens[-1], candidates)
            for request, shape, candidates in zip(requests, shapes, self._candidates, strict=True)
        ]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """Keep the states that the next trees are drafted from, and learn which ranks were right."""
        states = self._session.states(self._drafter.heads.layer)
        last = upload([verdict.path[-1] for verdict in verdicts], states.device)
        self._states = states[torch.arange(len(verdicts), device=states.device), last]
        self._known = [True] * len(verdicts)
        for candidates, verdict in zip(self._candidates, verdicts, strict=True):
            self._drafter.learn(candidates, verdict.tokens)

    def keep(self, rows: Sequence[int]) -> None:
        self._known = [self._known[row] for row in rows]
        if self._states is not None:
            self._states = self._states[upload(rows, self._states.device)]

    def join(self, other: MedusaSession) -> None:
        self._known.extend(other._known)
        if self._states is not None:
            theirs = other._states
            if theirs is None:  # nothing looks at them before the row's first pass
                theirs = self._states.new_zeros(len(other._known), self._states.shape[1])
            self._states = torch.cat([self._states, theirs])

    def _shape(self, request: DraftRequest) -> Shape | None:
        if request.depth < 1:
            return None
        offer = request.offer
        return (offer if isinstance(offer, ShapedOffer) else self._drafter.offers(request.depth)[0]).shape
