"""How long answers take, for those who have to come again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

_LATELY = 32


class Pace:
    """The times of the last answers."""

    def __init__(self) -> None:
        self._lately: deque[float] = deque(maxlen=_LATELY)

    def ended(self, seconds: float) -> None:
        """An answer came to its own end; one that was given up says nothing."""
        self._lately.append(seconds)

    def seconds(self, running: Sequence[float]) -> float:
        """What an answer takes: the mean of the last ones, or as long as one of those runs already.

        Args:
            running: seconds since those that are being decoded began.
        """
        known = sum(self._lately) / len(self._lately) if self._lately else 1.0
        return max(known, *running) if running else known
