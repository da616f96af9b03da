"""What a pass of each width and a step of each drafter cost here: measured in the running process, as it runs.

A machine with other work has slow spells. What a pass of one width took before such a spell and one of another width
within it say nothing of each other, so prices are kept at the usual pace: of use is only how they compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from specstream.core.policy.running_costs import Curve, Newest

NODE_SHARE = 0.05
"""Before any wider pass was measured, each further node is taken to cost this share of a plain pass."""

UNKNOWN: Mapping[float, float] = {1: 1.0, 2: 1 + NODE_SHARE, 3: 1 + 2 * NODE_SHARE}
"""So, in plain passes."""

READ_ANYWAY = 2
"""Tokens that the first step of a round reads at no extra price: the last draft and the bonus."""

READ_SHARE = 0.1
"""Before any was measured, reading one token more is taken to cost a drafter this share of a step."""

MUCH_READ = 4
"""Tokens read beyond those from which on a round tells what reading costs, and with fewer what a step does."""

PACE = 3
"""Passes whose median tells how slow the machine is just now. Every measurement is divided by it, so that prices which
were not paid at the same time can be held against each other."""

FIRST_LIMIT = 1.25
"""The first pass of a width may pay for what the others find done: until there is a second, it counts at most so many
times what was expected. If two widths in a row are dearer than that, the second is believed: passes are dear here."""

FIRST_STEP_LIMIT = 0.25
"""So does the first step of a drafter: at most so many plain passes."""

CONTEXT = 512
"""Tokens before a pass in steps of which passes have prices of their own: attention looks at them for every node."""


_Place = tuple[int, int]
"""Rows of a pass, and its step of context."""

_Kind = TypeVar("_Kind")


class _Drafting:
    """What a drafter takes for so many steps, and for a token that it has to read first.

    The first step may be dearer than the others, so each number of steps has a price of its own; what was not measured
    lies along a line, beyond the deepest half as steep, as for passes. No step is dearer than those before it were:
    what says otherwise was disturbed.
    """

    def __init__(self) -> None:
        self._steps: dict[int, Newest] = {}
        self._prices = Curve({0: 0.0})
        self._read: Newest | None = None

    def taking(self, steps: float) -> float:
        return self._prices.of(steps)

    @property
    def reading(self) -> float:
        return self.taking(1) * READ_SHARE if self._read is None else self._read.typical

    def first(self, steps: int, behind: int, seconds: float, limit: float) -> None:
        self._steps[steps] = Newest(seconds * steps / (steps + behind * READ_SHARE), steps * limit)
        self._price()

    def add(self, steps: int, behind: int, seconds: float) -> None:
        rest = seconds - self.taking(steps)
        if behind < MUCH_READ:
            self._add(steps, max(0.0, seconds - behind * self.reading))
        elif rest <= 0:  # then steps cannot cost what they were thought to
            self._add(steps, seconds * steps / (steps + behind * READ_SHARE))
        elif self._read is None:
            self._read = Newest(rest / behind)
        else:
            self._read.add(rest / behind)

    def _add(self, steps: int, seconds: float) -> None:
        if steps in self._steps:
            self._steps[steps].add(seconds)
        else:
            self._steps[steps] = Newest(seconds)
        self._price()

    def _price(self) -> None:
        prices, most = dict[float, float]({0: 0.0}), math.inf
        for steps in sorted(self._steps):
            prices[steps] = min(self._steps[steps].typical, most * steps)
            if not self._steps[steps].limited:
                most = prices[steps] / steps
        self._prices = Curve(prices)


class Costs:
    """Seconds at the usual pace, for each number of rows in a batch, and of passes for each step of context.

    What was not measured takes the nearest that was.
    """

    def __init__(self) -> None:
        self._step = 0  # of context, where passes are just now
        self._passes: dict[_Place, dict[float, Newest]] = {}  # by width, seconds
        self._drafts: dict[str, dict[int, _Drafting]] = {}  # source -> rows -> seconds
        # What was answered since the last pass: of (rows, width), of a place, and for rows.
        self._known: dict[tuple[int, float], float] = {}
        self._curves: dict[_Place, Curve | None] = {}
        self._shapes: dict[int, _Shape] = {}
        self._forgiving = True
        self._now = 0
        # Of the newest passes, their rows and width, and how many times the price they took.
        self._recent: list[tuple[tuple[_Place, float], float]] = []
        self._pace = 1.0

    def look_back(self, context: int) -> None:
        """Passes come behind so many tokens from here on."""
        if (step := context // CONTEXT) != self._step:
            self._step = step
            self._forget()

    def knows_plain(self, rows: int) -> bool:
        """Whether it can be said what a plain pass of so many rows takes here.

        Made once, it may have been disturbed, or paid for memory: all others are held against it. Where none was made
        of so many rows, the nearest are asked.
        """
        here = rows, self._step
        if any(other == rows for other, _ in self._passes):
            return self._plain_twice(here)
        near = min(self._passes, key=partial(_distance, here), default=here)
        return self._plain_twice(near)

    def plain(self, rows: int) -> float | None:
        """Seconds of a plain pass of so many rows at the usual pace; None until two were timed."""
        return self.passing(rows, 1) if self.knows_plain(rows) else None

    def _plain_twice(self, place: _Place) -> bool:
        plain = self._measured(place, 1)
        return plain is not None and plain.count > 1

    def _measured(self, place: _Place, width: float) -> Newest | None:
        return self._passes.get(place, {}).get(width)

    def knows_well(self, rows: int, width: float) -> bool:
        """Whether passes of this width were measured often here."""
        known = self._measured((rows, self._step), width)
        return known is not None and known.known_well

    def observe_pass(self, rows: int, width: float, seconds: float) -> float:
        """A pass over ``width`` nodes a row, on average where it needs no padding, took ``seconds``, with verification.

        Returns:
            What it is to be charged with: the price of such a pass, or what it took where that is forgiven, both at
            the usual pace.
        """
        place = rows, self._step
        table, forgiven = self._passes.get(place, {}), False
        if width in table:
            self._add((place, width), seconds)
        else:
            seconds /= self._pace
            limit = FIRST_LIMIT * self.passing(rows, width) if self._passes and self._forgiving else math.inf
            self._passes.setdefault(place, {})[width] = Newest(seconds, limit, self._now)
            forgiven = seconds > limit
            self._forgiving = not forgiven
        self._now += 1
        self._forget()
        return seconds if forgiven else self.passing(rows, width)

    def _add(self, kind: tuple[_Place, float], seconds: float) -> None:
        """One more measurement of what was measured before: at the pace of the others, or it would say nothing."""
        known = self._passes[kind[0]][kind[1]]
        others = [ratio for other, ratio in self._recent if other != kind]
        if len(others) > 1 or not known.known_well:
            known.add(seconds / (_upper_median(others) if others else self._pace), self._now)
        else:
            known.seen(self._now)
        if kind[1] == 1 or known.known_well:
            self._recent = [*self._recent[1 - PACE :], (kind, seconds / known.typical)]
            self._pace = _upper_median([ratio for _, ratio in self._recent])

    def observe_draft(self, rows: int, source: str, steps: int, unread: int, seconds: float) -> None:
        """A drafter took ``seconds`` for so many steps of rows that asked, before which it read ``unread`` tokens."""
        table, behind = self._drafts.setdefault(source, {}), max(0, unread - READ_ANYWAY)
        seconds /= self._pace
        if rows in table:
            table[rows].add(steps, behind, seconds)
        else:
            limit = FIRST_STEP_LIMIT * self.passing(rows, 1) if self._passes else math.inf
            table[rows] = _Drafting()
            table[rows].first(steps, behind, seconds, limit)

    def steps(self, rows: int, source: str, steps: float) -> float:
        """Of drafting ``steps`` tokens deep for ``rows`` that ask; 0 for a drafter that was never tried."""
        known = self._drafting(rows, source)
        return known.taking(steps) if known else 0.0

    def reading(self, rows: int, source: str, unread: int) -> float:
        """Of what a drafter reads before its first step, beyond what it reads in any round."""
        known = self._drafting(rows, source)
        return max(0, unread - READ_ANYWAY) * known.reading if known else 0.0

    def _drafting(self, rows: int, source: str) -> _Drafting | None:
        return _nearest(self._drafts.get(source, {}), lambda other: abs(other - rows))

    def passing(self, rows: int, width: float) -> float:
        """Of a pass; between and beyond the measured widths along a line, and never less than a narrower one."""
        if (rows, width) not in self._known:
            self._known[rows, width] = self._passing(rows, width)
        return self._known[rows, width]

    def at_most(self, rows: int, width: float) -> float:
        """Of a pass, if what is no longer believed was right after all: what a trial may cost.

        More than twice as wide as any that was measured it may cost as much as several of those together: what lies so
        far along a line is a hope.
        """
        expected = self.passing(rows, width)
        if known := self._measured((rows, self._step), width):
            return max(expected, known.typical)
        shape, share, _ = self._shaped(rows)
        widths = [each / share for each in shape.widths]
        if width <= 2 * widths[-1]:
            return expected
        return min(self.passing(rows, each) * width / each for each in widths)

    def _forget(self) -> None:
        for answers in (self._known, self._curves, self._shapes):
            answers.clear()

    def _passing(self, rows: int, width: float) -> float:
        shape, share, price = self._shaped(rows)
        return price * shape.of(width * share)

    def _shaped(self, rows: int) -> _Shape:
        """By what such passes are priced: their own curve, or another's."""
        if rows not in self._shapes:
            own = self._curve((rows, self._step))
            self._shapes[rows] = _Shape(own, 1.0, 1.0) if own is not None and len(own) > 1 else self._borrow(rows)
        return self._shapes[rows]

    def _borrow(self, rows: int) -> _Shape:
        """From the nearest place for a place where fewer than two widths were measured."""
        here = rows, self._step
        distance = partial(_distance, here)
        curves = {each: curve for each in self._passes if (curve := self._curve(each))}
        base = here if here in curves else min(curves, key=distance, default=here)
        near = min((each for each, curve in curves.items() if len(curve) > 1), key=distance, default=None)
        # A pass costs by its nodes: w of each of n rows are to n nodes what wider ones of fewer rows are there.
        shape, nodes = (curves[near], 1 / near[0]) if near else (Curve(UNKNOWN), 1.0)
        known, seconds = curves[base].least if base in curves else (1, 1.0)
        return _Shape(shape, rows * nodes, seconds / shape.of(known * base[0] * nodes))

    def _curve(self, place: _Place) -> Curve | None:
        """Of the widths that were measured there and whose price is still believed."""
        if place not in self._curves:
            known = self._passes.get(place, {}).items()
            table = {width: each.typical for width, each in known if width == 1 or each.holds(self._now)}
            self._curves[place] = Curve(table) if table else None
        return self._curves[place]


class _Shape(NamedTuple):
    """A curve, what a width counts there, and what its seconds are to be multiplied by: 1 and 1 of the place's own."""

    curve: Curve
    share: float
    price: float


def _distance(here: _Place, other: _Place) -> tuple[int, int]:
    """Between two places; rows change a price by more than context does."""
    return abs(other[0] - here[0]), abs(other[1] - here[1])


def _upper_median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _nearest(table: Mapping[int, _Kind], distance: Callable[[int], int]) -> _Kind | None:
    near = min(table, key=distance, default=None)
    return None if near is None else table[near]
