"""Prices: of one thing the newest measurements that count, of several things a line through them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

NEWEST = 9
"""Measurements of a kind that count. What disturbs them mostly adds to them: of two the smaller is believed, of more
the median."""

LIFETIMES = (8, 32, 128)
"""Passes after which the price of a wider one is no longer believed, by how often it was measured: a disturbed
measurement makes a width look dear, what looks dear is not chosen, and so it would never be measured again."""


class Newest:
    """The newest measurements of one kind.

    Args:
        first: the first of them.
        limit: what it counts at most, until there is a second.
        at: when it was made.
    """

    def __init__(self, first: float, limit: float = math.inf, at: int = 0) -> None:
        self._seconds = [first] if first <= limit else []
        self.typical, self._at = min(first, limit), at

    def add(self, seconds: float, at: int = 0) -> None:
        self._seconds = [*self._seconds[1 - NEWEST :], seconds]
        self.typical, self._at = sorted(self._seconds)[(len(self._seconds) - 1) // 2], at

    def seen(self, at: int) -> None:
        """It was made once more, but nothing is known that it could be held against."""
        self._at = at

    @property
    def count(self) -> int:
        """How many measurements count."""
        return len(self._seconds)

    @property
    def limited(self) -> bool:
        """Whether it is a limit, and not what was measured."""
        return not self._seconds

    @property
    def known_well(self) -> bool:
        """Whether something else than this is the reason if it takes longer or shorter now."""
        return len(self._seconds) > NEWEST // 2

    def holds(self, now: int) -> bool:
        """Whether it is recent enough for how often it was measured."""
        return now - self._at <= LIFETIMES[min(len(self._seconds), len(LIFETIMES) - 1)]


class Curve:
    """Seconds between and beyond what was measured along a line, and never less than of something smaller.

    Args:
        table: what was measured, at least one.
    """

    def __init__(self, table: Mapping[float, float]) -> None:
        self._at = sorted(table)
        self._seconds = list(accumulate((table[each] for each in self._at), max))

    def __len__(self) -> int:
        return len(self._at)

    @property
    def widths(self) -> Sequence[float]:
        """What was measured, ascending."""
        return self._at

    @property
    def least(self) -> tuple[float, float]:
        """The smallest that was measured, and its price."""
        return self._at[0], self._seconds[0]

    def of(self, width: float) -> float:
        place = bisect_right(self._at, width)
        if len(self._at) == 1 or (place and self._at[place - 1] == width):
            return self._seconds[max(place - 1, 0)]
        above = min(max(place, 1), len(self._at) - 1)
        low, start = self._at[above - 1], self._seconds[above - 1]
        slope = (self._seconds[above] - start) / (self._at[above] - low)
        if width < low:  # no pass costs more than its nodes would one by one
            return max(start * width / low, start + slope * (width - low))
        if width < self._at[above]:
            return start + slope * (width - low)
        # Half as steep beyond the widest: hopeful, or a pass that is dear once it is not plain would keep the deeper
        # ones, which cost hardly more, from ever being measured.
        return self._seconds[above] + slope / 2 * (width - self._at[above])
