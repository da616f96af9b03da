"""When a row is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specstream.errors import UsageError

StopCheck = Callable[[Sequence[int], int], int | None]
"""``(tokens emitted so far, how many of them are new) -> how many emitted tokens to keep``, or None to go on."""


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When a row is finished.

    Attributes:
        max_new_tokens: never one more than this.
        eos_token_ids: any of these ends the row and is its last token.
        check: a further rule (stop strings, a caller's criterion); None for none.
    """

    max_new_tokens: int
    eos_token_ids: frozenset[int] = frozenset()
    check: StopCheck | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; give 1 or more")

    def cut(self, emitted: Sequence[int], new: int, room: int | None) -> tuple[int, str | None]:
        """How many emitted tokens to keep, and why the row ends there (None if it does not): the earliest rule wins.

        Args:
            emitted: all tokens of the row behind its prompt, at least one.
            new: how many of them are.
            room: tokens that the context has room for behind the prompt, None for no limit.
        """
        limit = self.max_new_tokens if room is None else min(self.max_new_tokens, room)
        stops: list[tuple[int, str]] = [(limit, "length")] if len(emitted) >= limit else []
        if emitted[-1] in self.eos_token_ids:  # verification emits nothing behind one
            stops.append((len(emitted), "stop"))
        if self.check is not None and (kept := self.check(emitted, new)) is not None:
            stops.append((kept, "stop"))
        # At the same token a real stop is the better reason than the length.
        return min(stops, key=lambda stop: (stop[0], stop[1] == "length"), default=(len(emitted), None))
