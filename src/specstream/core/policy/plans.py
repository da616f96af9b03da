"""Ways to run the next round: what each row takes of its offers, what that emits, and how long it lasts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, zip_longest
from typing import NamedTuple

from specstream.core.ports import DraftRequest, Offer
from specstream.core.tree import TokenTree

HORIZON = 64
"""Tokens over which a model that has fallen behind is expected to earn what it costs to catch up."""

SURE = 0.9
"""A draft that is likelier than this to be accepted is never ended."""

BESIDE, GIVEN_AWAY = 15, 0.25
"""Drafted nodes up to which one that takes no step of its own may be added, and the share of a plain pass that a trial
of more of them may cost."""


CHANCE = 2.0
"""How far apart two rows must be expected to end for their order to be certain, in roots of the passes left."""


class Taken(NamedTuple):
    """What a row takes, how deep at most, and ``least`` and ``prices`` of its ``DraftRequest``."""

    offer: Offer
    depth: int
    least: float = 0.0
    prices: tuple[float, ...] = ()


Choice = Taken | None
"""None for nothing."""


@dataclass(kw_only=True, slots=True)
class Plan:
    """One way to run the next round.

    Attributes:
        choices: one per row.
        tokens: expected, of all rows.
        width: nodes of its largest tree, if no draft ends early.
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


class Option:
    """An offer as far as it may be taken, with what each depth is expected to emit and how wide it is."""

    def __init__(self, offer: Offer, expected: Sequence[float]) -> None:
        self.offer = offer
        self.depth = min(offer.depth, len(expected) - 1)
        self.expected = expected
        self.widths = offer.nodes[: self.depth + 1]

    def within(self, steps: int, width: int) -> int:
        """How deep it goes."""
        depth = bisect_right(self.widths, width) - 1
        return depth if self.offer.steps(depth) <= steps else steps


def pick(options: Sequence[Option], steps: int, width: int) -> tuple[Choice, float]:
    """What is expected to emit most of a row's offers, within so many steps and so wide a tree, and how much."""
    best: tuple[Option, int] | None = None
    most = 1.0
    for option in options:
        depth = option.within(steps, width)
        if option.expected[depth] > most:
            best, most = (option, depth), option.expected[depth]
    return (Taken(best[0].offer, best[1]) if best else None), most


def priced(choice: Taken, width: int, passes: Sequence[float], step: float, rate: float) -> Taken:
    """What is taken, with the probabilities from which on a token pays: for a step and a node, and for a node alone.

    Args:
        choice: taken in a pass of ``width`` nodes, of a drafter that cuts.
        width: at least 2.
        passes: seconds of passes over 1, 2, ... nodes.
        step: seconds of one.
        rate: tokens a second that a row emits, in tokens like its own.
    """
    node = (passes[width - 1] - passes[0]) / (width - 1)
    least = (step + choice.offer.branches * node) * rate
    prices = tuple((wider - narrower) * rate for narrower, wider in pairwise(passes))
    return choice._replace(least=min(SURE, least), prices=prices)


def done(request: DraftRequest, tree: TokenTree) -> Choice:
    """What a row took, as deep as steps were made for it."""
    taken = max(tree.depths) if tree.steps is None else tree.steps
    return Taken(request.offer, taken, request.least) if request.offer and taken else None


def alike(offer: Offer, declined: Offer) -> bool:
    """Whether an offer promises what one did that was declined, however much its drafter has to read by now."""
    same = offer is declined or (offer.source, offer.expected) == (declined.source, declined.expected)
    return same and offer.tree is declined.tree is None


def size_of(choice: Choice) -> int:
    """Nodes of a row's tree, if its draft does not end early."""
    return choice.offer.width(choice.depth) if choice else 1


def evenly(nodes: float, rows: int) -> float:
    """Nodes a row of a pass that needs no padding, in steps: prices of ever other sizes would each be measured once.

    A pass with a node for each row is plain. Others are taken for the next power of two, or the middle between two.
    """
    if nodes <= rows:
        return 1.0
    return _rung(nodes) / rows


def _rung(nodes: float) -> float:
    """The next power of two, or the middle between two."""
    share, exponent = math.frexp(nodes)  # from one half on, below one
    return math.ldexp(next(each for each in (0.5, 0.75, 1.0) if share <= each), exponent)


def bounds(options: Sequence[Sequence[Option]]) -> Iterator[tuple[int, list[int]]]:
    """Widths of the largest tree that a plan may keep to, ascending, and for each the most steps that are worth a look.

    One row takes one offer, to one depth. Of several rows every width may go with every number of steps; of those that
    lie close together the largest stands for all.
    """
    if len(options) == 1:
        found: dict[int, set[int]] = {}
        for option in options[0]:
            for depth, width in enumerate(option.widths):
                if depth:
                    found.setdefault(width, set()).add(option.offer.steps(depth))
        yield from ((width, sorted(found[width])) for width in sorted(found))
        return
    every = [option for own in options for option in own]
    steps = _thinned({option.offer.steps(depth) for option in every for depth in range(option.depth + 1)})
    for width in _thinned({width for option in every for width in option.widths[1:]}):
        yield width, [each for each in steps if each < width]


def _thinned(values: Collection[int]) -> list[int]:
    """Ascending, and of those with the same next power of two, or middle between two, the largest."""
    return sorted({_rung(each): each for each in sorted(values)}.values())


def together(rows: Sequence[Sequence[float]]) -> float:
    """Expected steps of a drafter until the last of its rows has ended, by how likely each makes step 1, 2, ..."""
    return math.fsum(1 - math.prod(1 - chance for chance in step) for step in zip_longest(*rows, fillvalue=0.0))


def kind_of(offer: Offer) -> str:
    """What is tried anew, and priced, as one: a drafter that takes steps, or all known trees: only passes cost."""
    return offer.drafter if offer.tree is None else ""


class Steps(NamedTuple):
    """What a drafter does in a round: for so many rows, how many steps at most, behind how many tokens to read."""

    rows: int = 0
    deepest: int = 0
    unread: int = 0


def steps_of(choices: Sequence[Choice]) -> dict[str, Steps]:
    """For each drafter that takes any."""
    steps: dict[str, Steps] = {}
    for offer, depth, *_ in filter(None, choices):
        if offer.tree is None:
            rows, deepest, unread = steps.get(kind_of(offer), Steps())
            steps[kind_of(offer)] = Steps(rows + 1, max(deepest, offer.steps(depth)), max(unread, offer.unread))
    return steps


def worth(ending: Sequence[float], price: Callable[[int], float]) -> list[float]:
    """What a token more of each row is worth in a batch that nobody joins; 1 on average.

    Of the row that ends k-th of n, a pass less saves c(n - k + 1) - c(n - k), with c(j) the price of a plain pass over
    j rows: where rows cost little only the last one's passes count, and those of the others are made anyway. Rows whose
    order is still open share what they save.

    Args:
        ending: passes after which each row is expected to end. What chance does to that grows with its root.
        price: of a plain pass over so many rows.
    """
    rows = len(ending)
    prices = [0.0, *accumulate((price(count) for count in range(1, rows + 1)), max)]
    order = sorted(range(rows), key=ending.__getitem__)
    saved = [prices[rows - place] - prices[rows - place - 1] for place in range(rows)]
    found, begin = [0.0] * rows, 0
    for place in range(1, rows + 1):
        if place == rows or ending[order[place]] - ending[order[place - 1]] > CHANCE * math.sqrt(ending[order[place]]):
            for row in order[begin:place]:
                found[row] = sum(saved[begin:place]) / (place - begin) * rows / prices[rows]
            begin = place
    return found
