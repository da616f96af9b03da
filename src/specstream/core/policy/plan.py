"""One budget of nodes for all rows of a round: the likeliest nodes are drafted and verified, as many as pay.

Every node that a row may be given has a survival probability: how likely it is accepted, the product of what is
estimated along its path. A round of n rows that drafts for D seconds and verifies B nodes is expected to emit

    rate(B) = (n + sum of the B largest survivals) / (D + c(n, n + B))      tokens a second,

with c(n, m) the seconds of a pass over n rows and m nodes. A tree stays a tree, because survival falls along a path.
Where no B > 0 is faster than n / c(n, n), nothing is drafted (Leviathan et al., arXiv 2211.17192, theorem 3.8, with
measured costs in place of a ratio, for many rows).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

from specstream.core.policy.acceptance import Calibrations, Estimates, Level
from specstream.core.policy.cost_model import NODE_SHARE, CostModel, Steps
from specstream.core.ports import DraftRequest, Offer
from specstream.core.tree import TokenTree

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Depths to which drafting is weighed, in tokens; beyond the last only what is known without drafting goes."""

UNLIKELY = 0.25
"""Nodes that bring a smaller share of what they cost are not weighed, though some may be free in a padded pass."""

SURE = 0.9
"""A draft that is likelier than this to be accepted is never ended."""

BESIDE = 15
"""Drafted nodes up to which one that takes no step of its own may be added."""

SPARE = 2
"""Times as many nodes as were planned are drafted where the drafter says how likely each is: the best are kept."""

CHANCE = 0.5
"""How far apart two rows must end for their order to be certain, in roots of the tokens left."""


class Share(NamedTuple):
    """What a row takes of an offer.

    Attributes:
        offer: which.
        depth: the deepest that it goes.
        nodes: expected.
        survival: tokens that are expected to be accepted.
    """

    offer: Offer
    depth: int
    nodes: float
    survival: float


_Taken = tuple[Offer, list[Level]]
"""An offer, and as much of it as a row may take."""

_Item = tuple[float, int, int, float, float]
"""Nodes that a round may be extended by: their place in the order, their row, which they are, how many, their tokens.
A plain tuple, as there are many of them in every round."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to run the next round.

    Attributes:
        shares: of every row, None for nothing.
        tokens: expected, of all rows, each counted by its worth.
        nodes: by which the pass is priced, of all rows.
        drafting: seconds of the drafter.
        seconds: of drafting and of the pass.
    """

    shares: Sequence[Share | None]
    tokens: float
    nodes: float
    drafting: float
    seconds: float

    @property
    def rate(self) -> float:
        """Expected tokens per second."""
        return self.tokens / self.seconds


@dataclass(kw_only=True)
class Planner:
    """Weighs what the rows of one round may take.

    Attributes:
        costs: what passes and drafts cost.
        estimates: how likely drafts are accepted.
        calibrations: of each row.
        ragged: whether a pass costs by the nodes of all rows together, not by the largest tree for every row.
        worth: of a token of each row, 1 on average.
        rows: how many there are.
        line: seconds of a pass by nodes.
        plain: of a plain pass.
        node: what a node more for every row costs, in plain passes.
    """

    costs: CostModel
    estimates: Estimates
    calibrations: Sequence[Calibrations]
    ragged: bool
    worth: Sequence[float]
    rows: int = field(init=False)
    line: Steps = field(init=False)
    plain: float = field(init=False)
    node: float = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.calibrations)
        self.line = self.costs.line(self.rows)
        self.plain = self.costs.plain(self.rows)
        self.node = (self.line.of(3 * self.rows) - self.plain) / (2 * self.plain)

    def best(self, offers: Sequence[Sequence[Offer]], spare: float) -> Plan | None:
        """The fastest plan that is expected to be faster than plain decoding.

        Args:
            offers: of every row.
            spare: seconds that may be spent on more than one node though nothing may come of them.
        """
        choices = [[(offer, self._levels(offer, row)) for offer in own] for row, own in enumerate(offers)]
        choices = [[each for each in own if each[1]] for own in choices]
        if not any(choices):
            return None
        deepest = defaultdict[str, int](int)
        for offer, levels in (each for own in choices for each in own if each[0].tree is None):
            deepest[offer.drafter] = max(deepest[offer.drafter], *(level.depth for level in levels))
        depths = ((name, depth) for name, most in deepest.items() for depth in sorted({min(d, most) for d in DEPTHS}))
        found, rate = None, self.rows / self.plain
        for drafter, depth in [(None, 0), *depths]:
            taken = [_pick(own, drafter, depth) for own in choices]
            drafting, items = self._drafting(taken, depth), self._items(taken)
            if count := self._fill(items, sum(self.worth), [1] * self.rows, drafting, rate, spare):
                counts = [0] * self.rows
                for _, row, at, _, _ in items[:count]:
                    counts[row] = at + 1
                found = self.plan([_share(*each) for each in zip(taken, counts, strict=True)], drafting)
                rate = found.rate
        return found

    def _levels(self, offer: Offer, row: int) -> list[Level]:
        """What is worth weighing of an offer, with the nodes beside it at its first level."""
        least = UNLIKELY * max(self.node, NODE_SHARE) / max(self.worth[row], 1e-9)
        levels = self.estimates.levels(offer, self.calibrations[row], least)
        if not offer.ranked:
            levels = [level for level in levels if level.nodes and level.survival >= least * level.nodes]
        if offer.beside and levels:
            levels[0] = levels[0]._replace(nodes=levels[0].nodes + offer.beside)
        return levels

    def _items(self, taken: Sequence[_Taken | None]) -> list[_Item]:
        """By what a node brings, or by the size of its tree where that is what a pass costs by.

        None comes before what its row has to take before it.
        """
        items = list[_Item]()
        for row, each in enumerate(taken):
            size, order = 1.0, -math.inf
            for at, level in enumerate(each[1] if each else ()):
                size, gain = size + level.nodes, self.worth[row] * level.survival
                order = max(order, -gain / level.nodes if self.ragged else size)
                items.append((order, row, at, level.nodes, gain))
        items.sort()
        return items

    def _fill(
        self,
        items: Sequence[_Item],
        tokens: float,
        sizes: Sequence[int],
        drafting: float,
        rate: float,
        spare: float = math.inf,
    ) -> int:
        """How many of the items make the round fastest, if that is faster than ``rate``; else 0."""
        nodes, widest, best = float(sum(sizes)), float(max(sizes)), 0
        for count, (order, _, _, more, gain) in enumerate(items, 1):
            tokens, nodes, widest = tokens + gain, nodes + more, max(widest, order)
            seconds = drafting + self.line.of(nodes if self.ragged else self.rows * widest)
            if tokens > rate * seconds and (count == 1 or seconds <= spare):
                best, rate = count, tokens / seconds
        return best

    def plan(self, shares: Sequence[Share | None], drafting: float) -> Plan:
        """What they bring and cost, with so many seconds of drafting."""
        pairs = zip(self.worth, shares, strict=True)
        tokens = sum(worth * (1 + (share.survival if share else 0.0)) for worth, share in pairs)
        nodes = self.nodes([1 + (share.nodes if share else 0.0) for share in shares])
        seconds = drafting + self.line.of(nodes)
        return Plan(shares=shares, tokens=tokens, nodes=nodes, drafting=drafting, seconds=seconds)

    def nodes(self, sizes: Sequence[float]) -> float:
        """Nodes by which a pass over trees of these sizes is priced, of all rows together."""
        return sum(sizes) if self.ragged else self.rows * max(sizes)

    def trial(self, offers: Sequence[Sequence[Offer]], drafter: str) -> Plan:
        """One token of a drafter: for the row of which a token is worth most, or for all where they share the width."""
        taken: list[_Taken | None] = [None] * self.rows
        for row, own in enumerate(offers):
            offer = next((each for each in own if each.tree is None and each.drafter == drafter), None)
            if offer is not None:
                taken[row] = offer, self.estimates.levels(offer, self.calibrations[row])[:1]
        if self.ragged:
            first = max((row for row, own in enumerate(taken) if own), key=self.worth.__getitem__)
            taken = [own if row == first else None for row, own in enumerate(taken)]
        return self.plan([_share(own, 1) for own in taken], self._drafting(taken, 1))

    def requests(self, requests: Sequence[DraftRequest], plan: Plan) -> list[DraftRequest]:
        """The rows' requests as they are to be met."""
        return [
            request.declined() if share is None else self._request(request, share, plan, worth)
            for request, share, worth in zip(requests, plan.shares, self.worth, strict=True)
        ]

    def _request(self, request: DraftRequest, share: Share, plan: Plan, worth: float) -> DraftRequest:
        offer = share.offer
        planned = round(share.nodes) if offer.ranked else 0
        nodes = min(SPARE * planned, len(offer.ranked))
        asked = replace(request, offer=offer, depth=share.depth, nodes=nodes, planned=planned)
        if not offer.cuts:
            return asked
        scale, most = 1 if self.ragged else self.rows, sum(offer.per_depth[: share.depth])
        others = plan.nodes - scale * (1 + share.nodes)
        passes = [self.line.of(others + scale * size) for size in range(1, 2 + max(most, BESIDE))]
        rate = plan.rate / self.rows / max(worth, 1e-9)
        rows = sum(each is not None and each.offer.drafter == offer.drafter for each in plan.shares)
        step = self.costs.drafting(offer.drafter, rows, 1)
        node = (passes[most] - passes[0]) / most
        threshold = min(SURE, (step + offer.branches * node) * rate)
        return replace(asked, threshold=threshold, prices=tuple((b - a) * rate for a, b in pairwise(passes)))

    def cut(self, trees: Sequence[TokenTree], plan: Plan) -> list[TokenTree]:
        """What is worth a pass of what was drafted, now that drafters have said how likely each node is."""
        items, tokens = list[_Item](), sum(self.worth)
        sizes, kept = [1] * self.rows, dict[int, set[int]]()
        for row, (tree, share, worth) in enumerate(zip(trees, plan.shares, self.worth, strict=True)):
            if share is not None and not tree.survival:
                tokens += worth * share.survival
            if share is None or not tree.survival or tree.proposals:
                sizes[row] = len(tree)
                continue
            kept[row] = set()
            scale = worth * self.estimates.calibration(self.calibrations[row], share.offer, drafted=True).ratio
            likely = sorted((-survival, node) for node, survival in enumerate(tree.survival))
            for rank, (least, node) in enumerate(likely[1:], 2):
                items.append((scale * least if self.ragged else rank, row, node, 1.0, -scale * least))
        if not kept:
            return list(trees)
        items.sort()
        rate = tokens / (plan.drafting + self.line.of(self.nodes(sizes)))
        for _, row, node, _, _ in items[: self._fill(items, tokens, sizes, plan.drafting, rate)]:
            kept[row].add(node)
        return [tree.kept(kept[row]) if row in kept else tree for row, tree in enumerate(trees)]

    def _drafting(self, taken: Sequence[_Taken | None], deepest: int) -> float:
        """Seconds of drafting."""
        asking = [own for own in taken if own and own[0].tree is None]
        if not asking:
            return 0.0
        steps: float = min(deepest, max(level.depth for _, levels in asking for level in levels))
        if any(offer.cuts for offer, _ in asking):
            going = zip(*(self.estimates.of(offer).going(int(steps) - 1) for offer, _ in asking), strict=True)
            # A draft goes on until the last row has ended, and ends after the step that finds out that it has to.
            steps = 1 + sum(1 - math.prod(1 - each for each in own) for own in going)
        return self.costs.drafting(asking[0][0].drafter, len(asking), steps, max(offer.unread for offer, _ in asking))


def _pick(own: Sequence[_Taken], drafter: str | None, deepest: int) -> _Taken | None:
    """Which of a row's offers brings most tokens; of those to be drafted this drafter's, so deep."""
    found = list[_Taken]()
    for offer, levels in own:
        if offer.tree is not None:
            found.append((offer, levels))
        elif offer.drafter == drafter and (within := [each for each in levels if each.depth <= deepest]):
            found.append((offer, within))
    return max(found, key=lambda each: sum(level.survival for level in each[1]), default=None)


def _share(own: _Taken | None, count: int) -> Share | None:
    """The first levels of an offer."""
    if own is None or not count:
        return None
    levels = own[1][:count]
    depth = max(level.depth for level in levels)
    return Share(own[0], depth, sum(level.nodes for level in levels), sum(level.survival for level in levels))


def worth(left: Sequence[int], price: Callable[[int], float]) -> list[float]:
    """What a token more of each row is worth in a batch that nobody joins; 1 on average.

    Of the row that ends k-th of n, a pass less saves c(n - k + 1) - c(n - k), with c(j) the cost of a plain pass over
    j rows: where rows cost little only the last one's passes count, and those of the others are made anyway. Rows whose
    order is still open share what they save: what chance does to what is left grows with its root.

    Args:
        left: tokens that every row may still emit.
        price: of a plain pass over so many rows.
    """
    rows, end = len(left), len(left)
    prices = [0.0, *accumulate((price(count) for count in range(1, rows + 1)), max)]
    order = sorted(range(rows), key=left.__getitem__)
    found = [0.0] * rows
    for place in reversed(range(rows)):
        last = left[order[end - 1]]
        if not place or last - left[order[place - 1]] > CHANCE * math.sqrt(last):
            saved = (prices[rows - place] - prices[rows - end]) / (end - place)
            for row in order[place:end]:
                found[row] = saved * rows / prices[rows]
            end = place
    return found


def plain_time(left: Sequence[int], price: Callable[[int], float]) -> float:
    """Seconds that plain decoding takes for rows with so many tokens left, each of which leaves when it has them.

    What a round brings in a batch that nobody joins is what this falls by: a row that gets ahead of one that ends last
    anyway brings little, and more once that one has caught up. Summed over all rounds it is the time of plain decoding.
    """
    ends = sorted(left)
    return sum((end - before) * price(len(ends) - at) for at, (before, end) in enumerate(pairwise([0, *ends])))
