"""What the log says of a failure: what it is and where, and nothing of what a client sent."""

from __future__ import annotations

from traceback import extract_tb
from typing import Any

from specstream.errors import SpecStreamError, UsageError

PACKAGE = "specstream"


def fault(error: BaseException) -> str:
    """One line: the kind of error, the place, and the last place of this package that led there.

    Without the error's own words, unless they are ours: those of libraries quote what they were given, and so do ours
    of a value that cannot be used.
    """
    if isinstance(error, SpecStreamError) and not isinstance(error, UsageError):
        return f"{type(error).__name__}: {error}"
    places = [f"{place.filename}:{place.lineno}" for place in extract_tb(error.__traceback__)]
    kind = type(error).__name__
    if not places:
        return kind
    ours = next((place for place in reversed(places) if f"/{PACKAGE}/" in place), places[-1])
    return f"{kind} in {places[-1]}" + (f", from {ours}" if ours != places[-1] else "")


class FieldError(UsageError):
    """A value of a body that cannot be used.

    Args:
        message: what is wrong.
        param: the field, such as ``prompt.0.3``.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions are made again of their words alone
        return type(self), (str(self), self.param)
