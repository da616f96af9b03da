"""Prompts that are read a chunk at a time, between the rounds of others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from specstream.core.decode import Batch, Row, Rules
from specstream.core.ports import Drafter, Target

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Reading:
    """A batch to be.

    The arguments are ``Batch``'s. If ``step`` raises, it is of no use any more.
    """

    def __init__(self, target: Target, drafter: Drafter, rows: Sequence[Row], **rules: Unpack[Rules]) -> None:
        self._timings = rules["timings"]
        self._session = target.begin_reading([row.tokens[:-1] for row in rows])
        self._begin = partial(Batch, target, drafter, rows, session=self._session, **rules)
        self._batch: Batch | None = None

    def step(self, most: int) -> Batch | None:
        """Read up to ``most`` tokens on, the target first; the batch, when all is read."""
        if self._batch is None:
            if self._timed(self._session.read, most):
                return None
            self._batch = self._begin()
        return None if self._timed(self._batch.read, most) else self._batch

    def _timed(self, read: Callable[[int], bool], most: int) -> bool:
        started = time.perf_counter()
        left = read(most)
        self._timings.prefill += time.perf_counter() - started
        return left
