"""Speculative Streaming: the target drafts for itself (Bhendawade et al., arXiv 2402.11131; ``heads/streams.py``).

The streams of the last accepted node draft the tree below the token that was emitted behind it. Stream j's candidates
are the same below every node of depth j - 1, or weighed anew by the token there (``heads/chained.py``), and the tree
holds the paths that are most likely to be accepted, by the streams' own probabilities (``core/tree_shapes.py``). The
offer lists the nodes that such a tree grows by, each with its survival, by how often the candidate of each rank was
right at each depth; how many of them pay, if any, is the policy's choice. The streams run only when an offer is taken,
after the pass that wrote what they see: text on which they are of no use is not slowed down by them.

Sampling is lossless by the rule for candidates that were chosen without chance: which tokens a node's children are
depends on the text before it alone, never on the token that the target is about to draw. The shape of a tree decides
how chance is spent, and a seed has to repeat: what earlier generations taught is not in it either.

With ``pruning`` (the paper's section 3.1.3) the pass over a tree is begun here: where the streams would start, an early
exit tells how likely each token is after its parent, and what is less likely than the threshold is dropped, with all
below it, before the upper layers run. That keeps sampling lossless for the same reason: the exit looks at the drafted
tokens and at what is before them, and all of it has happened before the target's first draw. On a CPU it does not pay:
the exit reads the vocabulary's weights, which is more than what the dropped rows would have cost. Off unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

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

PREFERRED, MOST = 3, 15
"""Drafted nodes of a tree where nobody says how many pay, and of the largest: passes of 4 and 16 tokens."""

RANKS = 8
"""Candidates of each stream."""


class StreamHead(TrainedHeads, Protocol):
    """What drafts: ``heads.streams.Streams``."""

    @property
    def gamma(self) -> int:
        """The deepest draft."""

    @property
    def taps(self) -> Sequence[int]:
        """The target's layers whose input it needs."""

    @property
    def first(self) -> int:
        """The layer where streams start."""

    def candidates(
        self,
        target: HiddenStates,
        places: Sequence[tuple[int, int]],
        following: Sequence[int],
        count: int,
        rows: Sequence[int] | None = None,
        *,
        depth: int | None = None,
    ) -> list[Candidates]:
        """For each of the session's rows, or of some, from a node of it and the token emitted behind that.

        ``depth``: only so many streams run and draft, the first ones; None, or more than there are, for all.
        """

    def likelihoods(self, hidden: Tensor, trees: Sequence[TokenTree]) -> list[list[float]]:
        """How likely every node's token is after its parent, from what goes into ``first``."""


class StreamsDrafter(Drafter):
    """Drafts with the target's own streams.

    Args:
        head: the streams, trained for the target.
        nodes: drafted nodes of the tree that is preferred unseen.
        most: of the largest.
        ranks: candidates of each stream.
        rates: how often the candidate of each rank is right at each depth, as far as known: ``rates[depth - 1][rank]``.
        pruning: drop drafts that an early exit finds less likely than this, where the head has one; None drops nothing.

    Raises:
        UsageError: a value out of range.
    """

    name = "streams"

    def __init__(
        self,
        head: StreamHead,
        *,
        nodes: int = PREFERRED,
        most: int = MOST,
        ranks: int = RANKS,
        rates: Sequence[Sequence[float]] | None = None,
        pruning: float | None = None,
    ) -> None:
        for name, value in (("nodes", nodes), ("ranks", ranks)):
            if value < 1:
                raise UsageError(f"{name} is {value}; give 1 or more")
        if pruning is not None and not 0 < pruning < 1:
            raise UsageError(f"pruning is {pruning}; give a probability between 0 and 1, or None")
        self.head, self.ranks, self.pruning = head, ranks, pruning
        self.preferred, self.most = nodes, max(nodes, most)
        self.rates = rates
        self._learned = self._fresh()

    @property
    def nodes(self) -> int:
        """Drafted nodes of the largest tree."""
        return self.most

    @property
    def components(self) -> Components:
        return Components(heads=(self.head,))

    @property
    def limits(self) -> Mapping[str, int]:
        return {f"there are {self.head.gamma} streams": self.head.gamma}

    def fixed_tree(self, nodes: int) -> StreamsDrafter:
        return StreamsDrafter(self.head, nodes=nodes, most=nodes, rates=self.rates, pruning=self.pruning)

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> StreamsSession:
        states = hidden_states_of(session, self.name)
        states.tap(self.head.taps)
        fresh = self._fresh()
        return StreamsSession(self, states, [self._learned if each.greedy else fresh for each in samplings])

    def _fresh(self) -> RankAcceptance:
        if self.rates is not None:
            return RankAcceptance([list(each[: self.ranks]) for each in self.rates[: self.head.gamma]])
        return RankAcceptance.unknown(self.head.gamma, self.ranks)


class StreamsSession(DraftSession):
    """One batch at work. A row drafts from the node that was committed last, so not before its first pass."""

    def __init__(self, drafter: StreamsDrafter, target: HiddenStates, acceptances: list[RankAcceptance]) -> None:
        self._drafter, self._target, self._acceptances = drafter, target, acceptances
        # Of the last committed nodes: pass row, node.
        self._places: list[tuple[int, int] | None] = [None] * len(acceptances)
        self._grown: dict[tuple[RankAcceptance, int], Offer] = {}  # and depth; until more is learned
        self._drafted: dict[int, Candidates] = {}  # of the rows that asked in this round

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        return [self._offers(row, request) for row, request in enumerate(requests)]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        self._drafted = {}
        sizes = [
            (request.nodes or self._drafter.preferred) if place and request.depth > 0 else 0
            for place, request in zip(self._places, requests, strict=True)
        ]
        trees = [TokenTree.chain(request.tokens[-1:]) for request in requests]
        asking = [row for row, size in enumerate(sizes) if size]
        if not asking:  # most rounds, where drafts do not pay
            return trees
        places = [place for row in asking if (place := self._places[row])]
        roots = [requests[row].tokens[-1] for row in asking]
        deepest = max(requests[row].depth for row in asking)
        drafted = self._drafter.head.candidates(
            self._target, places, roots, self._drafter.ranks, asking, depth=min(deepest, self._drafter.head.gamma)
        )
        self._drafted = dict(zip(asking, drafted, strict=True))
        for row, root, candidates in zip(asking, roots, drafted, strict=True):
            trees[row] = candidates.tree(root, sizes[row], requests[row].depth)
        return trees if self._drafter.pruning is None else self._pruned(trees)

    def _pruned(self, trees: list[TokenTree]) -> list[TokenTree]:
        """The trees without what the early exit drops; their pass has begun."""
        head, least = self._drafter.head, self._drafter.pruning or 0.0
        likelihoods = head.likelihoods(self._target.descend(trees, head.first), trees)
        return [
            tree.kept([node for node, likelihood in enumerate(own) if likelihood >= least])
            for tree, own in zip(trees, likelihoods, strict=True)
        ]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """All candidates are judged by what was emitted, whether the tree held them or not."""
        for row, verdict in enumerate(verdicts):
            if row in self._drafted:
                self._acceptances[row].observe(self._drafted[row].judged(verdict.tokens), verdict.tokens)
                self._grown.clear()
            self._places[row] = (row, verdict.path[-1])

    def keep(self, rows: Sequence[int]) -> None:
        self._places = [self._places[row] for row in rows]
        self._acceptances = [self._acceptances[row] for row in rows]
        self._grown.clear()

    def join(self, other: StreamsSession) -> None:
        self._places.extend(other._places)
        self._acceptances.extend(other._acceptances)

    def _offers(self, row: int, request: DraftRequest) -> list[Offer]:
        """Trees that grow node by node, no deeper than asked for; none before the row's first pass."""
        depth = min(request.depth, self._drafter.head.gamma) if self._places[row] else 0
        if depth < 1:
            return []
        acceptance = self._acceptances[row]
        if (acceptance, depth) not in self._grown:
            self._grown[acceptance, depth] = acceptance.grow(self._drafter.most, depth).offer("streams", depth)
        return [self._grown[acceptance, depth]]
