"""How far to speculate next: measured cost times measured acceptance.

A pass over w nodes costs c(w) seconds here, drafting one token deeper costs s, and a draft at depth i is accepted with
probability a(i) once its parent was. Speculating k deep is expected to emit

    E(k) = 1 + a(1) + a(1) a(2) + ... + a(1) ... a(k)      tokens in      T(k) = c(k + 1) + k s      seconds

(Leviathan et al., arXiv 2211.17192, theorem 3.8, with measured costs instead of a constant ratio), and the k with the
largest E(k) / T(k) is taken, down to 0: plain decoding. All of it is measured in the running process, as it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

FADE = 0.02
"""Weight of the newest judgement of a draft, once there were 50: enough to follow a text, too little to follow luck."""

PRIOR_ACCEPTANCE = 0.8
"""Hopeful, so that drafts are tried at all. A depth that was never reached is taken to be like the one before."""

FIRST_PROBE, LAST_PROBE = 16, 256
"""Plain rounds before speculation that did not pay is tried again: doubled each time, up to the last."""


class Controller:
    """Chooses the depth of the next round's trees.

    Args:
        max_depth: never deeper.
    """

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._acceptance = [PRIOR_ACCEPTANCE] * max_depth
        self._judged = [0] * max_depth
        self._passes: dict[int, dict[int, float]] = {}  # rows -> width -> seconds
        self._drafts: dict[int, float] = {}  # rows -> seconds for one token of depth
        self._plain_rounds = 0
        self._probe_after = FIRST_PROBE

    def depth(self, rows: int) -> int:
        """The depth to ask a drafter for in a batch of ``rows``."""
        passes = self._passes.setdefault(rows, {})
        if len(passes) < 2:  # one wide pass, then one plain: a line through both prices the widths between
            return 0 if passes and max(passes) > 1 else self._max_depth
        rates = [self._rate(rows, depth) for depth in range(self._max_depth + 1)]
        best = max(range(len(rates)), key=rates.__getitem__)
        if best > 0:
            self._plain_rounds, self._probe_after = 0, FIRST_PROBE
            return best
        self._plain_rounds += 1
        if self._plain_rounds < self._probe_after:
            return 0
        self._plain_rounds, self._probe_after = 0, min(2 * self._probe_after, LAST_PROBE)
        return max(range(1, len(rates)), key=rates.__getitem__)

    def observe(
        self, rows: int, width: int, propose_seconds: float, pass_seconds: float, paths: Sequence[tuple[int, int]]
    ) -> None:
        """Learn from a round.

        Args:
            rows: of the batch.
            width: nodes of its largest tree.
            propose_seconds: what the drafter took.
            pass_seconds: what scoring, verifying and committing took.
            paths: for each row that was drafted for, the depth of its tree and how much of it was accepted.
        """
        passes = self._passes.setdefault(rows, {})
        passes[width] = _blend(passes.get(width), pass_seconds)
        deepest = max((depth for depth, _ in paths), default=0)
        if deepest:
            self._drafts[rows] = _blend(self._drafts.get(rows), propose_seconds / deepest)
        for depth, accepted in paths:
            # Depth `accepted + 1` was judged and turned down; what lies deeper was not judged.
            for at in range(min(depth, accepted + 1, self._max_depth)):
                self._judged[at] += 1
                weight = max(FADE, 1 / (1 + self._judged[at]))
                self._acceptance[at] += weight * ((at < accepted) - self._acceptance[at])

    def _rate(self, rows: int, depth: int) -> float:
        """Expected tokens per second of a row."""
        expected, reached, acceptance = 1.0, 1.0, PRIOR_ACCEPTANCE
        for at in range(depth):
            acceptance = self._acceptance[at] if self._judged[at] else acceptance
            reached *= acceptance
            expected += reached
        return expected / (self._price(rows, depth + 1) + depth * self._drafts.get(rows, 0.0))

    def _price(self, rows: int, width: int) -> float:
        """Seconds of a pass; between and beyond the widths that were measured, along a line."""
        passes = self._passes[rows]
        if width in passes:
            return passes[width]
        known = sorted(passes)
        above = next((at for at, other in enumerate(known) if other > width), len(known) - 1)
        low, high = known[max(above - 1, 0)], known[max(above, 1)]
        slope = max(0.0, (passes[high] - passes[low]) / (high - low))
        return passes[low] + slope * (width - low)


def _blend(known: float | None, seconds: float) -> float:
    """A running mean that a hiccup cannot move far and that forgets a slow start at once."""
    if known is None or seconds < known / 2:
        return seconds
    return known + 0.2 * (min(seconds, 2 * known) - known)
