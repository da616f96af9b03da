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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from specstream.core.acceptance import Acceptance, Reach
from specstream.core.costs import Costs
from specstream.core.ports import DraftRequest, Offer
from specstream.core.tree import TokenTree
from specstream.core.verify import Verdict

ACCOUNT, ALLOWANCE = 3.0, 0.01
"""What may be staked, in plain passes: what there is at first and at most, and what each round adds."""

HORIZON = 64
"""Tokens over which a model that has fallen behind is expected to earn what it costs to catch up."""

TRIAL_AFTER, FREE_TRIAL_AFTER, PLAIN_AFTER = 16, 256, 128
"""Rounds after which a drafter that does not pay, the price of a wider pass, and of a plain one are tried again."""

REST = 4
"""Rounds for which a decision against drafters that take steps holds, but for trials: prices move slowly, and to weigh
all plans in every round takes a hundredth of a small model's pass."""

SURE = 0.9
"""A draft that is likelier than this to be accepted is never ended."""


class Taken(NamedTuple):
    """What a row takes, how deep at most, and how unlikely it may become (``DraftRequest.least``)."""

    offer: Offer
    depth: int
    least: float = 0.0


Choice = Taken | None
"""None for nothing."""


@dataclass(kw_only=True, slots=True)
class _Plan:
    """One way to run the next round.

    Attributes:
        choices: one per row.
        tokens: expected, of all rows.
        width: of the pass, if no draft ends early.
        seconds: of the drafts and the pass.
        most: the same if no draft ends early, and if the last price of such a pass still holds.
        reading: seconds that drafters need to catch up first.
    """

    choices: list[Choice]
    tokens: float
    width: int
    seconds: float
    most: float
    reading: float

    @property
    def stake(self) -> float:
        """Seconds, all of which are lost but those of a plain pass if nothing is accepted."""
        return self.most + self.reading

    @property
    def rate(self) -> float:
        """Expected tokens per second."""
        share = min(1.0, self.tokens / len(self.choices) / HORIZON)
        return self.tokens / (self.seconds + share * self.reading)


class Controller:
    """Chooses what each row drafts in the next round, and learns from what became of it."""

    def __init__(self) -> None:
        self._costs = Costs()
        self._acceptance: dict[str, Acceptance] = {}
        self._reach: dict[str, Reach] = {}
        self._balance = ACCOUNT
        self._round = self._rests = 0  # the round, and the last one in which nothing is weighed but known trees
        self._plain: dict[int, int] = {}  # rows -> the last plain round
        self._tried: dict[str, int] = {}  # source, or "" for what costs no step -> the last round with it

    def choose(self, offers: Sequence[Sequence[Offer]]) -> list[Choice]:
        """What to take of each row's offers."""
        rows = len(offers)
        self._round += 1
        plain: list[Choice] = [None] * rows
        if (
            not any(offers)
            or self._costs.plain_passes < 2
            or self._round - self._plain.get(rows, self._round) > PLAIN_AFTER
        ):
            return plain
        known = any(each.tree for available in offers for each in available)
        weigh = known or self._round > self._rests
        if best := max(self._bets(offers), key=lambda plan: plan.rate, default=None) if weigh else None:
            return [choice and choice._replace(least=self._least(choice.offer, best)) for choice in best.choices]
        trial = self._due(offers)
        self._rests = 0 if trial else self._round + REST - 1 if weigh else self._rests
        return trial.choices if trial else plain

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
        rows, width = len(trees), max(map(len, trees))
        taken = [_done(request, tree) for request, tree in zip(requests, trees, strict=True)]
        self._costs.observe_pass(rows, width, seconds[1])
        self._plain.setdefault(rows, self._round)
        if width == 1:
            self._plain[rows] = self._round
        if len(steps := _steps(taken)) == 1:  # of several drafters nobody knows who took how long
            ((source, (deepest, unread)),) = steps.items()
            self._costs.observe_draft(rows, source, deepest, unread, seconds[0])
        for choice, request, tree in zip(taken, requests, trees, strict=True):
            if choice:
                self._tried[_kind(choice.offer)] = self._round
            if choice and choice.least:
                self._reached(choice.offer).judge(request.depth, max(tree.depths))
        for available, choice, verdict in zip(offers, taken, verdicts, strict=True):
            self._judge(available, choice, verdict)
        self._balance = min(ACCOUNT, self._balance + ALLOWANCE + self._gain(taken, width, verdicts))

    def _judge(self, offers: Sequence[Offer], taken: Choice, verdict: Verdict) -> None:
        """Every tree that was known is judged by what was emitted, whether it was taken or not; others if taken."""
        emitted = len(verdict.tokens)
        for offer in offers:
            if offer.tree is not None and not offer.tree.proposals:
                matched = offer.tree.matched(verdict.tokens)
                judged = min(offer.depth, emitted, matched + 1)
            elif taken and taken.offer is offer:
                # Depth `accepted + 1` was judged and turned down, unless an end was accepted: nothing lies behind it.
                # Where a draft ended early the drafter turned it down.
                matched = verdict.accepted
                judged = min(taken.depth, emitted, matched + 1)
            else:
                continue
            self._acceptance.setdefault(offer.source, Acceptance()).judge(judged, matched)

    def _gain(self, taken: Sequence[Choice], width: int, verdicts: Sequence[Verdict]) -> float:
        """Plain passes that a round saved, negative if it lost some."""
        if not any(taken):
            return 0.0
        rows = len(taken)
        spent = self._costs.passing(rows, width)
        for source, (deepest, unread) in _steps(taken).items():
            spent += self._costs.steps(rows, source, deepest)
            spent += self._costs.reading(rows, source, unread)
        emitted = sum(len(verdict.tokens) for verdict in verdicts)
        return emitted / rows - spent / self._costs.passing(rows, 1)

    def _bets(self, offers: Sequence[Sequence[Offer]]) -> Iterator[_Plan]:
        """Plans that are expected to be faster than plain decoding and stake no more than the account holds."""
        rows = len(offers)
        plain = self._costs.passing(rows, 1)
        options = [[_Option(offer, self._of(offer)) for offer in available] for available in offers]
        every = [option for available in options for option in available]
        most = max((option.offer.steps(option.depth) for option in every), default=0)
        for width in sorted({width for option in every for width in option.widths[1:]}):
            for steps in range(min(most, width - 1) + 1):
                plan = self._plan([_pick(available, steps, width) for available in options], width)
                affordable = width == 2 or plan.stake <= (1 + self._balance) * plain
                if affordable and plan.rate > rows / plain:
                    yield plan

    def _plan(self, choices: list[Choice], width: int) -> _Plan:
        rows, tokens = len(choices), 0.0
        for choice in choices:
            tokens += (choice.offer.expected or self._of(choice.offer).expected)[choice.depth] if choice else 1.0
        drafting = reading = 0.0
        for source, (deepest, unread) in _steps(choices).items():
            drafting += self._costs.steps(rows, source, deepest)
            reading += self._costs.reading(rows, source, unread)
        seconds, most = self._costs.passing(rows, width) + drafting, self._costs.at_most(rows, width) + drafting
        if any(choice and choice.offer.cuts for choice in choices):
            seconds = self._cut_short(choices)
        return _Plan(choices=choices, tokens=tokens, width=width, seconds=seconds, most=most, reading=reading)

    def _cut_short(self, choices: Sequence[Choice]) -> float:
        """Seconds of the drafts and the pass where drafts end early as often as they did."""
        rows, width, steps = len(choices), 1.0, dict[str, float]()
        for offer, depth, _ in filter(None, choices):
            reach, kind = self._reached(offer), _kind(offer)
            width = max(width, 1 + offer.branches * reach.tokens(depth) if offer.cuts else offer.width(depth))
            if offer.tree is None:
                steps[kind] = max(steps.get(kind, 0.0), reach.steps(depth) if offer.cuts else offer.steps(depth))
        return self._costs.passing(rows, width) + sum(self._costs.steps(rows, *each) for each in steps.items())

    def _least(self, offer: Offer, plan: _Plan) -> float:
        """The probability from which on a token more pays for its step and its node, at the rate that is expected."""
        rows, width = len(plan.choices), plan.width
        if not offer.cuts or width < 2:
            return 0.0
        node = (self._costs.passing(rows, width) - self._costs.passing(rows, 1)) / (width - 1)
        return min(SURE, (self._costs.steps(rows, _kind(offer), 1) + offer.branches * node) * plan.rate / rows)

    def _due(self, offers: Sequence[Sequence[Offer]]) -> _Plan | None:
        """A trial, one token deep, of what has waited longest, if it is time and the account can pay for it."""
        rows = len(offers)
        plain = self._costs.passing(rows, 1)
        kinds = {_kind(offer) for available in offers for offer in available}
        for kind in sorted(kinds, key=lambda kind: self._tried.get(kind, 0)):
            first = [next((each for each in available if _kind(each) == kind), None) for available in offers]
            choices: list[Choice] = [Taken(offer, 1) if offer else None for offer in first]
            plan = self._plan(choices, max(choice.offer.width(1) for choice in choices if choice))
            hopeful = sum(self._hopeful(choice.offer) if choice else 1.0 for choice in plan.choices)
            waited = self._round - self._tried.get(kind, 0)
            due = waited >= TRIAL_AFTER or hopeful * plain > plan.most * rows if kind else waited >= FREE_TRIAL_AFTER
            if due and plan.stake <= (1 + max(self._balance, ALLOWANCE * waited)) * plain:
                return plan
        return None

    def _hopeful(self, offer: Offer) -> float:
        """Tokens that it might emit, taken to depth 1; who measures for itself is asked again when it has waited."""
        return offer.expected[1] if offer.expected else self._of(offer).hopeful

    def _of(self, offer: Offer) -> Acceptance:
        return self._acceptance.setdefault(offer.source, Acceptance())

    def _reached(self, offer: Offer) -> Reach:
        return self._reach.setdefault(offer.source, Reach())


class _Option:
    """An offer as far as it may be taken, with what each depth is expected to emit and how wide it is."""

    def __init__(self, offer: Offer, acceptance: Acceptance) -> None:
        self.offer = offer
        self.depth = offer.depth if offer.expected else min(offer.depth, acceptance.reach)
        self.expected = offer.expected or acceptance.expected
        self.widths = [offer.width(depth) for depth in range(self.depth + 1)]

    def within(self, steps: int, width: int) -> int:
        """How deep it goes."""
        depth = bisect_right(self.widths, width) - 1
        return depth if self.offer.steps(depth) <= steps else steps


def _pick(options: Sequence[_Option], steps: int, width: int) -> Choice:
    """What is expected to emit most of a row's offers, within so many steps and so wide a tree."""
    best: Choice = None
    most = 1.0
    for option in options:
        depth = option.within(steps, width)
        if option.expected[depth] > most:
            best, most = Taken(option.offer, depth), option.expected[depth]
    return best


def _done(request: DraftRequest, tree: TokenTree) -> Choice:
    """What a row took, as deep as steps were made for it."""
    drafted = max(tree.depths)
    if request.offer and request.offer.cuts and request.least:
        return Taken(request.offer, min(request.depth, drafted + 1), request.least)
    return Taken(request.offer, drafted) if request.offer and drafted else None


def _kind(offer: Offer) -> str:
    """What is tried anew, and priced, as one: a drafter that takes steps, or all known trees: only passes cost."""
    return offer.source.partition("/")[0] if offer.tree is None else ""


def _steps(choices: Sequence[Choice]) -> dict[str, tuple[int, int]]:
    """For each drafter that takes steps: how many, and the most it has to read first."""
    steps: dict[str, tuple[int, int]] = {}
    for offer, depth, _ in filter(None, choices):
        if offer.tree is None:
            deepest, unread = steps.get(_kind(offer), (0, 0))
            steps[_kind(offer)] = max(deepest, offer.steps(depth)), max(unread, offer.unread)
    return steps
