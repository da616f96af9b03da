"""When to speculate: the fastest plan, within a regret budget, and trials of what has not been tried for long.

What passes and drafts cost stands in ``cost_model.py``, how likely drafts are accepted in ``acceptance.py``, and the
plan that follows from both in ``plan.py``. All of that may be mistaken, so no plan may risk more than the budget holds:
it is counted in plain passes, speculation that pays refills it, and trials are paid from it. docs/policy.md.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Sequence

from specstream.core.policy import plan as plans
from specstream.core.policy.acceptance import Estimates
from specstream.core.policy.cost_model import CostModel
from specstream.core.policy.plan import Plan, Planner
from specstream.core.policy.prices import PriceList
from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.tree import TokenTree

BUDGET, REFILL = 3.0, 0.01
"""The regret budget in plain passes: its cap, and what every round adds."""

BUDGET_OF_A_TEXT = 1.0
"""The most of that with which a text begins: it pays for its losses with its own gains."""

TRIAL_AFTER, LONGEST_WAIT = 16, 128
"""Rounds after which a drafter that does not pay is tried again; they double with every trial in vain."""

PLAIN_AFTER = 128
"""Rounds without a plain pass after which there are some, until one takes what was expected: all others are held
against it."""

AGREES = 0.25
"""How far what a plain pass takes may be from that, as a natural logarithm."""

LONGEST_PAUSE = 16
"""Most rounds of a pause. The first has one; they double as long as nothing is gained."""

GAIN_FADE = 1 / 16
"""Weight of the newest round in what rounds of so many rows gain on average."""

GAIN_OF_A_TEXT = 0.05
"""The most of it with which a text begins, in plain passes: what the last one gained says little about this one."""


class _Wait:
    """Rounds without what gained nothing: twice as many each time, up to a bound.

    Attributes:
        until: the first round behind them.
    """

    def __init__(self, first: int, longest: int) -> None:
        self.until, self._first, self._longest, self._next = 0, first, longest, first

    def begin(self, now: int) -> None:
        """From the round behind this one on."""
        self.until, self._next = now + 1 + self._next, min(2 * self._next, self._longest)

    def end(self) -> None:
        """Something was gained."""
        self.until, self._next = 0, self._first

    def halve(self) -> None:
        """Texts begin in which more may be gained, or less."""
        self.until, self._next = 0, max(self._first, self._next // 2)


class Controller:
    """Chooses what each row drafts in the next round, and learns from what became of it."""

    def __init__(self, prices: PriceList | None = None) -> None:
        self.costs, self.estimates = CostModel(prices), Estimates()
        self._budget = BUDGET
        self._round = 0
        self._plain: dict[int, int] = {}  # rows -> the last plain round
        self._trials = defaultdict[str, _Wait](lambda: _Wait(TRIAL_AFTER, LONGEST_WAIT))  # by drafter
        self._pauses = defaultdict[int, _Wait](lambda: _Wait(1, LONGEST_PAUSE))  # by rows
        self._gains = defaultdict[int, float](float)  # rows -> plain passes that a round gains on average
        self._trial: str | None = None  # what this round tries, if anything
        self._asked = False  # whether anything could be drafted in this round
        self._planner: Planner | None = None  # of this round
        self._plan: Plan | None = None
        self._left: Sequence[int] | None = None  # tokens, of each row of a batch that nobody joins

    def know(self, prices: PriceList) -> None:
        """What the start-up self-test measured."""
        self.costs.know(prices)

    def forget_costs(self) -> None:
        """Forget what passes and drafts cost: it is measured again."""
        self.costs = CostModel()

    def renew(self, rows: int = 1) -> None:
        """Texts of so many rows begin, in which drafters may be worth more than in the last ones, or less."""
        for wait in (self._pauses[rows], *self._trials.values()):
            wait.halve()
        self._gains[rows] = min(GAIN_OF_A_TEXT, self._gains[rows])
        self._budget = min(BUDGET_OF_A_TEXT, max(0.0, self._budget))

    def plain_seconds(self, rows: int) -> float | None:
        """What a plain pass of so many rows takes here; None until that is known."""
        return self.costs.passing(rows, rows) if self.costs.knows(rows) else None

    def pauses(self, rows: int) -> bool:
        """Whether the next round of so many rows is a plain one that is neither chosen for nor observed."""
        if self._round + 1 >= self._pauses[rows].until:
            return False
        self._round += 1
        self._budget = min(BUDGET, self._budget + REFILL)
        return True

    def choose(
        self,
        requests: Sequence[DraftRequest],
        offers: Sequence[Sequence[Offer]],
        left: Sequence[int] | None = None,
        *,
        ragged: bool = False,
    ) -> list[DraftRequest]:
        """The requests as they are to be met: with the offer taken, its depth and its nodes.

        Args:
            requests: of every row.
            offers: what there is for them.
            left: tokens that every row may still emit, in a batch that nobody joins.
            ragged: whether a pass costs by the nodes of all rows together, and not by the largest tree for every row.
        """
        rows = len(requests)
        self._round, self._trial, self._planner, self._plan = self._round + 1, None, None, None
        self._asked = any(request.depth for request in requests)
        self._left = left
        self.costs.look_at(max(len(request.tokens) for request in requests))
        last = self._plain.setdefault(rows, self._round)
        if any(offers) and self.costs.knows(rows) and self._round - last <= PLAIN_AFTER:
            self._planner = planner = Planner(
                costs=self.costs,
                estimates=self.estimates,
                calibrations=[request.calibrations for request in requests],
                ragged=ragged,
                worth=plans.worth(left, self.costs.plain) if left else [1.0] * rows,
            )
            spare = (1 + self._budget) * planner.plain
            self._plan = planner.best(offers, spare) or self._due(planner, offers)
            if self._plan is not None:
                return planner.requests(requests, self._plan)
        return [request.declined() for request in requests]

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """What of the trees just drafted is worth a pass, where their drafters say how likely each node is."""
        if self._planner is None or self._plan is None or self._trial is not None:
            return list(trees)
        return self._planner.cut(trees, self._plan)

    def observe(
        self,
        offers: Sequence[Sequence[Offer]],
        requests: Sequence[DraftRequest],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        seconds: tuple[float, float],
        *,
        deciding: float = 0.0,
        ragged: bool = False,
    ) -> None:
        """Learn from a round.

        Args:
            offers: what every row could have taken.
            requests: what it took.
            trees: what was drafted for it.
            verdicts: what became of that.
            seconds: what proposing took; what scoring, verifying and committing took.
            deciding: what offering and choosing took.
            ragged: as it was chosen by.
        """
        rows, sizes = len(trees), [len(tree) for tree in trees]
        nodes = sum(sizes) if ragged else rows * max(sizes)
        surprise = self.costs.observe_pass(rows, nodes, seconds[1])
        if nodes == rows and abs(math.log(surprise)) < AGREES:
            self._plain[rows] = self._round
        spent = self._drafting(requests, trees, verdicts, seconds[0])
        for each in zip(offers, requests, trees, verdicts, strict=True):
            self.estimates.judge(*each)
        if self.costs.knows(rows):
            saved, promised, plain = 0.0, 0.0, self.costs.plain(rows)
            if spent or nodes > rows:
                cost = (spent + self.costs.line(rows).of(nodes)) / plain
                saved, promised = (each - cost for each in self._gained([len(each.tokens) for each in verdicts]))
            chosen = deciding / self.costs.passing(rows, rows)
            self._earn(rows, saved - chosen, promised - chosen)

    def _gained(self, tokens: Sequence[int]) -> tuple[float, float]:
        """Plain passes that these tokens of every row save, and those that they are worth."""
        rows, worth = len(tokens), None if self._planner is None else self._planner.worth
        promised = sum(tokens if worth is None else map(operator.mul, worth, tokens)) / rows
        if self._left is None:
            return promised, promised
        after = [left - emitted for left, emitted in zip(self._left, tokens, strict=True)]
        saved = plans.plain_time(self._left, self.costs.plain) - plans.plain_time(after, self.costs.plain)
        return saved / self.costs.plain(rows), promised

    def observe_pause(self, rows: int, seconds: float) -> None:
        """A paused round's pass took so long: the machine's pace is known behind the pause too."""
        self.costs.observe_pass(rows, rows, seconds)

    def _earn(self, rows: int, saved: float, promised: float) -> None:
        """A round of so many rows saved so many plain passes, and is worth so many once all rows have caught up.

        The budget takes what is saved: rows may never catch up. Where neither is gained on average, rounds pause.
        """
        self._budget = min(BUDGET, self._budget + REFILL + max(-BUDGET, saved))
        gain = (saved + promised) / 2
        self._gains[rows] += GAIN_FADE * (gain - self._gains[rows])
        if gain >= 0 or self._gains[rows] >= 0:
            self._pauses[rows].end()
        elif self._asked:
            self._pauses[rows].begin(self._round)

    def _drafting(
        self,
        requests: Sequence[DraftRequest],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        seconds: float,
    ) -> float:
        """Learn what drafting took; its seconds at the usual pace."""
        asked = defaultdict[str, list[tuple[int, int, int]]](list)
        for request, tree, verdict in zip(requests, trees, verdicts, strict=True):
            offer = request.offer
            if offer is None or offer.tree is not None or not request.depth:
                continue
            steps = max(tree.depths) if tree.steps is None else tree.steps
            if offer.ranked:  # paid for, however much of it was cut
                steps = request.depth
            if steps:
                asked[offer.drafter].append((steps, offer.unread, verdict.accepted))
        spent = 0.0
        for drafter, each in asked.items():
            rows, steps, unread = len(each), max(own[0] for own in each), max(own[1] for own in each)
            if len(asked) == 1:  # of several drafters nobody knows who took how long
                self.costs.observe_drafting(drafter, rows, steps, unread, seconds)
            spent += self.costs.drafting(drafter, rows, steps, unread)
            if drafter == self._trial and not any(own[2] for own in each):
                self._trials[drafter].begin(self._round)
            else:
                self._trials[drafter].end()
        return spent

    def _due(self, planner: Planner, offers: Sequence[Sequence[Offer]]) -> Plan | None:
        """A trial, one token deep, of the drafter that has waited longest, if it is time and the budget can pay.

        None of one whose step takes as long as a plain pass: that is all that a token may save.
        """
        drafters = {offer.drafter for own in offers for offer in own if offer.tree is None}
        for drafter in sorted(drafters, key=lambda each: self._trials[each].until):
            if self._round < self._trials[drafter].until:
                break
            plan = planner.trial(offers, drafter)
            affordable = plan.seconds / planner.plain - 1 <= self._budget
            if affordable and self.costs.drafting(drafter, planner.rows, 1) < planner.plain:
                self._trial = drafter
                return plan
            self._trials[drafter].until = self._round + TRIAL_AFTER  # the budget refills slowly
        return None
