"""Progress on stderr: of a download, a bar on a terminal and one plain line per step elsewhere; and single lines."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

AFTER, EVERY = 5.0, 30.0
"""Seconds before a step says what it is, and between its lines from then on."""

THREAD = "specstream-step"
"""The name of the thread that says so."""


def _nothing(value: object) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """What a download tells whoever watches it.

    Attributes:
        step: says what is being done now.
        advance: says how many bytes have arrived in all.
    """

    step: Callable[[str], None] = _nothing
    advance: Callable[[int], None] = _nothing


@contextmanager
def reporter(title: str, total: int, shown: bool) -> Iterator[Reporter]:
    """A reporter for one download of `total` bytes; a silent one if it is not to be `shown`."""
    if not shown:
        yield Reporter()
        return
    if not sys.stderr.isatty():
        yield Reporter(step=lambda text: _line(f"{title}: {text}"))
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    # The spinner says that something still happens while the weights are converted and no byte arrives.
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(bar_width=16), DownloadColumn())
    # Bound to today's stderr: the conversion redirects sys.stderr to silence other libraries' bars.
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(title, total=total)
        yield Reporter(
            step=lambda text: progress.update(task, description=f"{title}: {text}"),
            advance=lambda completed: progress.update(task, completed=min(completed, total)),
        )


_IN_WORDS: ContextVar[Callable[[str], str]] = ContextVar("in_words", default=str)


@contextmanager
def in_words(of: Callable[[str], str]) -> Iterator[None]:
    """Inside, what is announced goes through a function: the command line calls settings by what was typed."""
    token = _IN_WORDS.set(of)
    try:
        yield
    finally:
        _IN_WORDS.reset(token)


def as_typed(text: str) -> str:
    """A text about settings, which the command line calls by what was typed; unchanged elsewhere."""
    return _IN_WORDS.get()(text)


def announce(text: str) -> None:
    """Say on stderr, in a line of its own, what takes long or went another way than usual."""
    _line(f"specstream: {as_typed(text)}")


def _line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
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


@contextmanager
def errors_only() -> Iterator[None]:
    """Inside, transformers tells errors alone.

    Its verbosity, which is the whole process's, stays as it is: threads that overlap each have a filter of their own.
    """
    from transformers.utils import logging as theirs

    theirs.get_verbosity()  # makes its handler
    handlers = list(logging.getLogger("transformers").handlers)

    def told(record: logging.LogRecord) -> bool:  # a handler may be other loggers' too
        return record.levelno >= logging.ERROR or not record.name.startswith("transformers")

    for each in handlers:
        each.addFilter(told)
    try:
        yield
    finally:
        for each in handlers:
            each.removeFilter(told)
