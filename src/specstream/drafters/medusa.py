"""Medusa heads as a drafter: from the last accepted node's hidden state, a tree of each head's likeliest tokens.

A round is one pass of the target and one look of the heads at one vector (``core/head_drafter.py``). Cai et al. (arXiv
2401.10774) take one tree of 64 nodes, made by hand or from a calibration set; here the policy says how many nodes pay,
and the tree is grown by the heads' own probabilities. They verify with typical acceptance; here verification is
lossless unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from specstream.core.device.deferred import upload
from specstream.core.head_drafter import RANKS, HeadDrafter, HeadSession, Place
from specstream.core.ports import DraftRequest, HiddenStates
from specstream.core.tree_shapes import Candidates
from specstream.heads.medusa import MedusaHeads

MOST = 31
"""Drafted nodes of the largest tree that is offered."""


class MedusaDrafter(HeadDrafter):
    """Drafts with heads.

    Args:
        heads: of the target.
        nodes: drafted nodes of the tree that is preferred unseen.
        ranks: candidates of each head.

    Raises:
        UsageError: a tree without a node, a head without a candidate.
    """

    name, parts = "medusa", "Medusa heads"
    head: MedusaHeads

    def __init__(self, heads: MedusaHeads, *, nodes: int = 15, ranks: int = RANKS) -> None:
        super().__init__(heads, depth=heads.depth, nodes=nodes, most=MOST, ranks=ranks, rates=heads.rates)
        self.ranks = max(map(len, self.learned.rates))

    def fixed_tree(self, nodes: int) -> MedusaDrafter:
        return MedusaDrafter(self.head, nodes=nodes)

    def tap(self, target: HiddenStates) -> None:
        target.tap([self.head.layer])

    def candidates(
        self,
        session: HeadSession,
        places: Sequence[Place],
        requests: Sequence[DraftRequest],
        rows: Sequence[int],
    ) -> list[Candidates]:
        states = session.target.states(self.head.layer)
        at, nodes = (upload(each, states.device) for each in zip(*places, strict=True))
        depths = [min(request.depth, self.depth) for request in requests]
        drafted = (each.tolist() for each in self.head.draft(states[at, nodes], max(depths), self.ranks))
        return [
            Candidates(tokens[:depth], chances[:depth]) for depth, tokens, chances in zip(depths, *drafted, strict=True)
        ]
