"""How far to speculate next: measured cost times measured acceptance.

A pass over w nodes costs c(w) seconds here, drafting one token deeper costs s, and a draft of some source at depth i is
accepted with probability a(i) once its parent was. Speculating k deep is expected to emit

    E(k) = 1 + a(1) + a(1) a(2) + ... + a(1) ... a(k)      tokens in      T(k) = c(w(k)) + k s      seconds

(Leviathan et al., arXiv 2211.17192, theorem 3.8, with measured costs instead of a constant ratio). What the drafters
offer for each row is combined to the plan with the largest sum of E over T, down to plain decoding; and no plan may
stake more than speculation has earned. docs/controller.md says it in full.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial

from specstream.core import plans
from specstream.core.beliefs import Beliefs
from specstream.core.costs import Costs
from specstream.core.plans import Choice, Option, Plan, Taken
from specstream.core.ports import DraftRequest, Offer
from specstream.core.tree import TokenTree
from specstream.core.verify import Verdict

ACCOUNT, ALLOWANCE, GREETING = 3.0, 0.01, 0.3
"""What may be staked, in plain passes: what there is at first and at most, what each round adds, and each new text."""

TRIAL_AFTER, FREE_TRIAL_AFTER, PLAIN_AFTER = 16, 256, 128
"""Rounds after which a drafter that does not pay, the price of a wider pass, and of a plain one are tried again."""

RESTS = 4
"""Rounds for which offers that promise no more are not weighed again once they were declined."""


class Controller:
    """Chooses what each row drafts in the next round, and learns from what became of it."""

    def __init__(self) -> None:
        self._costs = Costs()
        self._beliefs = Beliefs()
        self._balance = ACCOUNT
        self._round = 0
        self._plain: dict[int, int] = {}  # rows -> the last plain round
        self._tried: dict[str, int] = {}  # source, or "" for what costs no step -> the last round with it
        self._poor: dict[str, int] = {}  # what is tried as one -> until which round the account cannot pay for it
        self._worth: list[float] = []  # a token of each row of this round
        self._packs = False  # whether its pass needs no padding
        self._declined: list[Offer] = []  # until round `_rested` the answer to them is no
        self._rested = self._idle = self._given = 0

    def renew(self) -> None:
        """Another text begins, in which drafters may be worth more than in the last one, or less."""
        self._beliefs.renew()
        self._balance = min(ACCOUNT, self._balance + GREETING)
        self._rested = self._idle = 0
        self._poor.clear()

    def choose(
        self,
        offers: Sequence[Sequence[Offer]],
        context: int = 0,
        ending: Sequence[float] | None = None,
        *,
        packs: bool = False,
    ) -> list[Choice]:
        """What to take of each row's offers.

        Args:
            offers: of every row.
            context: tokens that the longest row has.
            ending: in a batch that nobody joins, passes after which each row is expected to end.
            packs: whether a pass costs by the nodes of all rows together, and not by the largest tree for every row.
        """
        rows = len(offers)
        self._round, self._packs = self._round + 1, packs
        self._costs.look_back(context)
        timed = ending if self._costs.knows_plain(rows) else None
        self._worth = plans.worth(timed, partial(self._costs.passing, width=1)) if timed else [1.0] * rows
        plain: list[Choice] = [None] * rows
        if (
            not any(offers)
            or self._costs.plain_passes < 2
            or not self._costs.knows_plain(rows)
            or self._round - self._plain.get(rows, self._round) > PLAIN_AFTER
        ):
            return plain
        awake = [[offer for offer in available if not self._rests(offer)] for available in offers]
        options = [[Option(offer, self._beliefs.expected(offer)) for offer in available] for available in awake]
        hopeless = self._hopeless(options)
        best = None if hopeless else self._best(options)
        if best is not None:
            taken = zip(best.choices, self._worth, strict=True)
            return [self._ended(choice, best, each) for choice, each in taken]
        if trial := self._due(offers):
            return trial.choices
        if declined := [offer for available in awake for offer in available if offer.tree is None]:
            self._declined, self._rested = declined, self._round + RESTS
        if hopeless:
            self._idle = self._round + RESTS
        return plain

    @property
    def idle(self) -> bool:
        """Whether a drafter that has the same to offer in every round need not be asked for the next one."""
        return self._round + 1 < self._idle

    def _rests(self, offer: Offer) -> bool:
        """Whether such a one was declined a moment ago. Known trees are judged, and so weighed, in every round."""
        return self._round < self._rested and any(plans.alike(offer, each) for each in self._declined)

    def observe(
        self,
        offers: Sequence[Sequence[Offer]],
        requests: Sequence[DraftRequest],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        seconds: tuple[float, float],
    ) -> None:
        """Learn from a round.

        Args:
            offers: what every row could have taken.
            requests: what it took.
            trees: what was drafted for it.
            verdicts: what became of that.
            seconds: what proposing took; what scoring, verifying and committing took.
        """
        rows, width = len(trees), self._nodes([len(tree) for tree in trees])
        taken = [plans.done(request, tree) for request, tree in zip(requests, trees, strict=True)]
        charge = self._costs.observe_pass(rows, width, seconds[1])
        self._plain.setdefault(rows, self._round)
        if width == 1:
            self._plain[rows] = self._round
        if len(steps := plans.steps_of(taken)) == 1:  # of several drafters nobody knows who took how long
            ((source, (deepest, unread)),) = steps.items()
            self._costs.observe_draft(rows, source, deepest, unread, seconds[0])
        for choice, request, tree, verdict in zip(taken, requests, trees, verdicts, strict=True):
            if choice:
                self._tried[plans.kind_of(choice.offer)] = self._round
            if choice and choice.least:
                # A draft that ended found out by a step more, whose token it may have proposed all the same.
                kept = choice.depth - (choice.depth < request.depth or max(tree.depths) < choice.depth)
                beside = tree.drafted - kept * choice.offer.branches
                self._beliefs.reached(choice.offer).judge(request.depth, kept, beside)
                self._beliefs.judge_cut(choice.offer, request.depth, verdict.accepted)
        for available, choice, verdict in zip(offers, taken, verdicts, strict=True):
            self._beliefs.judge(available, choice, verdict)
        self._balance = min(ACCOUNT, self._balance + ALLOWANCE + self._gain(taken, charge, verdicts))

    def _gain(self, taken: Sequence[Choice], charge: float, verdicts: Sequence[Verdict]) -> float:
        """Plain passes that a round saved, negative if it lost some: no more than the account may hold."""
        if not any(taken):
            return 0.0
        rows, spent = len(taken), charge + sum(self._drafting(taken))
        emitted = self._emitted([len(verdict.tokens) for verdict in verdicts])
        return max(-ACCOUNT, emitted / rows - spent / self._costs.passing(rows, 1))

    def _drafting(self, choices: Sequence[Choice]) -> tuple[float, float]:
        """Seconds of the steps that a round's drafters take, and of what they read before."""
        rows, drafting, reading = len(choices), 0.0, 0.0
        for source, (deepest, unread) in plans.steps_of(choices).items():
            drafting += self._costs.steps(rows, source, deepest)
            reading += self._costs.reading(rows, source, unread)
        return drafting, reading

    def _hopeless(self, options: Sequence[Sequence[Option]]) -> bool:
        """Whether all that they may emit, at the lowest price of any, is slower than plain decoding: then no plan pays.

        Most rounds in which nothing pays end here. They are not to pay for pricing plans.
        """
        rows = len(options)
        tokens = self._emitted([max((option.expected[option.depth] for option in own), default=1.0) for own in options])
        seconds = min((self._cheapest(rows, option.offer) for own in options for option in own), default=math.inf)
        return tokens * self._costs.passing(rows, 1) <= rows * seconds

    def _cheapest(self, rows: int, offer: Offer) -> float:
        """Seconds below which no plan stays that takes it."""
        step = self._costs.steps(rows, plans.kind_of(offer), 1) if offer.tree is None else 0.0
        return self._alone(rows, 1 if offer.cuts else offer.width(1)) + step

    def _alone(self, rows: int, width: int) -> float:
        """Seconds of a pass in which one row has a tree of so many nodes and the others have nothing to verify."""
        return self._costs.passing(rows, self._nodes([width, *[1] * (rows - 1)]))

    def _best(self, options: Sequence[Sequence[Option]]) -> Plan | None:
        """The fastest plan, if it is expected to be faster than plain decoding and the account can pay for it."""
        rows = len(options)
        plain = self._costs.passing(rows, 1)
        every = [option for own in options for option in own]
        most = max((option.offer.steps(option.depth) for option in every), default=0)
        fixed = not any(option.offer.cuts for option in every)
        best, fastest = None, rows / plain
        for width in sorted({width for option in every for width in option.widths[1:]}):
            # Whatever steps bring, they do not make the pass cheaper: most widths need no closer look.
            dear = fastest * self._alone(rows, width)
            if fixed and self._emitted([plans.pick(own, most, width)[1] for own in options]) <= dear:
                continue
            for steps in range(min(most, width - 1) + 1):
                picked = self._worthwhile([plans.pick(own, steps, width) for own in options], fastest)
                tokens = self._emitted([expected for _, expected in picked])
                plan = self._plan([choice for choice, _ in picked], tokens)
                affordable = plan.width == 2 or plan.stake <= (1 + self._balance) * plain
                if affordable and plan.rate > fastest:
                    best, fastest = plan, plan.rate
        return best

    def _worthwhile(self, picked: list[tuple[Choice, float]], rate: float) -> list[tuple[Choice, float]]:
        """Where rows pay for their own nodes alone: without what brings less than those cost, at so many a second."""
        sizes = [plans.size_of(choice) for choice, _ in picked]
        rows, drafted = len(sizes), sum(sizes) - len(sizes)
        if not self._packs or not drafted:
            return picked
        node = (self._costs.passing(rows, self._nodes(sizes)) - self._costs.passing(rows, 1)) / drafted * rate
        gains = [worth * (each[1] - 1) for worth, each in zip(self._worth, picked, strict=True)]
        rated = zip(picked, gains, sizes, strict=True)
        return [each if gain > node * (size - 1) else (None, 1.0) for each, gain, size in rated]

    def _nodes(self, sizes: Sequence[float]) -> float:
        """Nodes a row by which a pass over trees of these sizes is priced."""
        return plans.evenly(sum(sizes), len(sizes)) if self._packs else max(sizes)

    def _emitted(self, expected: Sequence[float]) -> float:
        """Tokens of all rows, each counted by what it is worth."""
        worths = self._worth or [1.0] * len(expected)  # none yet where rounds are shown that were not chosen here
        return sum(each * tokens for each, tokens in zip(worths, expected, strict=True))

    def _plan(self, choices: list[Choice], tokens: float) -> Plan:
        rows, sizes = len(choices), [plans.size_of(choice) for choice in choices]
        drafting, reading = self._drafting(choices)
        nodes = self._nodes(sizes)
        seconds, most = self._costs.passing(rows, nodes) + drafting, self._costs.at_most(rows, nodes) + drafting
        if any(choice and choice.offer.cuts for choice in choices):
            seconds = self._cut_short(choices)
        bounds = {"seconds": seconds, "most": most, "reading": reading}
        return Plan(choices=choices, tokens=tokens, width=max(sizes), **bounds)

    def _cut_short(self, choices: Sequence[Choice]) -> float:
        """Seconds of the drafts and the pass where drafts end early as often as they did."""
        sizes, steps = [1.0] * len(choices), dict[str, list[list[float]]]()
        for row, choice in enumerate(choices):
            if choice is None:
                continue
            offer, depth, reach = choice.offer, choice.depth, self._beliefs.reached(choice.offer)
            nodes = 1 + offer.branches * reach.tokens(depth) + reach.beside
            sizes[row] = nodes if offer.cuts else offer.width(depth)
            if offer.tree is None:
                going = reach.going(depth) if offer.cuts else [1.0] * offer.steps(depth)
                steps.setdefault(plans.kind_of(offer), []).append(going)
        drafting = sum(self._costs.steps(len(choices), kind, plans.together(each)) for kind, each in steps.items())
        return self._costs.passing(len(choices), self._nodes(sizes)) + drafting

    def _ended(self, choice: Choice, plan: Plan, each: float) -> Choice:
        """With what ends it, where a token is worth ``each``."""
        rows = len(plan.choices)
        if choice is None or not choice.offer.cuts or plan.width < 2:
            return choice
        own = plans.size_of(choice) if self._packs else plan.width
        others = sum(map(plans.size_of, plan.choices)) - own
        sizes = range(1, 1 + max(own, 1 + plans.BESIDE))
        widths = [plans.evenly(others + size, rows) if self._packs else size for size in sizes]
        passes = [self._costs.passing(rows, width) for width in widths]
        step = self._costs.steps(rows, plans.kind_of(choice.offer), 1)
        found = plans.priced(choice, own, passes, step, plan.rate / rows / max(each, 1e-9))
        # Now and then nodes are given away as far as they should cost little, until it is known what they cost.
        widest = bisect_right(passes, passes[0] * (1 + plans.GIVEN_AWAY))
        if self._round - self._given < TRIAL_AFTER or self._costs.knows_well(rows, widths[widest - 1]):
            return found
        self._given = self._round
        return found._replace(prices=(*[0.0] * (widest - 1), *found.prices[widest - 1 :]))

    def _due(self, offers: Sequence[Sequence[Offer]]) -> Plan | None:
        """A trial, one token deep, of what has waited longest, if it is time and the account can pay for it."""
        rows = len(offers)
        plain = self._costs.passing(rows, 1)
        kinds = {plans.kind_of(offer) for available in offers for offer in available}
        for kind in sorted(kinds, key=lambda kind: self._tried.get(kind, 0)):
            waited = self._round - self._tried.get(kind, 0)
            overdue = waited >= (TRIAL_AFTER if kind else FREE_TRIAL_AFTER)
            if self._round < self._poor.get(kind, 0) or (not overdue and (not kind or self._round < self._rested)):
                continue
            first = [next((each for each in available if plans.kind_of(each) == kind), None) for available in offers]
            choices: list[Choice] = [Taken(offer, 1) if offer else None for offer in first]
            tokens = self._emitted([self._beliefs.expected(choice.offer)[1] if choice else 1.0 for choice in choices])
            plan = self._plan(choices, tokens)
            hopeful = self._emitted([self._beliefs.hopeful(choice.offer) if choice else 1.0 for choice in choices])
            due = overdue or hopeful * plain > plan.most * rows
            missing = plan.stake / plain - 1 - max(self._balance, ALLOWANCE * waited)
            if due and missing <= 0:
                return plan
            if due:  # a round adds no more than the allowance; prices change
                self._poor[kind] = self._round + min(TRIAL_AFTER, int(missing / ALLOWANCE))
        return None
