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
from dataclasses import dataclass
from typing import NamedTuple

from specstream.core.policy import plan as plans
from specstream.core.policy.acceptance import Estimates
from specstream.core.policy.cost_model import CostModel
from specstream.core.policy.plan import Ending, Plan, Planner
from specstream.core.policy.prices import PriceList
from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.tree import TokenTree

BUDGET, REFILL = 3.0, 0.01
"""The regret budget in plain passes: its cap, and what every round adds."""

BUDGET_OF_A_TEXT, REFILL_OF_A_TEXT = 1.0, 0.3
"""Of that, the most with which a text begins, and the least: it pays for its losses with its own gains."""

TRIAL_AFTER, LONGEST_WAIT = 16, 128
"""Rounds after which a drafter that does not pay is tried again; they double with every trial in vain."""

PLAIN_AFTER = 128
"""Rounds without a plain pass after which there are some, until one takes what was expected: all others are held
against it."""

LONGEST_PAUSE = 16
"""Most rounds of a pause. The first has one; they double as long as nothing is gained."""

GAIN_FADE = 1 / 16
"""Weight of the newest round in what rounds of so many rows gain on average."""

GAIN_OF_A_TEXT = 0.05
"""The most of it with which a text begins, in plain passes: what the last one gained says little about this one."""

AGREES = 0.25
"""How far what a plain pass takes may be from that, as a natural logarithm."""


class _Asked(NamedTuple):
    """Of a drafter in a round: rows that it drafted for, its deepest step, tokens to read first, accepted tokens."""

    rows: int = 0
    depth: int = 0
    unread: int = 0
    accepted: int = 0

    def and_by(self, depth: int, unread: int, accepted: int) -> _Asked:
        """With one row more."""
        return _Asked(self.rows + 1, max(self.depth, depth), max(self.unread, unread), self.accepted + accepted)


@dataclass
class _Pause:
    """Of rounds of so many rows: up to which round they pause, how long next time, and plain passes that one gains."""

    until: int = 0
    length: int = 1
    gain: float = 0.0


class Controller:
    """Chooses what each row drafts in the next round, and learns from what became of it."""

    def __init__(self, prices: PriceList | None = None) -> None:
        self.costs, self.estimates = CostModel(prices), Estimates()
        self._budget = BUDGET
        self._round = 0
        self._plain: dict[int, int] = {}  # rows -> the last plain round
        self._tried: dict[str, int] = {}  # drafter -> the last round with it
        self._waits: dict[str, int] = {}  # drafter -> rounds after which it is tried again
        self._trial: str | None = None  # what this round tries, if anything
        self._pauses = defaultdict[int, _Pause](_Pause)  # by rows
        self._asked = False  # whether anything could be drafted in this round
        self._planner: Planner | None = None  # of this round
        self._plan: Plan | None = None
        self._left: list[int] | None = None  # tokens, of each row of a batch that nobody joins

    def know(self, prices: PriceList) -> None:
        """What the start-up self-test measured."""
        self.costs.know(prices)

    def forget_costs(self) -> None:
        """Forget what passes and drafts cost: it is measured again."""
        self.costs = CostModel()

    def renew(self, rows: int = 1) -> None:
        """Texts of so many rows begin, in which drafters may be worth more than in the last ones, or less."""
        pause = self._pauses[rows]
        pause.until, pause.length, pause.gain = 0, max(1, pause.length // 2), min(GAIN_OF_A_TEXT, pause.gain)
        self._budget = min(BUDGET_OF_A_TEXT, max(0.0, self._budget) + REFILL_OF_A_TEXT)
        self._waits = {drafter: wait // 2 for drafter, wait in self._waits.items()}

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
        ending: Sequence[Ending] | None = None,
        *,
        ragged: bool = False,
    ) -> list[DraftRequest]:
        """The requests as they are to be met: with the offer taken, its depth and its nodes.

        Args:
            requests: of every row.
            offers: what there is for them.
            ending: of every row, in a batch that nobody joins.
            ragged: whether a pass costs by the nodes of all rows together, and not by the largest tree for every row.
        """
        rows = len(requests)
        self._round, self._trial, self._planner, self._plan = self._round + 1, None, None, None
        self._asked = any(request.depth for request in requests)
        self._left = None if ending is None else [each.left for each in ending]
        self.costs.look_at(max(len(request.tokens) for request in requests))
        last = self._plain.setdefault(rows, self._round)
        if not any(offers) or not self.costs.knows(rows) or self._round - last > PLAIN_AFTER:
            return [request.declined() for request in requests]
        worth = plans.worth(ending, self.costs.plain) if ending else [1.0] * rows
        calibrations = [request.calibrations for request in requests]
        planner = Planner(
            costs=self.costs, estimates=self.estimates, calibrations=calibrations, ragged=ragged, worth=worth
        )
        spare = (1 + self._budget) * planner.plain
        self._planner, self._plan = planner, planner.best(offers, spare) or self._due(planner, offers)
        if self._plan is None:
            return [request.declined() for request in requests]
        return planner.requests(requests, self._plan)

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
        ratio = self.costs.observe_pass(rows, nodes, seconds[1])
        if nodes == rows and abs(math.log(ratio)) < AGREES:
            self._plain[rows] = self._round
        spent = self._drafting(requests, trees, verdicts, seconds[0])
        for own, request, tree, verdict in zip(offers, requests, trees, verdicts, strict=True):
            self.estimates.judge(own, request, tree, verdict)
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
        pause, gain = self._pauses[rows], (saved + promised) / 2
        pause.gain += GAIN_FADE * (gain - pause.gain)
        if gain >= 0 or pause.gain >= 0:
            pause.length = 1
        elif self._asked:
            pause.until, pause.length = self._round + 1 + pause.length, min(2 * pause.length, LONGEST_PAUSE)

    def _drafting(
        self,
        requests: Sequence[DraftRequest],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        seconds: float,
    ) -> float:
        """Learn what drafting took; its seconds at the usual pace."""
        asked = dict[str, _Asked]()
        for request, tree, verdict in zip(requests, trees, verdicts, strict=True):
            offer = request.offer
            if offer is None or offer.tree is not None or not request.depth:
                continue
            steps = max(tree.depths) if tree.steps is None else tree.steps
            if offer.ranked:  # paid for, however much of it was cut
                steps = request.depth
            if steps:
                asked[offer.drafter] = asked.get(offer.drafter, _Asked()).and_by(steps, offer.unread, verdict.accepted)
        spent = 0.0
        for drafter, each in asked.items():
            if len(asked) == 1:  # of several drafters nobody knows who took how long
                self.costs.observe_drafting(drafter, each.rows, each.depth, each.unread, seconds)
            spent += self.costs.drafting(drafter, each.rows, each.depth, each.unread)
            self._remember(drafter, each.accepted)
        return spent

    def _remember(self, drafter: str, accepted: int) -> None:
        """It was tried or taken in this round; where something was accepted it may be tried again at once."""
        in_vain = drafter == self._trial and not accepted
        longer = min(LONGEST_WAIT, max(TRIAL_AFTER, 2 * self._waits.get(drafter, TRIAL_AFTER)))
        self._tried[drafter], self._waits[drafter] = self._round, longer if in_vain else 1

    def _due(self, planner: Planner, offers: Sequence[Sequence[Offer]]) -> Plan | None:
        """A trial, one token deep, of the drafter that has waited longest, if it is time and the budget can pay."""
        drafters = {offer.drafter for own in offers for offer in own if offer.tree is None}
        for drafter in sorted(drafters, key=lambda each: self._tried.get(each, 0)):
            waited = self._round - self._tried.get(drafter, -TRIAL_AFTER)
            if waited < self._waits.get(drafter, TRIAL_AFTER):
                continue
            plan = planner.trial(offers, drafter)
            if plan is not None and plan.stake / planner.plain - 1 <= self._budget:
                self._trial = drafter
                return plan
            self._tried[drafter] = self._round
        return None
