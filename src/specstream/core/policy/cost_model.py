"""What passes and drafts cost here, in seconds: measured once at start, and scaled by what runs since then.

A pass costs by the nodes of all its rows, by the number of rows, and by the context that each of them attends to. The
start-up self-test measures some of each (``prices.py``); between them costs are piecewise linear. A machine with other
work has slow spells, in which everything takes longer. So a measurement is divided by the pace of the passes around it
before it corrects a cost: what decides is only how costs compare.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate

from specstream.core.policy.prices import PriceList

NODE_SHARE = 0.05
"""Plain passes that a further node is taken to cost where nothing was measured."""

STEP_SHARE = 0.1
"""Plain passes that a step of a drafter is taken to cost where nothing was measured."""

READ_SHARE = 0.1
"""Steps that a draft model takes to read a token, beyond the two that every first step reads."""

NEWEST = 9
"""Measurements of a kind that count; their lower median is believed, as disturbances add to them."""

VOTES = 2
"""Measurements that the start-up self-test counts for: a pass that was disturbed changes nothing."""

PACE = 3
"""Passes whose median tells how slow the machine is just now."""

LATELY, FASTER = 64, 0.8
"""Passes whose median pace is compared with the start-up self-test's, and a share of its seconds: what runs in less was
measured while the machine had other work, and how costs compare may be wrong."""

LIFETIME = 128
"""Passes after which a correction is forgotten: what looks dear by accident is not run, and so not measured again."""

CONTEXT_STEP = 64
"""Tokens of context for which costs are the same."""


class Line:
    """Seconds by nodes: piecewise linear, never falling.

    Args:
        points: seconds by nodes, at least one. Of one alone, ``NODE_SHARE`` tells what further nodes cost.
    """

    def __init__(self, points: Mapping[float, float]) -> None:
        if len(points) == 1:
            points = {**points, **{2 * at: seconds * (1 + NODE_SHARE) for at, seconds in points.items()}}
        self.at = sorted(points)
        self.seconds = list(accumulate((points[each] for each in self.at), max))

    def of(self, nodes: float) -> float:
        place = min(max(bisect_right(self.at, nodes), 1), len(self.at) - 1)
        low, start = self.at[place - 1], self.seconds[place - 1]
        seconds = start + (nodes - low) * (self.seconds[place] - start) / (self.at[place] - low)
        return max(seconds, start * nodes / low) if nodes < low else seconds  # no pass costs more than one by one


class Steps(Line):
    """The same where what lies between two sizes costs as the larger: passes are padded to it."""

    def of(self, nodes: float) -> float:
        place = bisect_left(self.at, nodes)
        return self.seconds[place] if place < len(self.at) else super().of(nodes)


class Corrections:
    """Measured over expected seconds.

    Attributes:
        typical: of each kind, the lower median of its newest measurements.
    """

    def __init__(self) -> None:
        self.typical: dict[int, float] = {}
        self._newest: dict[int, deque[float]] = {}
        self._at: dict[int, int] = {}  # when each was last measured

    def add(self, kind: int, ratio: float, votes: int, now: int = 0) -> None:
        """``votes`` measurements that were as expected count beside a first one."""
        newest = self._newest.setdefault(kind, deque([1.0] * votes, NEWEST))
        newest.append(ratio)
        self.typical[kind], self._at[kind] = sorted(newest)[(len(newest) - 1) // 2], now

    def forget(self, before: int, *, keep: int) -> None:
        """All but one kind, if they were last measured before that."""
        for kind in [kind for kind, at in self._at.items() if at < before and kind != keep]:
            del self.typical[kind], self._newest[kind], self._at[kind]

    def count(self, kind: int) -> int:
        """Measurements that count."""
        return len(self._newest.get(kind, ()))


class CostModel:
    """Costs at the context of the round that is planned.

    Attributes:
        prices: of the start-up self-test; empty where there was none, and shares of a plain pass stand in.
    """

    def __init__(self, prices: PriceList | None = None) -> None:
        self.prices = PriceList()
        self._passes = dict[int, Corrections]()  # by rows; their kinds are rungs of nodes
        self._drafts = defaultdict[str, Corrections](Corrections)  # by drafter; their kinds are rungs of rows
        self._recent = deque[tuple[tuple[int, int], float]](maxlen=PACE)  # rows and rung, measured over expected
        self._pace = 1.0
        self._paces = deque[float](maxlen=LATELY)
        self._now = self._context = 0
        self._bases: dict[tuple[int, int], dict[float, float]] = {}  # of rows behind a context: seconds by nodes
        self._lines: dict[int, Steps] = {}  # by rows, since the last pass
        self.know(prices or PriceList())

    @property
    def outdated(self) -> bool:
        """Whether passes take so much less than was measured at start that it should be measured again."""
        return bool(self._tables) and len(self._paces) == LATELY and _median(self._paces) < FASTER

    def know(self, prices: PriceList) -> None:
        """What the start-up self-test found, beside what it found before."""
        self.prices = self.prices.merged(prices)
        passes = defaultdict[int, dict[int, dict[float, float]]](lambda: defaultdict(dict))
        for (rows, nodes, context), seconds in sorted(self.prices.passes.items()):
            passes[context][rows][nodes] = seconds
        drafts = defaultdict[str, dict[int, dict[float, float]]](lambda: defaultdict(lambda: {0: 0.0}))
        for drafter, own in self.prices.drafts.items():
            for (rows, depth), seconds in own.items():
                drafts[drafter][rows][depth] = seconds
        self._tables = {
            context: {rows: Line(each) for rows, each in own.items()} for context, own in sorted(passes.items())
        }
        self._steps = {drafter: {rows: Line(each) for rows, each in own.items()} for drafter, own in drafts.items()}
        self._bases, self._lines = {}, {}

    def look_at(self, context: int) -> None:
        """Rows of the round to come have so many tokens."""
        if context // CONTEXT_STEP != self._context // CONTEXT_STEP:
            self._lines.clear()
        self._context = context

    def knows(self, rows: int) -> bool:
        """Whether it can be said what a plain pass of so many rows takes: measured at start, or twice since."""
        near = min(self._passes, key=lambda count: abs(count - rows), default=None)
        return bool(self._tables) or (near is not None and self._passes[near].count(_rung(near)) > 1)

    def line(self, rows: int) -> Steps:
        """Seconds of a pass over so many rows, by the nodes of all of them, at the usual pace."""
        if rows not in self._lines:
            table = self._base_table(rows).items()
            self._lines[rows] = Steps({nodes: base * self._correction(rows, nodes) for nodes, base in table})
        return self._lines[rows]

    def plain(self, rows: int) -> float:
        """Seconds of a plain pass over so many rows, at the usual pace."""
        return self._base_table(rows)[rows] * self._correction(rows, rows)

    def passing(self, rows: int, nodes: float) -> float:
        """Seconds of a pass over so many rows and nodes just now."""
        return self.line(rows).of(nodes) * self._pace

    def drafting(self, drafter: str, rows: int, depth: float, unread: int = 0) -> float:
        """Seconds that a drafter takes for so many rows, so deep, behind tokens to read first, at the usual pace."""
        if not depth or not rows:
            return 0.0
        known = self._drafts[drafter].typical.get(_rung(rows), 1.0)
        return known * self._draft_base(drafter, rows, depth, unread)

    def observe_pass(self, rows: int, nodes: float, seconds: float) -> float:
        """A pass took so long, with verification and commit.

        Returns:
            How many times what was expected that is, at the pace of the passes before.
        """
        kind, own = _rung(nodes), self._passes.setdefault(rows, Corrections())
        expected = self._base_table(rows).get(nodes) or self._base(rows, nodes)
        if not self._recent and not self._tables:
            self._pace = seconds / expected  # nothing was measured at start: the first pass says what a second is
        ratio = seconds / (expected * self._correction(rows, nodes))
        others = [each for other, each in self._recent if other != (rows, kind)]
        pace = _median(others) if others else self._pace
        own.add(kind, seconds / (expected * pace), VOTES if self._tables else 0, self._now)
        own.forget(self._now - LIFETIME, keep=_rung(rows))
        surprise = ratio / self._pace
        self._recent.append(((rows, kind), ratio))
        self._pace = _median(each for _, each in self._recent)
        self._paces.append(self._pace)
        self._now += 1
        self._lines.pop(rows, None)
        return surprise

    def observe_drafting(self, drafter: str, rows: int, depth: int, unread: int, seconds: float) -> None:
        """A drafter took so long."""
        expected = self._draft_base(drafter, rows, depth, unread) * self._pace
        self._drafts[drafter].add(_rung(rows), seconds / expected, VOTES if drafter in self._steps else 0)

    def _correction(self, rows: int, nodes: float) -> float:
        """That of such passes, else of the next smaller ones, else of the next larger, else of plain ones."""
        if rows not in self._passes:
            return 1.0
        known, plain, rung = self._passes[rows].typical, _rung(rows), _rung(nodes)
        if rung not in known:
            wider = [each for each in known if each > plain] if rung > plain else []
            rung = min(wider, key=lambda each: (each > rung, abs(each - rung)), default=plain)
        return known.get(rung, 1.0)

    def _base_table(self, rows: int) -> dict[float, float]:
        """What was measured at start, or is taken for it, at sizes of every kind."""
        key = rows, self._context // CONTEXT_STEP
        if key not in self._bases:
            sizes = [rows, *(_size(rung) for rung in range(_rung(rows) + 1, _rung(16 * rows) + 1))]
            self._bases[key] = {nodes: self._base(rows, nodes) for nodes in sizes}
        return self._bases[key]

    def _base(self, rows: int, nodes: float) -> float:
        """By the self-test, else in plain passes."""
        if not self._tables:
            return Line({rows: 1.0}).of(nodes)
        (low, near), *more = self._tables.items()
        seconds = _between(near, rows, nodes)
        if not more:
            return seconds
        high, far = more[-1]
        return seconds + max(0.0, (self._context - low) / (high - low)) * (_between(far, rows, nodes) - seconds)

    def _draft_base(self, drafter: str, rows: int, depth: float, unread: int) -> float:
        steps = self._steps.get(drafter)
        seconds = _between(steps, rows, depth) if steps else STEP_SHARE * depth * self._base(1, 1)
        return seconds * (1 + max(0, unread - 2) * READ_SHARE / depth)


def _between(lines: Mapping[int, Line], rows: int, at: float) -> float:
    """Between the numbers of rows that were measured; beyond them those that are nearest."""
    low = max((each for each in lines if each <= rows), default=min(lines))
    high = min((each for each in lines if each >= rows), default=max(lines))
    seconds = lines[low].of(at)
    return seconds if low == high else seconds + (rows - low) / (high - low) * (lines[high].of(at) - seconds)


@lru_cache(1024)
def _rung(count: float) -> int:
    """What counts as one kind: sizes up to a power of two, or to the middle between two."""
    share, exponent = math.frexp(count)
    return 2 * exponent + (share > 0.5) + (share > 0.75)


def _size(rung: int) -> int:
    """The largest of its kind."""
    return round(math.ldexp(0.75 if rung % 2 else 0.5, rung // 2))


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
