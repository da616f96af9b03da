"""How far a long command is: a bar with the time left on a terminal, and lines with it in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from specstream.reporting import step


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
        with _lines(what, total, done) as lines:
            yield lines
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
    notes = (TimeRemainingColumn(), TextColumn("left"), TextColumn("{task.fields[note]}"))
    with Progress(*columns, *notes, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=total or None, completed=done, note="")

        def tell(done: int, total: int | None = None, note: str = "") -> None:
            bars.update(bar, completed=done, note=note, total=total)  # None leaves the total as it was

        yield tell


@contextmanager
def _lines(what: str, of: int, before: int) -> Iterator[Tell]:
    """Inside a step whose lines say how far it is: a step of a command may take minutes, and then says so as well."""
    started, at, noted = time.monotonic(), before, ""

    def tell(done: int, total: int | None = None, note: str = "") -> None:
        nonlocal of, at, noted
        of, at, noted = of if total is None else total, done, note

    def now() -> str:
        said = f"{what}: {at} of {of}" if of else f"{what}: {at} done"
        if before < at < of:
            said += f", about {(time.monotonic() - started) / (at - before) * (of - at):.0f} s left"
        return f"{said}; {noted}" if noted else said

    with step(now):
        yield tell
