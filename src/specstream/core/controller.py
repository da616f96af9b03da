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

from specstream.core.acceptance import Acceptance
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

Choice = tuple[Offer, int] | None
"""What a row takes and how deep; None for nothing."""


@dataclass(kw_only=True, slots=True)
class _Plan:
    """One way to run the next round.

    Attributes:
        choices: one per row.
        tokens: expected, of all rows.
        seconds: of the drafts and the pass.
        reading: seconds that drafters need to catch up first.
    """

    choices: list[Choice]
    tokens: float
    seconds: float
    reading: float

    @property
    def depth(self) -> int:
        return max((choice[1] for choice in self.choices if choice), default=0)

    @property
    def stake(self) -> float:
        """Seconds, all of which are lost but those of a plain pass if nothing is accepted."""
        return self.seconds + self.reading

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
        self._balance = ACCOUNT
        self._round = 0
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
        best = max(self._bets(offers), key=lambda plan: plan.rate, default=None)
        if best is not None:
            return best.choices
        trial = self._due(offers)
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
        taken = [
            (request.offer, max(tree.depths)) if request.offer and tree.drafted else None
            for request, tree in zip(requests, trees, strict=True)
        ]
        self._costs.observe_pass(rows, width, seconds[1])
        self._plain.setdefault(rows, self._round)
        if width == 1:
            self._plain[rows] = self._round
        if len(steps := _steps(taken)) == 1:  # of several drafters nobody knows who took how long
            ((source, (deepest, unread)),) = steps.items()
            self._costs.observe_draft(rows, source, deepest, unread, seconds[0])
        for choice in taken:
            if choice:
                self._tried[_kind(choice[0])] = self._round
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
            elif taken and taken[0] is offer:
                # Depth `accepted + 1` was judged and turned down, unless an end was accepted: nothing lies behind it.
                matched = verdict.accepted
                judged = min(taken[1], emitted, matched + 1)
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
                affordable = plan.depth == 1 or plan.stake <= (1 + self._balance) * plain
                if affordable and plan.rate > rows / plain:
                    yield plan

    def _plan(self, choices: list[Choice], width: int) -> _Plan:
        rows, tokens = len(choices), 0.0
        for choice in choices:
            tokens += (choice[0].expected or self._of(choice[0]).expected)[choice[1]] if choice else 1.0
        seconds, reading = self._costs.passing(rows, width), 0.0
        for source, (deepest, unread) in _steps(choices).items():
            seconds += self._costs.steps(rows, source, deepest)
            reading += self._costs.reading(rows, source, unread)
        return _Plan(choices=choices, tokens=tokens, seconds=seconds, reading=reading)

    def _due(self, offers: Sequence[Sequence[Offer]]) -> _Plan | None:
        """A trial, one token deep, of what has waited longest, if it is time and the account can pay for it."""
        rows = len(offers)
        plain = self._costs.passing(rows, 1)
        kinds = {_kind(offer) for available in offers for offer in available}
        for kind in sorted(kinds, key=lambda kind: self._tried.get(kind, 0)):
            choices = [next(((each, 1) for each in available if _kind(each) == kind), None) for available in offers]
            plan = self._plan(choices, max(choice[0].width(1) for choice in choices if choice))
            hopeful = sum(self._hopeful(choice[0]) if choice else 1.0 for choice in plan.choices)
            waited = self._round - self._tried.get(kind, 0)
            due = waited >= TRIAL_AFTER or hopeful * plain > plan.seconds * rows if kind else waited >= FREE_TRIAL_AFTER
            if due and plan.stake <= (1 + self._balance) * plain:
                return plan
        return None

    def _hopeful(self, offer: Offer) -> float:
        """Tokens that it might emit, taken to depth 1; who measures for itself is asked again when it has waited."""
        return offer.expected[1] if offer.expected else self._of(offer).hopeful

    def _of(self, offer: Offer) -> Acceptance:
        return self._acceptance.setdefault(offer.source, Acceptance())


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
            best, most = (option.offer, depth), option.expected[depth]
    return best


def _kind(offer: Offer) -> str:
    """What is tried anew, and priced, as one: a drafter that takes steps, or all known trees: only passes cost."""
    return offer.source.partition("/")[0] if offer.tree is None else ""


def _steps(choices: Sequence[Choice]) -> dict[str, tuple[int, int]]:
    """For each drafter that takes steps: how many, and the most it has to read first."""
    steps: dict[str, tuple[int, int]] = {}
    for offer, depth in filter(None, choices):
        if offer.tree is None:
            deepest, unread = steps.get(_kind(offer), (0, 0))
            steps[_kind(offer)] = max(deepest, offer.steps(depth)), max(unread, offer.unread)
    return steps
