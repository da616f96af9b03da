"""How far a long command is: a bar with the time left on a terminal, and a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 60.0
"""Seconds between lines where there is no terminal."""


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Inside, tell the function how many of ``total`` are done.

    Args:
        what: is being done.
        total: of it.
        done: before.
    """
    if not sys.stderr.isatty():
        yield _lines(what, total, done)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=total, completed=done)
        yield lambda now: bars.update(bar, completed=now)


def _lines(what: str, total: int, before: int) -> Callable[[int], None]:
    started = said = time.monotonic()

    def update(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= EVERY and done > before:
            said = now
            left = (now - started) / (done - before) * (total - done)
            print(f"{what}: {done} of {total}, about {left / 60:.0f} minutes left", file=sys.stderr, flush=True)

    return update
