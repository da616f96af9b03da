"""What drafters with trained heads have in common: trees of ranked candidates, from the last accepted node's states.

Those states come out of the pass that verified the last tree. The offer lists the nodes that a tree grows by, each with
its survival, by how often the candidate of each rank was right at each depth; how many of them pay, if any, is the
policy's choice. The heads run only when an offer is taken, after the pass that wrote what they see: text on which they
are of no use is not slowed down by them. The tree then holds the paths that are most likely to be accepted, by the
heads' own probabilities (``tree_shapes.py``).

Sampling is lossless by the rule for candidates that were chosen without chance: which tokens a node's children are
depends on the text before it alone, never on the token that the target is about to draw.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

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

RANKS = 8
"""Candidates of each depth."""

Place = tuple[int, int]
"""A node of the target's last pass: its row there, and its number in that row's tree."""


class HeadDrafter(Drafter):
    """Drafts with heads, to inherit from.

    Args:
        head: of the target.
        depth: the deepest draft.
        nodes: drafted nodes of the tree that is preferred unseen.
        most: of the largest.
        ranks: candidates of each depth.
        rates: how often the candidate of each rank is right at each depth, as far as known: ``rates[depth - 1][rank]``.

    Raises:
        UsageError: a tree without a node, a depth without a candidate.
    """

    head: TrainedHeads
    parts = ""
    """What each depth is drafted by, in words."""

    def __init__(
        self,
        head: TrainedHeads,
        *,
        depth: int,
        nodes: int,
        most: int,
        ranks: int,
        rates: Sequence[Sequence[float]] | None,
    ) -> None:
        for name, value in (("nodes", nodes), ("ranks", ranks)):
            if value < 1:
                raise UsageError(f"{name} is {value}; give 1 or more")
        self.head, self.depth, self.ranks, self.rates = head, depth, ranks, rates
        self.preferred, self.most = nodes, max(nodes, most)
        self.learned = self.unlearned()

    @property
    def nodes(self) -> int:
        return self.most

    @property
    def components(self) -> Components:
        return Components(heads=(self.head,))

    @property
    def limits(self) -> Mapping[str, int]:
        return {f"there are {self.depth} {self.parts}": self.depth}

    def unlearned(self) -> RankAcceptance:
        """What is known of the candidates before any of them was judged."""
        if self.rates:
            return RankAcceptance([list(each[: self.ranks]) for each in self.rates[: self.depth]])
        return RankAcceptance.unknown(self.depth, self.ranks)

    def acceptances(self, samplings: Sequence[Sampling]) -> list[RankAcceptance]:
        """What each row of a batch learns in: greedy rows in what this drafter learned.

        What earlier generations taught is not in the offers of a row that samples: a seed has to repeat.
        """
        fresh = self.unlearned()
        return [self.learned if each.greedy else fresh for each in samplings]

    @abstractmethod
    def tap(self, target: HiddenStates) -> None:
        """Ask for the states that are drafted from."""

    @abstractmethod
    def candidates(
        self,
        session: HeadSession,
        places: Sequence[Place],
        requests: Sequence[DraftRequest],
        rows: Sequence[int],
    ) -> list[Candidates]:
        """What the heads draft.

        Args:
            session: of this drafter; the last pass of its ``target`` has been committed.
            places: for each of the rows, the node that was committed last.
            requests: of these rows.
            rows: of the session, in increasing order.
        """

    def begun(self, target: HiddenStates, trees: list[TokenTree]) -> list[TokenTree]:
        """The trees of all rows; a drafter that begins their pass may drop some of their nodes."""
        return trees

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> HeadSession:
        states = hidden_states_of(session, self.name)
        self.tap(states)
        return HeadSession(self, states, self.acceptances(samplings))


class HeadSession(DraftSession):
    """One batch at work. A row drafts from the node that was committed last, so not before its first pass."""

    def __init__(self, drafter: HeadDrafter, target: HiddenStates, acceptances: list[RankAcceptance]) -> None:
        self._drafter, self.target, self._acceptances = drafter, target, acceptances
        self._places: list[Place | None] = [None] * len(acceptances)  # of the last committed nodes
        self._drafted: dict[int, Candidates] = {}  # of the rows that asked in this round

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        """Trees that grow node by node, no deeper than asked for; none before the row's first pass."""
        drafter = self._drafter
        return [
            [acceptance.offer(drafter.name, drafter.most, min(request.depth, drafter.depth))]
            if place and request.depth > 0
            else []
            for place, acceptance, request in zip(self._places, self._acceptances, requests, strict=True)
        ]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = [TokenTree.chain(request.tokens[-1:]) for request in requests]
        asking = {row: place for row, place in enumerate(self._places) if place and requests[row].depth > 0}
        self._drafted = {}
        if not asking:  # most rounds, where drafts do not pay
            return trees
        asked = [requests[row] for row in asking]
        self._drafted = dict(
            zip(asking, self._drafter.candidates(self, list(asking.values()), asked, list(asking)), strict=True)
        )
        for (row, candidates), request in zip(self._drafted.items(), asked, strict=True):
            size = request.nodes or self._drafter.preferred
            trees[row] = candidates.tree(request.tokens[-1], size, request.depth)
        return self._drafter.begun(self.target, trees)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """All candidates are judged by what was emitted, whether the tree held them or not."""
        for row, verdict in enumerate(verdicts):
            if row in self._drafted:
                self._acceptances[row].observe(self._drafted[row].judged(verdict.tokens), verdict.tokens)
            self._places[row] = (row, verdict.path[-1])

    def committed_states(self, verdicts: Sequence[Verdict], taps: Sequence[int]) -> Sequence[Tensor]:
        """What went into tapped layers at the nodes that each row committed, before the next pass overwrites it.

        Returns:
            ``[nodes, taps, hidden]`` of each row.
        """
        device = self.target.states(taps[0]).device
        at = upload([row for row, verdict in enumerate(verdicts) for _ in verdict.path], device)
        nodes = upload([node for verdict in verdicts for node in verdict.path], device)
        states = torch.stack([self.target.states(tap)[at, nodes] for tap in taps], 1)
        return torch.split(states, [len(verdict.path) for verdict in verdicts])

    def keep(self, rows: Sequence[int]) -> None:
        self._places = [self._places[row] for row in rows]
        self._acceptances = [self._acceptances[row] for row in rows]

    def join(self, other: HeadSession) -> None:
        self._places.extend([None] * len(other._places))  # they were in no pass of this session
        self._acceptances.extend(other._acceptances)
