"""Speculative Streaming: the target drafts for itself (Bhendawade et al., arXiv 2402.11131; ``heads/streams.py``).

The streams of the last accepted node draft the tree below the token that was emitted behind it
(``core/head_drafter.py``). Stream j's candidates are the same below every node of depth j - 1, or weighed anew by the
token there (``heads/token_map.py``).

The shape of a tree decides how chance is spent, and a seed has to repeat: what earlier generations taught is not in the
trees of one that samples.

With ``pruning`` (the paper's section 3.1.3) the pass over a tree is begun here: where the streams would start, an early
exit tells how likely each token is after its parent, and what is less likely than the threshold is dropped, with all
below it, before the upper layers run. That keeps sampling lossless for the same reason as the choice of candidates: the
exit looks at the drafted tokens and at what is before them, and all of it has happened before the target's first draw.
On a CPU it does not pay: the exit reads the vocabulary's weights, which is more than what the dropped rows would have
cost. Off unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from specstream.core.head_drafter import RANKS, HeadDrafter, HeadSession, Place
from specstream.core.ports import DraftRequest, HiddenStates
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import Candidates
from specstream.errors import UsageError
from specstream.heads.streams import Streams

PREFERRED, MOST = 3, 15
"""Drafted nodes of a tree where nobody says how many pay, and of the largest: passes of 4 and 16 tokens."""


class StreamsDrafter(HeadDrafter):
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

    name = parts = "streams"
    head: Streams

    def __init__(
        self,
        head: Streams,
        *,
        nodes: int = PREFERRED,
        most: int = MOST,
        ranks: int = RANKS,
        rates: Sequence[Sequence[float]] | None = None,
        pruning: float | None = None,
    ) -> None:
        if pruning is not None and not 0 < pruning < 1:
            raise UsageError(f"pruning is {pruning}; give a probability between 0 and 1, or None")
        super().__init__(head, depth=head.gamma, nodes=nodes, most=most, ranks=ranks, rates=rates)
        self.pruning = pruning

    def fixed_tree(self, nodes: int) -> StreamsDrafter:
        return StreamsDrafter(self.head, nodes=nodes, most=nodes, rates=self.rates, pruning=self.pruning)

    def tap(self, target: HiddenStates) -> None:
        target.tap([self.head.first])

    def candidates(
        self,
        session: HeadSession,
        places: Sequence[Place],
        requests: Sequence[DraftRequest],
        rows: Sequence[int],
    ) -> list[Candidates]:
        roots = [request.tokens[-1] for request in requests]
        depth = min(max(request.depth for request in requests), self.depth)
        return self.head.candidates(session.target, places, roots, self.ranks, rows, depth=depth)

    def begun(self, target: HiddenStates, trees: list[TokenTree]) -> list[TokenTree]:
        """The trees without what the early exit drops."""
        if (least := self.pruning) is None:
            return trees
        likelihoods = self.head.likelihoods(target.descend(trees, self.head.first), trees)
        return [
            tree.kept([node for node, likelihood in enumerate(own) if likelihood >= least])
            for tree, own in zip(trees, likelihoods, strict=True)
        ]
