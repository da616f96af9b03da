"""How far a long command is: a bar with the time left on a terminal, and a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

EVERY = 60.0
"""Seconds between lines where there is no terminal."""


class Tell(Protocol):
    """Told how far it is."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """So many are done, of as many as before if no other total is given."""


@contextmanager
def progress(what: str, total: int = 0, done: int = 0) -> Iterator[Tell]:
    """Inside, tell the function how many of ``total`` are done.

    Args:
        what: is being done.
        total: of it, as far as known.
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
    notes = (TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, *notes, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=total or None, completed=done, note="")

        def tell(done: int, total: int | None = None, note: str = "") -> None:
            bars.update(bar, completed=done, note=note, total=total)  # None leaves the total as it was

        yield tell


def _lines(what: str, of: int, before: int) -> Tell:
    started = said = time.monotonic()

    def tell(done: int, total: int | None = None, note: str = "") -> None:
        nonlocal said, of
        of, now = of if total is None else total, time.monotonic()
        if now - said >= EVERY and done > before:
            said = now
            left = (now - started) / (done - before) * (of - done)
            noted = f"; {note}" if note else ""
            print(f"{what}: {done} of {of}, about {left / 60:.0f} minutes left{noted}", file=sys.stderr, flush=True)

    return tell
