"""Progress on stderr: of a download, a bar on a terminal and one plain line per step elsewhere; and single lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

AFTER, EVERY = 5.0, 30.0
"""Seconds before a step says what it is, and between its lines from then on."""

THREAD = "specstream-step"
"""The name of the thread that says so."""


class Reporter(Protocol):
    """What a download tells whoever watches it."""

    def step(self, text: str) -> None:
        """Say what is being done now."""

    def advance(self, completed: int) -> None:
        """Say how many bytes have arrived in all."""


@contextmanager
def reporter(title: str, total: int, shown: bool) -> Iterator[Reporter]:
    """A reporter for one download of `total` bytes; a silent one if it is not to be `shown`."""
    if not shown:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(title)
    else:
        with _bar(title, total) as bar:
            yield bar


class _Silent:
    def step(self, text: str) -> None:
        pass

    def advance(self, completed: int) -> None:
        pass


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title

    def step(self, text: str) -> None:
        sys.stderr.write(f"{self._title}: {text}\n")
        sys.stderr.flush()

    def advance(self, completed: int) -> None:
        pass


@contextmanager
def _bar(title: str, total: int) -> Iterator[Reporter]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    # The spinner says that something still happens while the weights are converted and no byte arrives.
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(bar_width=16), DownloadColumn())
    # Bound to today's stderr: the conversion redirects sys.stderr to silence other libraries' bars.
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(title, total=total)

        class Bar:
            def step(self, text: str) -> None:
                progress.update(task, description=f"{title}: {text}")

            def advance(self, completed: int) -> None:
                progress.update(task, completed=min(completed, total))

        yield Bar()


_IN_WORDS: ContextVar[Callable[[str], str]] = ContextVar("in_words", default=str)


@contextmanager
def in_words(of: Callable[[str], str]) -> Iterator[None]:
    """Inside, what is announced goes through a function: the command line calls settings by what was typed."""
    token = _IN_WORDS.set(of)
    try:
        yield
    finally:
        _IN_WORDS.reset(token)


def announce(text: str) -> None:
    """Say on stderr, in a line of its own, what takes long or went another way than usual."""
    sys.stderr.write(f"specstream: {_IN_WORDS.get()(text)}\n")
    sys.stderr.flush()


@contextmanager
def step(what: str | Callable[[], str]) -> Iterator[None]:
    """Inside, whoever waits long is told what for; a short step is silent.

    Args:
        what: is being done, or how far it is now, which the thread that tells asks for.
    """
    ended, said, started = threading.Event(), threading.Event(), time.monotonic()

    def now() -> str:
        return what if isinstance(what, str) else what()

    def tell() -> None:
        wait = AFTER
        while not ended.wait(wait):
            announce(f"{now()} ({time.monotonic() - started:.0f} s so far)")
            said.set()
            wait = EVERY

    thread = threading.Thread(target=tell, name=THREAD, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if said.is_set():
        announce(f"{now()}: done in {time.monotonic() - started:.0f} s")
