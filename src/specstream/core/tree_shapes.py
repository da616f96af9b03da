"""Which candidates belong into a tree: those that are most likely to be reached.

A head drafts a list of candidates for one depth, the likeliest first, whatever comes before it. So a path below the
root is a rank for each depth, and its share, how often its last node is accepted, is the product of the chances of
those candidates. A tree of n nodes is expected to emit most if it holds the n paths with the largest shares (Cai et
al., "Medusa", arXiv 2401.10774, section 2.3.3); a path is never likelier than what it begins with, so these are a tree,
and adding one after the other is no approximation.

Before anything is drafted, what is known is how often the candidate of each rank was right: that is what a tree of some
size is expected to emit. Once it is drafted, the head's own probabilities are the chances: where it is sure the tree
becomes deep, where it doubts wide (as in EAGLE-2, Li et al., arXiv 2406.16858). A head may say other chances behind
each token of the depth before.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specstream.core.ports import Offer
from specstream.core.tree import TokenTree

MEMORY = 64
"""Judgements that a rate stands for at most; the oldest fade."""

PRIOR_WEIGHT = 4
"""Judgements that the rates counts for that a drafter comes with."""

LIKELY = 4
"""Candidates of a depth that trees mostly hold, where nothing else is known."""

PRIOR_RATE = 0.5
"""Of the likeliest candidate, where a drafter comes with no rates; half of it for each further rank."""


@dataclass(frozen=True)
class Shape:
    """A tree without tokens, which grows node by node.

    Attributes:
        paths: the places among siblings that lead to each node but the root, of the likeliest 0; the likeliest path
            first, so that the first n are a tree too.
        shares: how often each of them is expected to be accepted.
    """

    paths: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]

    def first(self, nodes: int) -> Shape:
        """The best tree of so many nodes besides the root."""
        return Shape(self.paths[:nodes], self.shares[:nodes])

    @property
    def depth(self) -> int:
        """The deepest node's."""
        return max(map(len, self.paths), default=0)

    def offer(self, source: str, depth: int = 0) -> Offer:
        """The offer of trees that grow in this order, no deeper than ``depth``, or as deep as they are."""
        ranked = tuple((len(path), share) for path, share in zip(self.paths, self.shares, strict=True))
        return Offer(source=source, depth=depth or self.depth, ranked=ranked)


Ranked = Sequence[tuple[float, int]]
"""Chances and ranks of some candidates, the likeliest first."""


@dataclass(frozen=True)
class Candidates:
    """What a head drafts for a row.

    Attributes:
        tokens: for each depth from 1 on, tokens that differ, the likeliest first.
        chances: how likely the head holds each of them to be.
    """

    tokens: Sequence[Sequence[int]]
    chances: Sequence[Sequence[float]]

    def behind(self, at: int, rank: int) -> Ranked:
        """Those of depth ``at + 1``, as they stand behind the candidate of that rank one depth before."""
        return _ranked(self.chances[at])

    def tree(self, root: int, nodes: int, depth: int) -> TokenTree:
        """The one that is expected to emit most, of at most so many nodes besides the root and no deeper.

        Its ``survival`` is the product of the chances on the way to each node.
        """
        known: dict[tuple[int, ...], Ranked] = {}

        def follow(path: tuple[int, ...]) -> Ranked:
            if len(path) >= min(depth, len(self.tokens)):
                return ()
            known[path] = self.behind(len(path), known[path[:-1]][path[-1]][1] if path else 0)
            return known[path]

        def token(path: tuple[int, ...]) -> int:
            return self.tokens[len(path) - 1][known[path[:-1]][path[-1]][1]]

        shape = grow(follow, nodes)
        shares = dict(zip(shape.paths, shape.shares, strict=True))
        paths = sorted(shares)  # so the first is the likeliest all the way down
        index = {path: node for node, path in enumerate([(), *paths])}
        return TokenTree(
            (root, *map(token, paths)),
            (-1, *(index[path[:-1]] for path in paths)),
            survival=(1.0, *(shares[path] for path in paths)),
        )

    def judged(self, emitted: Sequence[int]) -> list[list[int]]:
        """Tokens of each depth, the likeliest first behind what was emitted before it."""
        drafted, rank = list[list[int]](), 0
        for at, (tokens, token) in enumerate(zip(self.tokens, emitted, strict=False)):
            if not (ranked := self.behind(at, rank)):
                break
            drafted.append([tokens[each] for _, each in ranked])
            if token not in tokens:  # deeper ones were drafted behind something else
                break
            rank = tokens.index(token)
        return drafted


def rank_rates(ranks: Tensor, most: int) -> list[list[float]]:
    """How often each rank was right, of held-out text: ``[positions, depth]`` int64 -> ``rates[depth - 1][rank]``.

    A depth is reached where the candidates before were right, and there the text is easier than elsewhere: of those
    positions, as a tree has them, where the true tokens before were among the ``LIKELY`` first.
    """
    reached = torch.ones(len(ranks), dtype=torch.bool, device=ranks.device)
    rates = []
    for own in ranks.unbind(1):
        seen = own[reached] if reached.any() else own
        rates.append([float((seen == rank).double().mean()) for rank in range(most)])
        reached = reached & (own < LIKELY)
    return rates


class RankAcceptance:
    """How often the candidate of each rank was right, by depth.

    Args:
        rates: ``rates[depth - 1][rank]`` to begin with, each depth's summing to 1 at most.
        spine: whether only the likeliest candidate of a depth has others behind it.
    """

    def __init__(self, rates: Sequence[Sequence[float]], *, spine: bool = False) -> None:
        self._spine = spine
        self.rates = [list(each) for each in rates]
        self._judged = [float(PRIOR_WEIGHT)] * len(self.rates)
        self._offers: dict[tuple[str, int, int], Offer] = {}  # until more is learned

    @classmethod
    def unknown(cls, depth: int, ranks: int) -> RankAcceptance:
        """Hopeful rates, for a drafter that nothing is known of."""
        return cls([[PRIOR_RATE / 2**rank for rank in range(ranks)]] * depth)

    def observe(self, candidates: Sequence[Sequence[int]], tokens: Sequence[int]) -> None:
        """What was drafted for each depth, whether the tree held it or not, and the tokens that were emitted."""
        self._offers.clear()
        for at, (drafted, token) in enumerate(zip(candidates, tokens, strict=False)):
            self._judged[at] = min(self._judged[at] + 1, MEMORY)
            rates = self.rates[at]
            for rank, candidate in enumerate(drafted[: len(rates)]):
                rates[rank] += ((candidate == token) - rates[rank]) / self._judged[at]

    def grow(self, nodes: int, depth: int) -> Shape:
        """The tree that is expected to emit most, of at most so many nodes besides the root and no deeper."""
        ranked = [_ranked(rates) for rates in self.rates[:depth]]

        def follow(path: tuple[int, ...]) -> Ranked:
            ends = len(path) == len(ranked) or (self._spine and any(path))
            return () if ends else ranked[len(path)]

        return grow(follow, nodes)

    def offer(self, source: str, nodes: int, depth: int) -> Offer:
        """The offer of the trees that ``grow`` makes."""
        key = (source, nodes, depth)
        if key not in self._offers:
            self._offers[key] = self.grow(nodes, depth).offer(source, depth)
        return self._offers[key]


def grow(follow: Callable[[tuple[int, ...]], Ranked], nodes: int) -> Shape:
    """The best tree of at most so many nodes besides the root.

    Args:
        follow: what may stand behind each path. Asked once for each that is in the tree, the shorter ones first.
        nodes: how many.
    """
    paths, shares = list[tuple[int, ...]](), list[float]()
    waiting: list[tuple[float, tuple[int, ...], float]] = []  # minus the share, path, parent's share
    children: dict[tuple[int, ...], Ranked] = {}

    def wait(parent: tuple[int, ...], share: float, place: int) -> None:
        if place < len(children[parent]):
            heapq.heappush(waiting, (-share * children[parent][place][0], (*parent, place), share))

    children[()] = follow(())
    wait((), 1.0, 0)
    while waiting and len(paths) < nodes:
        share, path, above = heapq.heappop(waiting)
        paths.append(path)
        shares.append(-share)
        wait(path[:-1], above, path[-1] + 1)
        if len(paths) < nodes:
            children[path] = follow(path)
            wait(path, -share, 0)
    return Shape(tuple(paths), tuple(shares))


def _ranked(chances: Sequence[float]) -> Ranked:
    return sorted(((chance, rank) for rank, chance in enumerate(chances)), key=lambda each: -each[0])
