"""Old names of commands: for one release they do what the new ones do, and say so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any


def renamed(command: Callable[..., None], now: str) -> Callable[..., None]:
    """The command under its old name, with a note on stderr.

    Args:
        command: as it is registered under its new name.
        now: the new name, after ``specstream``.
    """

    @wraps(command)
    def old(**arguments: Any) -> None:
        name = command.__name__.replace("_", "-")
        print(
            f"note: specstream {name} is deprecated and goes with the next release; use specstream {now}",
            file=sys.stderr,
        )
        command(**arguments)

    return old
