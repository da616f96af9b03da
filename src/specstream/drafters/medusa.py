"""Medusa heads as a drafter: from the last accepted node's hidden state, a tree of each head's likeliest tokens.

The state comes out of the pass that verified the last tree, so a round is one pass of the target and one look of the
heads at one vector. Cai et al. (arXiv 2401.10774) take one tree of 64 nodes, made by hand or from a calibration set;
here the offer lists the nodes that a tree grows by, the policy says how many pay, and the tree is grown by the heads'
own probabilities (``core/tree_shapes.py``). They verify with typical acceptance; here verification is lossless unless
that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.core.ports import (
    Components,
    Drafter,
    DraftRequest,
    DraftSession,
    HiddenStates,
    Offer,
    TargetSession,
    TrainedHeads,
    Verdict,
    hidden_states_of,
)
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import Candidates, RankAcceptance
from specstream.errors import UsageError

MOST = 31
"""Drafted nodes of the largest tree that is offered."""

RANKS = 8
"""Candidates of each head."""


class Heads(TrainedHeads, Protocol):
    """What is needed of ``heads/medusa.py``."""

    @property
    def depth(self) -> int:
        """How many heads there are."""

    layer: int
    rates: list[list[float]]

    def draft(self, states: Tensor, depth: int, ranks: int) -> tuple[Tensor, Tensor]:
        """Tokens ``[n, depth, ranks]`` from the states ``[n, hidden]``, the likeliest first, and how likely each is."""


class MedusaDrafter(Drafter):
    """Drafts with heads.

    Args:
        heads: of the target.
        nodes: drafted nodes of the tree that is preferred unseen.
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
        self.preferred, self.most = nodes, max(nodes, MOST)
        self._offers: dict[int, Offer] = {}

    @property
    def nodes(self) -> int:
        """Drafted nodes of the largest tree."""
        return self.most

    @property
    def components(self) -> Components:
        return Components(heads=(self.heads,))

    @property
    def limits(self) -> Mapping[str, int]:
        return {f"there are {self.heads.depth} Medusa heads": self.heads.depth}

    def fixed_tree(self, nodes: int) -> MedusaDrafter:
        return MedusaDrafter(self.heads, nodes=nodes)

    def offer(self, depth: int) -> Offer:
        """Trees that grow node by node, no deeper than ``depth``."""
        depth = min(depth, self.heads.depth)
        if depth not in self._offers:
            self._offers[depth] = self._acceptance.grow(self.most, depth).offer("medusa", depth)
        return self._offers[depth]

    def learn(self, candidates: Sequence[Sequence[int]], tokens: Sequence[int]) -> None:
        """See ``RankAcceptance.observe``; over all rows and requests."""
        self._acceptance.observe(candidates, tokens)
        self._offers.clear()

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> MedusaSession:
        states = hidden_states_of(session, self.name)
        states.tap([self.heads.layer])
        return MedusaSession(self, states, len(prompts))


class MedusaSession(DraftSession):
    """The last accepted node's state of every row. A row's first pass drafts nothing: there is none yet."""

    def __init__(self, drafter: MedusaDrafter, target: HiddenStates, rows: int) -> None:
        self._drafter, self._target = drafter, target
        self._states: Tensor | None = None  # [rows, hidden]
        self._known = [False] * rows  # whether a row has one
        self._drafted: list[Candidates | None] = [None] * rows  # of the trees just proposed

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        """One for each row that has been in a pass."""
        return [
            [self._drafter.offer(request.depth)] if known and request.depth > 0 else []
            for known, request in zip(self._known, requests, strict=True)
        ]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        sizes = [
            (request.nodes or self._drafter.preferred) if known and request.depth > 0 else 0
            for known, request in zip(self._known, requests, strict=True)
        ]
        asked = [row for row, size in enumerate(sizes) if size]
        self._drafted = [None] * len(requests)
        if asked and self._states is not None:
            depth = max(requests[row].depth for row in asked)
            states = self._states if len(asked) == len(requests) else self._states[asked]
            tokens, chances = self._drafter.heads.draft(
                states, min(depth, self._drafter.heads.depth), self._drafter.ranks
            )
            for row, *drafted in zip(asked, tokens.tolist(), chances.tolist(), strict=True):
                self._drafted[row] = Candidates(*(each[: requests[row].depth] for each in drafted))
        return [
            drafted.tree(request.tokens[-1], size, request.depth) if drafted else TokenTree.chain(request.tokens[-1:])
            for request, size, drafted in zip(requests, sizes, self._drafted, strict=True)
        ]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """Keep the states that the next trees are drafted from, and learn which ranks were right."""
        states = self._target.states(self._drafter.heads.layer)
        last = upload([verdict.path[-1] for verdict in verdicts], states.device)
        self._states = states[torch.arange(len(verdicts), device=states.device), last]
        self._known = [True] * len(verdicts)
        for drafted, verdict in zip(self._drafted, verdicts, strict=True):
            if drafted is not None:
                self._drafter.learn(drafted.judged(verdict.tokens), verdict.tokens)

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
