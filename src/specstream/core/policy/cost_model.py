"""What passes and drafts cost here, in seconds: measured once at start, and scaled by what runs since then.

A pass costs by the nodes of all its rows, by the number of rows, and by the context that each of them attends to. The
start-up self-test measures some of each (``prices.py``); between them costs are piecewise linear. A machine with other
work has slow spells, in which everything takes longer. So a measurement is divided by the pace of the passes around it
before it corrects a cost: what decides is only how costs compare.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

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
        points: seconds by nodes, at least one.
    """

    def __init__(self, points: Mapping[float, float]) -> None:
        self.at = sorted(points)
        self.seconds = list(accumulate((points[each] for each in self.at), max))

    def of(self, nodes: float) -> float:
        place = min(max(bisect_right(self.at, nodes), 1), len(self.at) - 1)
        if not place:
            return self.seconds[0]
        low, start = self.at[place - 1], self.seconds[place - 1]
        slope = (self.seconds[place] - start) / (self.at[place] - low)
        seconds = start + (nodes - low) * slope
        return max(seconds, start * nodes / low) if nodes < low else seconds  # no pass costs more than one by one


class Steps(Line):
    """The same where what lies between two sizes costs as the larger: passes are padded to it."""

    def of(self, nodes: float) -> float:
        place = bisect_left(self.at, nodes)
        return self.seconds[place] if place < len(self.at) else super().of(nodes)


class Corrections:
    """Of each kind the newest measurements over what was expected, and their lower median."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int | str, int], list[float]] = {}
        self._typical: dict[tuple[int | str, int], tuple[float, int]] = {}  # and when it was last measured

    def add(self, kind: tuple[int | str, int], ratio: float, votes: int, now: int) -> None:
        """``votes`` measurements that were as expected count beside a first one."""
        known = self._newest[kind] = [*self._newest.get(kind, [1.0] * votes)[1 - NEWEST :], ratio]
        self._typical[kind] = sorted(known)[(len(known) - 1) // 2], now

    def of(self, kind: tuple[int | str, int], now: int) -> float | None:
        """None where nothing was measured, or not for long."""
        typical, at = self._typical.get(kind, (None, 0))
        return typical if now - at <= LIFETIME else None

    def known(self, rows: int, now: int) -> dict[int, float]:
        """Of passes over so many rows, by their rung; plain passes are never forgotten."""
        own = ((rung, each) for (count, rung), each in self._typical.items() if count == rows)
        return {rung: typical for rung, (typical, at) in own if now - at <= LIFETIME or rung == _rung(rows)}

    def count(self, kind: tuple[int | str, int]) -> int:
        """Measurements that count."""
        return len(self._newest.get(kind, ()))


class _Pass(NamedTuple):
    kind: tuple[int, int]
    ratio: float


class CostModel:
    """Costs at the context of the round that is planned.

    Attributes:
        prices: of the start-up self-test; empty where there was none, and shares of a plain pass stand in.
    """

    def __init__(self, prices: PriceList | None = None) -> None:
        self.prices = PriceList()
        self._tables: dict[int, dict[int, Line]] = {}  # context -> rows -> seconds by nodes
        self._steps: dict[str, dict[int, Line]] = {}  # drafter -> rows -> seconds by depth
        self.know(prices or PriceList())
        self._context = 0
        self._passes, self._drafts = Corrections(), Corrections()
        self._recent: list[_Pass] = []  # the newest passes, and how many times the cost they took
        self._pace = 1.0
        self._paces = deque[float](maxlen=LATELY)
        self._now = 0
        self._plain: dict[int, int] = {}  # rows -> plain passes that were timed
        self._bases: dict[tuple[int, int], dict[float, float]] = {}  # of rows behind a context: seconds by nodes
        self._lines: dict[int, Steps] = {}  # by rows, since the last pass

    @property
    def outdated(self) -> bool:
        """Whether passes take so much less than was measured at start that it should be measured again."""
        return bool(self._tables) and len(self._paces) == LATELY and _median(self._paces) < FASTER

    def know(self, prices: PriceList) -> None:
        """What the start-up self-test found, beside what it found before."""
        self.prices = self.prices.merged(prices)
        passes = dict[int, dict[int, dict[float, float]]]()
        for (rows, nodes, context), seconds in sorted(self.prices.passes.items()):
            passes.setdefault(context, {}).setdefault(rows, {})[nodes] = seconds
        for table in (table for own in passes.values() for table in own.values()):
            if len(table) == 1:  # too slow a machine for more
                table.update({nodes * 2: seconds * (1 + NODE_SHARE) for nodes, seconds in table.items()})
        self._tables = {
            at: {rows: Line(each) for rows, each in sorted(own.items())} for at, own in sorted(passes.items())
        }
        steps = dict[str, dict[int, dict[float, float]]]()
        for drafter, own in self.prices.drafts.items():
            for (rows, depth), seconds in own.items():
                steps.setdefault(drafter, {}).setdefault(rows, {0: 0.0})[depth] = seconds
        self._steps = {drafter: {rows: Line(each) for rows, each in own.items()} for drafter, own in steps.items()}
        self._bases, self._lines = {}, {}

    def look_at(self, context: int) -> None:
        """Rows of the round to come have so many tokens."""
        if context // CONTEXT_STEP != self._context // CONTEXT_STEP:
            self._lines.clear()
        self._context = context

    def knows(self, rows: int) -> bool:
        """Whether it can be said what a plain pass of so many rows takes: measured at start, or twice since."""
        near = min(self._plain, key=lambda count: abs(count - rows), default=rows)
        return bool(self._tables) or self._plain.get(near, 0) > 1

    def line(self, rows: int) -> Steps:
        """Seconds of a pass over so many rows, by the nodes of all of them, at the usual pace."""
        if rows not in self._lines:
            known = self._passes.known(rows, self._now)
            table = self._base_table(rows).items()
            self._lines[rows] = Steps({nodes: base * _near(known, rows, nodes) for nodes, base in table})
        return self._lines[rows]

    def plain(self, rows: int) -> float:
        """Seconds of a plain pass over so many rows, at the usual pace."""
        return self._base_table(rows)[rows] * (self._passes.of((rows, _rung(rows)), 0) or 1.0)

    def passing(self, rows: int, nodes: float) -> float:
        """Seconds of a pass over so many rows and nodes just now."""
        return self.line(rows).of(nodes) * self._pace

    def drafting(self, drafter: str, rows: int, depth: float, unread: int = 0) -> float:
        """Seconds that a drafter takes for so many rows, so deep, behind tokens to read first, at the usual pace."""
        if not depth or not rows:
            return 0.0
        ratio = self._drafts.of((drafter, _rung(rows)), 0)
        base = self._draft_base(drafter, rows, depth) * (1.0 if ratio is None else ratio)
        step = base / depth
        return base + max(0, unread - 2) * READ_SHARE * step

    def observe_pass(self, rows: int, nodes: float, seconds: float) -> float:
        """A pass took so long, with verification and commit.

        Returns:
            How many times what was expected that is, at the pace of the passes before.
        """
        kind = rows, _rung(nodes)
        expected = self._base_table(rows).get(nodes) or self._base(rows, nodes)
        known = _near(self._passes.known(rows, self._now), rows, nodes)
        if not self._recent and not self._tables:
            self._pace = seconds / expected  # nothing was measured at start: the first pass says what a second is
        others = [each.ratio for each in self._recent if each.kind != kind]
        if len(others) > 1 or self._passes.count(kind) < NEWEST // 2:
            pace = _median(others) if others else self._pace
            votes = VOTES if self._tables else 0
            self._passes.add(kind, seconds / (expected * pace), votes, self._now)
        ratio = seconds / (expected * known)
        surprise = ratio / self._pace
        self._recent = [*self._recent[1 - PACE :], _Pass(kind, ratio)]
        self._pace = _median([each.ratio for each in self._recent])
        self._paces.append(self._pace)
        self._plain[rows] = self._plain.get(rows, 0) + (nodes <= rows)
        self._now += 1
        self._lines.pop(rows, None)
        return surprise

    def observe_drafting(self, drafter: str, rows: int, depth: int, unread: int, seconds: float) -> None:
        """A drafter took so long."""
        base = self._draft_base(drafter, rows, depth) * (1 + max(0, unread - 2) * READ_SHARE / depth)
        votes = VOTES if drafter in self._steps else 0
        self._drafts.add((drafter, _rung(rows)), seconds / (base * self._pace), votes, 0)

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
            return 1 + NODE_SHARE * (nodes / rows - 1)
        (low, near), *more = self._tables.items()
        seconds = _between(near, rows, nodes)
        if not more:
            return seconds
        high, far = more[-1]
        return seconds + max(0.0, (self._context - low) / (high - low)) * (_between(far, rows, nodes) - seconds)

    def _draft_base(self, drafter: str, rows: int, depth: float) -> float:
        if drafter not in self._steps:
            return STEP_SHARE * depth * self._base(1, 1)
        return _between(self._steps[drafter], rows, depth)


def _between(lines: Mapping[int, Line], rows: int, at: float) -> float:
    """Between the numbers of rows that were measured; beyond them those that are nearest."""
    low = max((each for each in lines if each <= rows), default=min(lines))
    high = min((each for each in lines if each >= rows), default=max(lines))
    seconds = lines[low].of(at)
    return seconds if low == high else seconds + (rows - low) / (high - low) * (lines[high].of(at) - seconds)


def _near(known: Mapping[int, float], rows: int, nodes: float) -> float:
    """The correction of such passes, else of the next smaller ones, else of the next larger, else of plain ones."""
    plain, rung = _rung(rows), _rung(nodes)
    others = [each for each in known if plain < each <= rung + 7] if rung > plain else []
    smaller = max((each for each in others if each <= rung), default=None)
    return known.get(min(others, default=plain) if smaller is None else smaller, 1.0)


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
