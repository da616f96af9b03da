"""How far to speculate next: measured cost times measured acceptance.

A pass over w nodes costs c(w) seconds here, drafting one token deeper costs s, and a draft of some source at depth i is
accepted with probability a(i) once its parent was. Speculating k deep is expected to emit

    E(k) = 1 + a(1) + a(1) a(2) + ... + a(1) ... a(k)      tokens in      T(k) = c(w(k)) + k s      seconds

(Leviathan et al., arXiv 2211.17192, theorem 3.8, with measured costs instead of a constant ratio). What the drafters
offer for each row is combined to the plan with the largest sum of E over T, down to plain decoding; and no plan may
stake more than speculation has earned. docs/controller.md says it in full.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from specstream.core.policy import plans
from specstream.core.policy.planner import Planner
from specstream.core.policy.plans import Choice, Plan, Taken
from specstream.core.policy.prices import PriceList
from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.tree import TokenTree

ACCOUNT, ALLOWANCE, GREETING = 3.0, 0.01, 0.3
"""What may be staked, in plain passes: what there is at first and at most, what each round adds, and each new text."""

TRIAL_AFTER, FREE_TRIAL_AFTER, PLAIN_AFTER = 16, 256, 128
"""Rounds after which a drafter that does not pay, the price of a wider pass, and of a plain one are tried again."""

LONGEST_WAIT = 128
"""The first of these doubles, up to so many, with every trial of which nothing was accepted."""

RESTS = 4
"""Rounds for which offers that promise no more are not weighed again once they were declined."""


class Controller:
    """Chooses what each row drafts in the next round, and learns from what became of it."""

    def __init__(self) -> None:
        self._planner = Planner()
        self._prices = PriceList()
        self._balance = ACCOUNT
        self._round = 0
        self._plain: dict[int, int] = {}  # rows -> the last plain round
        self._tried: dict[str, int] = {}  # source, or "" for what costs no step -> the last round with it
        self._waits: dict[str, int] = {}  # what is tried as one -> rounds after which it is tried again
        self._trial: str | None = None  # what this round tries, if anything
        self._poor: dict[str, int] = {}  # what is tried as one -> until which round the account cannot pay for it
        self._declined: list[Offer] = []  # until round `_rested` the answer to them is no
        self._rested = self._idle = self._given = 0

    def know(self, prices: PriceList) -> None:
        """Take what passes and drafts cost here, as it was measured before the first answer."""
        self._prices = prices

    def renew(self) -> None:
        """Another text begins, in which drafters may be worth more than in the last one, or less."""
        self._planner.beliefs.renew()
        self._balance = min(ACCOUNT, self._balance + GREETING)
        self._rested = self._idle = 0
        self._poor.clear()
        self._waits = {kind: max(TRIAL_AFTER, wait // 2) for kind, wait in self._waits.items()}

    def choose(
        self,
        offers: Sequence[Sequence[Offer]],
        context: int = 0,
        ending: Sequence[float] | None = None,
        *,
        ragged: bool = False,
    ) -> list[Choice]:
        """What to take of each row's offers.

        Args:
            offers: of every row.
            context: tokens that the longest row has.
            ending: in a batch that nobody joins, passes after which each row is expected to end.
            ragged: whether a pass costs by the nodes of all rows together, and not by the largest tree for every row.
        """
        rows, planner = len(offers), self._planner
        self._round, self._trial = self._round + 1, None
        planner.costs.look_back(context)
        planner.begin(rows, ending, ragged=ragged)
        plain: list[Choice] = [None] * rows
        if (
            not any(offers)
            or not planner.costs.knows_plain(rows)
            or self._round - self._plain.get(rows, self._round) > PLAIN_AFTER
        ):
            return plain
        awake = [[offer for offer in available if not self._rests(offer)] for available in offers]
        options = planner.options(awake)
        hopeless = planner.hopeless(options)
        best = None if hopeless else planner.best(options, self._balance)
        if best is not None:
            return [self._ended(choice, best, each) for choice, each in zip(best.choices, planner.worth, strict=True)]
        if trial := self._due(offers):
            return trial.choices
        if declined := [offer for available in awake for offer in available if offer.tree is None]:
            self._declined, self._rested = declined, self._round + RESTS
        if hopeless:
            self._idle = self._round + RESTS
        return plain

    def plain_seconds(self, rows: int) -> float | None:
        """What a plain pass of so many rows takes here; None until that is known."""
        return self._planner.costs.plain(rows)

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
        planner = self._planner
        rows, width = len(trees), planner.nodes([len(tree) for tree in trees])
        taken = [plans.done(request, tree) for request, tree in zip(requests, trees, strict=True)]
        charge = planner.costs.observe_pass(rows, width, seconds[1])
        self._plain.setdefault(rows, self._round)
        if width == 1:
            self._plain[rows] = self._round
        if len(steps := plans.steps_of(taken)) == 1:  # of several drafters nobody knows who took how long
            ((source, (asking, deepest, unread)),) = steps.items()
            planner.costs.observe_draft(asking, source, deepest, unread, seconds[0])
        for choice, request, tree, verdict in zip(taken, requests, trees, verdicts, strict=True):
            if choice and choice.least:
                # A draft that ended found out by a step more, whose token it may have proposed all the same.
                kept = choice.depth - (choice.depth < request.depth or max(tree.depths) < choice.depth)
                beside = tree.drafted - kept * choice.offer.branches
                planner.beliefs.reached(choice.offer).judge(request.depth, kept, beside)
                planner.beliefs.judge_cut(choice.offer, request.depth, verdict.accepted)
        for available, choice, verdict in zip(offers, taken, verdicts, strict=True):
            planner.beliefs.judge(available, choice, verdict)
        self._remember(taken, verdicts)
        self._balance = min(ACCOUNT, self._balance + ALLOWANCE + self._gain(taken, charge, verdicts))

    def _remember(self, taken: Sequence[Choice], verdicts: Sequence[Verdict]) -> None:
        """What was tried or taken in this round, and whether in vain."""
        accepted = dict[str, int]()
        for choice, verdict in zip(taken, verdicts, strict=True):
            if choice:
                kind = plans.kind_of(choice.offer)
                accepted[kind] = accepted.get(kind, 0) + verdict.accepted
        for kind, tokens in accepted.items():
            in_vain = kind == self._trial and not tokens
            longer = min(LONGEST_WAIT, 2 * self._waits.get(kind, TRIAL_AFTER))
            self._tried[kind], self._waits[kind] = self._round, longer if in_vain else TRIAL_AFTER

    def _gain(self, taken: Sequence[Choice], charge: float, verdicts: Sequence[Verdict]) -> float:
        """Plain passes that a round saved, negative if it lost some: no more than the account may hold."""
        if not any(taken):
            return 0.0
        rows, spent = len(taken), charge + sum(self._planner.drafting(taken))
        emitted = self._planner.emitted([len(verdict.tokens) for verdict in verdicts])
        return max(-ACCOUNT, emitted / rows - spent / self._planner.costs.passing(rows, 1))

    def _ended(self, choice: Choice, plan: Plan, each: float) -> Choice:
        """With what ends it, where a token is worth ``each``."""
        rows, planner = len(plan.choices), self._planner
        if choice is None or not choice.offer.cuts or plan.width < 2:
            return choice
        own = plans.size_of(choice) if planner.ragged else plan.width
        others = sum(map(plans.size_of, plan.choices)) - own
        sizes = range(1, 1 + max(own, 1 + plans.BESIDE))
        widths = [plans.evenly(others + size, rows) if planner.ragged else size for size in sizes]
        passes = [planner.costs.passing(rows, width) for width in widths]
        kind = plans.kind_of(choice.offer)
        step = planner.costs.steps(plans.steps_of(plan.choices)[kind].rows, kind, 1)
        found = plans.priced(choice, own, passes, step, plan.rate / rows / max(each, 1e-9))
        # Now and then nodes are given away as far as they should cost little, until it is known what they cost.
        widest = bisect_right(passes, passes[0] * (1 + plans.GIVEN_AWAY))
        if self._round - self._given < TRIAL_AFTER or planner.costs.knows_well(rows, widths[widest - 1]):
            return found
        self._given = self._round
        return found._replace(prices=(*[0.0] * (widest - 1), *found.prices[widest - 1 :]))

    def _due(self, offers: Sequence[Sequence[Offer]]) -> Plan | None:
        """A trial, one token deep, of what has waited longest, if it is time and the account can pay for it."""
        rows, planner, beliefs = len(offers), self._planner, self._planner.beliefs
        plain = planner.costs.passing(rows, 1)
        kinds = {plans.kind_of(offer) for available in offers for offer in available}
        for kind in sorted(kinds, key=lambda kind: self._tried.get(kind, 0)):
            waited = self._round - self._tried.get(kind, 0)
            overdue = waited >= (self._waits.get(kind, TRIAL_AFTER) if kind else FREE_TRIAL_AFTER)
            if self._round < self._poor.get(kind, 0) or (not overdue and (not kind or self._round < self._rested)):
                continue
            taken = self._trying(kind, offers)
            choices: list[Choice] = [Taken(offer, 1) if offer else None for offer in taken]
            tokens = planner.emitted([beliefs.expected(each)[1] if each else 1.0 for each in taken])
            plan = planner.plan(choices, tokens)
            hopeful = planner.emitted([beliefs.hopeful(each) if each else 1.0 for each in taken])
            due = overdue or hopeful * plain > plan.most * rows
            missing = plan.stake / plain - 1 - max(self._balance, ALLOWANCE * waited)
            if due and missing <= 0:
                self._trial = kind
                return plan
            if due:  # a round adds no more than the allowance; prices change
                self._poor[kind] = self._round + min(TRIAL_AFTER, int(missing / ALLOWANCE))
        return None

    def _trying(self, kind: str, offers: Sequence[Sequence[Offer]]) -> list[Offer | None]:
        """What each row is to try: of one kind, the offer to prefer.

        Where rows pay for their own nodes alone, one row tries for all: the one of which a token is worth most.
        """
        found = [next((each for each in available if plans.kind_of(each) == kind), None) for available in offers]
        if not (kind and self._planner.ragged):
            return found
        worths = self._planner.worth
        first = max((row for row, offer in enumerate(found) if offer), key=worths.__getitem__)
        return [offer if row == first else None for row, offer in enumerate(found)]
