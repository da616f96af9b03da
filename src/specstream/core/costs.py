"""What a pass of each width and a step of each drafter cost here: measured in the running process, as it runs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TypeVar

NODE_SHARE = 0.05
"""Before any wider pass was measured, each further node is taken to cost this share of a plain pass."""

READ_ANYWAY = 2
"""Tokens that the first step of a round reads at no extra price: the last draft and the bonus."""

READ_SHARE = 0.1
"""Before any was measured, reading one token more is taken to cost a drafter this share of a step."""


_Kind = TypeVar("_Kind")


class Costs:
    """Seconds, for each number of rows in a batch; what was not measured is taken from the nearest that was."""

    def __init__(self) -> None:
        self._passes: dict[int, dict[int, float]] = {}  # rows -> width -> seconds
        self._drafts: dict[str, dict[int, tuple[float, float]]] = {}  # source -> rows -> seconds a step, a token read
        self._known: dict[tuple[int, int], float] = {}  # (rows, width) -> what `passing` answered since the last pass
        self.plain_passes = 0

    def observe_pass(self, rows: int, width: int, seconds: float) -> None:
        """A pass over ``width`` nodes a row took ``seconds``, verification included."""
        self.plain_passes += width == 1
        if self._passes and width not in self._passes.get(rows, {}):
            # The first of its kind may pay for what the others find done.
            seconds = min(seconds, 2 * self.passing(rows, width))
        self._known.clear()
        table = self._passes.setdefault(rows, {})
        table[width] = _blend(table.get(width), seconds)

    def observe_draft(self, rows: int, source: str, steps: int, unread: int, seconds: float) -> None:
        """A drafter took ``seconds`` for so many steps, before which it read ``unread`` tokens."""
        table = self._drafts.setdefault(source, {})
        behind = max(0, unread - READ_ANYWAY)
        if rows not in table:
            step = seconds / (steps + behind * READ_SHARE)
            table[rows] = step, step * READ_SHARE
            return
        step, read = table[rows]
        expected = steps * step + behind * read
        change = _blend(expected, seconds) - expected
        if seconds < expected / 2:
            share = seconds / expected
            table[rows] = step * share, read * share
        else:  # to each its part of the blame (least mean squares, normalised)
            norm = steps**2 + behind**2
            table[rows] = max(0.0, step + change * steps / norm), max(0.0, read + change * behind / norm)

    def steps(self, rows: int, source: str, steps: int) -> float:
        """Of drafting ``steps`` tokens deep; 0 for a drafter that was never tried."""
        return steps * _nearest(self._drafts.get(source, {}), rows, (0.0, 0.0))[0]

    def reading(self, rows: int, source: str, unread: int) -> float:
        """Of what a drafter reads before its first step, beyond what it reads in any round."""
        return max(0, unread - READ_ANYWAY) * _nearest(self._drafts.get(source, {}), rows, (0.0, 0.0))[1]

    def passing(self, rows: int, width: int) -> float:
        """Of a pass; between and beyond the measured widths along a line, and never less than a narrower one."""
        if (rows, width) not in self._known:
            self._known[rows, width] = self._passing(rows, width)
        return self._known[rows, width]

    def _passing(self, rows: int, width: int) -> float:
        table = self._passes.get(rows, {})
        if len(table) > 1:
            return _along(table, width)
        shape = _nearest({other: each for other, each in self._passes.items() if len(each) > 1}, rows, {})
        shape = shape or {1: 1.0, 2: 1 + NODE_SHARE, 3: 1 + 2 * NODE_SHARE}
        known, seconds = next(iter((table or _nearest(self._passes, rows, {1: 1.0})).items()))
        return seconds * _along(shape, width) / _along(shape, known)


def _along(table: dict[int, float], width: int) -> float:
    widths = sorted(table)
    seconds = dict(zip(widths, accumulate((table[each] for each in widths), max), strict=True))
    if width in seconds or len(widths) == 1:
        return seconds.get(width, table[widths[0]])
    above = next((at for at, other in enumerate(widths) if other > width), len(widths) - 1)
    low, high = widths[max(above - 1, 0)], widths[max(above, 1)]
    slope = (seconds[high] - seconds[low]) / (high - low)
    if width < high:
        return max(0.0, seconds[low] + slope * (width - low))
    # Half as steep beyond the widest: hopeful, or a pass that is dear once it is not plain would keep the deeper ones,
    # which cost hardly more, from ever being measured.
    return seconds[high] + slope / 2 * (width - high)


def _nearest(table: Mapping[int, _Kind], rows: int, otherwise: _Kind) -> _Kind:
    if rows in table:
        return table[rows]
    return table[min(table, key=lambda other: abs(other - rows))] if table else otherwise


def _blend(known: float | None, seconds: float) -> float:
    """A running mean that a hiccup cannot move far and that forgets a slow start at once."""
    if known is None or seconds < known / 2:
        return seconds
    return known + 0.2 * (min(seconds, 2 * known) - known)
