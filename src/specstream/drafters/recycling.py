"""Token recycling: trees of the tokens that the target lately found likeliest behind each token.

After Luo et al., "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling"
(arXiv 2408.08696). The logits of a pass say more than the token that is emitted: the runners-up are kept in a table of
successors, and a tree grows from it, by how often the successor of each rank was right at each depth. Unlike in the
paper:

- The table holds what one row has read off its own passes, so that no text shows in the speed of another, and a seed
  repeats. On Spec-Bench a table for all texts drafted 1.36 tokens a pass where this drafts 1.32
  (docs/experiments/0075).
- Rows of the accepted path alone are recycled: each costs a search for the largest of its logits.
- The tree is not of one shape: the policy says how many nodes pay.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specstream.core.by_rows import SessionByRows
from specstream.core.ports import Drafter, DraftRequest, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import Candidates, RankAcceptance, Ranked
from specstream.errors import UsageError

PREFERRED, MOST, DEPTH = 7, 15, 6
"""Drafted nodes of a tree where nobody says how many pay, of the largest, and its deepest."""

RATES = ((0.26, 0.1, 0.06, 0.04), (0.34, 0.12, 0.06, 0.04))
"""How often successors of each rank are right at depth 1 and further down, before anything was judged."""

_ANY = range(sys.maxsize)
"""Every token, at the place of its own number."""


class RecyclingDrafter(Drafter):
    """Drafts what the target found likely before.

    Args:
        successors: kept of each token.

    Raises:
        UsageError: none are.
    """

    name = "recycling"

    def __init__(self, *, successors: int = 8) -> None:
        if successors < 1:
            raise UsageError(f"successors is {successors}; give 1 or more")
        self.successors = successors
        self.learned = self.unlearned()

    @property
    def nodes(self) -> int:
        return MOST

    @property
    def limits(self) -> Mapping[str, int]:
        return {"recycled tokens are drafted": DEPTH}

    def unlearned(self) -> RankAcceptance:
        """What is known of the successors before any of them was judged."""
        rates = [(*each, *[0.02] * self.successors)[: self.successors] for each in RATES]
        return RankAcceptance([rates[0], *[rates[1]] * (DEPTH - 1)])

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession | None = None
    ) -> SessionByRows:
        rows = [_Row(self.learned if each.greedy else self.unlearned(), self.successors) for each in samplings]
        return SessionByRows(rows)


class _Row:
    """What the passes of one row have shown."""

    def __init__(self, acceptance: RankAcceptance, successors: int) -> None:
        self._acceptance, self._successors = acceptance, successors
        self._table: dict[int, Sequence[int]] = {}
        self._root = 0

    def offers(self, request: DraftRequest) -> list[Offer]:
        """One, if the last token has been seen before."""
        self._root = request.tokens[-1]
        if request.depth < 1 or self._root not in self._table:
            return []
        return [self._acceptance.offer("recycling", MOST, min(request.depth, DEPTH))]

    def propose(self, request: DraftRequest) -> TokenTree:
        self._root = request.tokens[-1]
        if request.depth < 1:
            return TokenTree.chain(request.tokens[-1:])
        return self._candidates().tree(self._root, request.nodes or PREFERRED, request.depth)

    def observe(self, verdict: Verdict) -> None:
        """All successors are judged by what was emitted, and then what was found likely takes their place."""
        if self._root in self._table:
            self._acceptance.observe(self._candidates().judged(verdict.tokens), verdict.tokens)
        accepted = (self._root, *verdict.tokens)
        self._table.update(zip(accepted, verdict.likeliest(self._successors), strict=False))

    def _candidates(self) -> _Successors:
        return _Successors([_ANY] * DEPTH, self._acceptance.rates, self._table, self._root)


@dataclass(frozen=True)
class _Successors(Candidates):
    """Candidates of which each has its own behind it; the rank of a token is the token itself.

    Attributes:
        table: successors of each token, the likeliest first.
        root: of the tree.
    """

    table: Mapping[int, Sequence[int]]
    root: int

    def behind(self, at: int, rank: int) -> Ranked:
        # In the order of the table, by whose ranks the rates are learned, should a later one have become likelier too.
        return list(zip(self.chances[at], self.table.get(rank if at else self.root, ()), strict=False))
