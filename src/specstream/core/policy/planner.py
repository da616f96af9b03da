"""Plans of one round, priced: which of them is the fastest, by what costs and beliefs say.

What a plan is stands in ``plans.py``, what may be staked on it in ``controller.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from specstream.core.policy import plans
from specstream.core.policy.calibration import Beliefs
from specstream.core.policy.cost_model import Costs
from specstream.core.policy.plans import Choice, Option, Plan
from specstream.core.ports import Offer


class Planner:
    """Prices what rows may take in the round that was begun last.

    Attributes:
        costs: what passes and steps take.
        beliefs: what drafts bring.
        ragged: whether a pass of the round costs by the nodes of all rows together, not by the largest tree for every
            row.
    """

    def __init__(self) -> None:
        self.costs, self.beliefs, self.ragged = Costs(), Beliefs(), False
        self._rows = 0
        self._ending: Sequence[float] | None = None
        self._worth: list[float] | None = None

    def begin(self, rows: int, ending: Sequence[float] | None, *, ragged: bool) -> None:
        """Another round; the arguments are those of ``Controller.choose``."""
        self.ragged, self._rows, self._ending, self._worth = ragged, rows, ending, None

    @property
    def worth(self) -> list[float]:
        """Of a token of each row, 1 on average. Asked only where something is weighed: most rounds are plain."""
        if self._worth is None:
            timed = self._ending if self.costs.knows_plain(self._rows) else None
            self._worth = plans.worth(timed, partial(self.costs.passing, width=1)) if timed else [1.0] * self._rows
        return self._worth

    def options(self, offers: Sequence[Sequence[Offer]]) -> list[list[Option]]:
        """Every row's offers, with what they are expected to emit."""
        found: dict[int, Option] = {}  # rows may be offered the same
        for offer in (offer for available in offers for offer in available):
            if id(offer) not in found:
                found[id(offer)] = Option(offer, self.beliefs.expected(offer))
        return [[found[id(offer)] for offer in available] for available in offers]

    def nodes(self, sizes: Sequence[float]) -> float:
        """Nodes a row by which a pass over trees of these sizes is priced."""
        return plans.evenly(sum(sizes), len(sizes)) if self.ragged else max(sizes)

    def emitted(self, expected: Sequence[float]) -> float:
        """Tokens of all rows, each counted by what it is worth."""
        worths = self.worth or [1.0] * len(expected)  # none yet where rounds are shown that were not chosen here
        return sum(each * tokens for each, tokens in zip(worths, expected, strict=True))

    def drafting(self, choices: Sequence[Choice]) -> tuple[float, float]:
        """Seconds of the steps that a round's drafters take, and of what they read before."""
        drafting = reading = 0.0
        for source, (rows, deepest, unread) in plans.steps_of(choices).items():
            drafting += self.costs.steps(rows, source, deepest)
            reading += self.costs.reading(rows, source, unread)
        return drafting, reading

    def hopeless(self, options: Sequence[Sequence[Option]]) -> bool:
        """Whether all that they may emit, at the lowest price of any, is slower than plain decoding: then no plan pays.

        Most rounds in which nothing pays end here. They are not to pay for pricing plans.
        """
        if not any(options):
            return True
        rows = len(options)
        tokens = self.emitted([max((option.expected[option.depth] for option in own), default=1.0) for own in options])
        seconds = min(self._cheapest(rows, option.offer) for own in options for option in own)
        return tokens * self.costs.passing(rows, 1) <= rows * seconds

    def best(self, options: Sequence[Sequence[Option]], balance: float) -> Plan | None:
        """The fastest plan, if it is expected to be faster than plain decoding and so many plain passes can pay for it.

        A plan of one drafted node needs nobody to pay for it.
        """
        rows = len(options)
        plain = self.costs.passing(rows, 1)
        fixed = not any(option.offer.cuts for own in options for option in own)
        best, fastest = None, rows / plain
        for width, deepest in plans.bounds(options):
            # Whatever steps bring, they do not make the pass cheaper: most widths need no closer look.
            dear = fastest * self._alone(rows, width)
            if fixed and self.emitted([plans.pick(own, max(deepest), width)[1] for own in options]) <= dear:
                continue
            for steps in deepest:
                picked = self._worthwhile([plans.pick(own, steps, width) for own in options], fastest)
                tokens = self.emitted([expected for _, expected in picked])
                plan = self.plan([choice for choice, _ in picked], tokens)
                affordable = plan.width == 2 or plan.stake <= (1 + balance) * plain
                if affordable and plan.rate > fastest:
                    best, fastest = plan, plan.rate
        return best

    def plan(self, choices: list[Choice], tokens: float) -> Plan:
        """What they cost, where so many tokens are expected of them."""
        rows, sizes = len(choices), [plans.size_of(choice) for choice in choices]
        drafting, reading = self.drafting(choices)
        nodes = self.nodes(sizes)
        seconds, most = self.costs.passing(rows, nodes) + drafting, self.costs.at_most(rows, nodes) + drafting
        if any(choice and choice.offer.cuts for choice in choices):
            seconds = self._cut_short(choices)
        bounds = {"seconds": seconds, "most": most, "reading": reading}
        return Plan(choices=choices, tokens=tokens, width=max(sizes), **bounds)

    def _cheapest(self, rows: int, offer: Offer) -> float:
        """Seconds below which no plan stays that takes it."""
        step = self.costs.steps(1, plans.kind_of(offer), 1) if offer.tree is None else 0.0
        return self._alone(rows, 1 if offer.cuts else offer.width(1)) + step

    def _alone(self, rows: int, width: int) -> float:
        """Seconds of a pass in which one row has a tree of so many nodes and the others have nothing to verify."""
        return self.costs.passing(rows, self.nodes([width, *[1] * (rows - 1)]))

    def _worthwhile(self, picked: list[tuple[Choice, float]], rate: float) -> list[tuple[Choice, float]]:
        """Where rows pay for their own nodes alone: without what brings less than those cost, at so many a second."""
        sizes = [plans.size_of(choice) for choice, _ in picked]
        rows, drafted = len(sizes), sum(sizes) - len(sizes)
        if rows == 1 or not self.ragged or not drafted:
            return picked
        node = (self.costs.passing(rows, self.nodes(sizes)) - self.costs.passing(rows, 1)) / drafted * rate
        gains = [worth * (each[1] - 1) for worth, each in zip(self.worth, picked, strict=True)]
        rated = zip(picked, gains, sizes, strict=True)
        return [each if gain > node * (size - 1) else (None, 1.0) for each, gain, size in rated]

    def _cut_short(self, choices: Sequence[Choice]) -> float:
        """Seconds of the drafts and the pass where drafts end early as often as they did."""
        sizes, steps = [1.0] * len(choices), dict[str, list[list[float]]]()
        for row, choice in enumerate(choices):
            if choice is None:
                continue
            offer, depth, reach = choice.offer, choice.depth, self.beliefs.reached(choice.offer)
            nodes = 1 + offer.branches * reach.tokens(depth) + reach.beside
            sizes[row] = nodes if offer.cuts else offer.width(depth)
            if offer.tree is None:
                going = reach.going(depth) if offer.cuts else [1.0] * offer.steps(depth)
                steps.setdefault(plans.kind_of(offer), []).append(going)
        drafting = sum(self.costs.steps(len(each), kind, plans.together(each)) for kind, each in steps.items())
        return self.costs.passing(len(choices), self.nodes(sizes)) + drafting
