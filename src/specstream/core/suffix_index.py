"""Where the end of a text occurred before: n-grams by their hash, each with the one before it, newest first.

A suffix automaton gives the longest match too, in ten times the memory and with no way to let the oldest tokens go.
Here a token takes one place in a ring and one link for each size of n-gram, whatever the text, and a match is found by
its last tokens and then counted backwards.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence

SEPARATOR = -1
"""Stands between texts that do not belong together: no token equals it, so no match and no copy goes across."""

WALK = 32
"""Occurrences of an n-gram that are looked at, the newest: enough for a long match, and a bound on a round's time."""

SLOTS = 12
"""Bits of the hash of an n-gram in the text of one row; what is found is compared, so that more only saves steps."""


class SuffixIndex:
    """A growing text.

    N-grams that end with its last token are not in it yet: the end of the text would match itself.

    Args:
        shortest: tokens of the shortest match.
        longest: tokens up to which a match is counted.
        capacity: tokens that are kept, the newest; None keeps all.
        slots: bits of the hash; None for the text of one row.
    """

    def __init__(self, shortest: int, longest: int, *, capacity: int | None = None, slots: int = SLOTS) -> None:
        self._longest, self._capacity = longest, capacity or sys.maxsize
        self._text, self._written, self._linked = array("i"), 0, 0
        self._mask = (1 << slots) - 1
        sizes = sorted({min(longest, shortest << doubled) for doubled in range(3)}, reverse=True)
        self._tables = [(size, array("q", [0]) * (1 << slots), array("q")) for size in sizes]

    def __len__(self) -> int:
        """Tokens that were written, those that are no longer kept among them."""
        return self._written

    def extend(self, tokens: Sequence[int]) -> None:
        """Write tokens behind the others. Costs as much as there are."""
        for token in tokens:
            _put(self._text, self._written % self._capacity, token)
            self._written += 1
        for end in range(self._linked, self._written):
            for size, newest, before in self._tables:
                slot = 0 if size > end else self._slot(self._read(end - size, end))
                _put(before, end % self._capacity, newest[slot] if size <= end else 0)
                if size <= end:
                    newest[slot] = end
        self._linked = self._written

    def matches(self, tail: Sequence[int]) -> Iterator[tuple[int, int]]:
        """``(length, position)`` of what followed the end of ``tail``: the longest first, then the most recent."""
        seen, oldest = set[int](), self._oldest
        for size, newest, before in self._tables:
            if size > len(tail):
                continue
            found, end = list[tuple[int, int]](), newest[self._slot(tail[-size:])]
            for _ in range(WALK):
                if end <= oldest:
                    break
                if end not in seen and (length := self._common(tail, end)) >= size:
                    seen.add(end)
                    found.append((length, end))
                end = min(before[end % self._capacity], end - 1)  # whatever another thread writes there, it ends
            yield from sorted(found, reverse=True)

    def after(self, end: int, count: int) -> list[int]:
        """Up to ``count`` tokens from a position on, as far as its text goes."""
        tokens = self._read(end, min(end + count, self._written))
        return tokens[: tokens.index(SEPARATOR)] if SEPARATOR in tokens else tokens

    def tokens(self) -> array[int]:
        """All that are kept, the oldest first."""
        at = self._written % self._capacity if self._oldest else 0
        return self._text[at:] + self._text[:at]

    @property
    def _oldest(self) -> int:
        return max(0, self._written - self._capacity)

    def _slot(self, tokens: Sequence[int]) -> int:
        return hash(tuple(tokens)) & self._mask

    def _read(self, begin: int, end: int) -> list[int]:
        first, last = begin % self._capacity, end % self._capacity
        if first <= last or begin == end:
            return self._text[first:last].tolist() if begin < end else []
        return [*self._text[first:], *self._text[:last]]

    def _common(self, tail: Sequence[int], end: int) -> int:
        """How many tokens before a position are those that ``tail`` ends with."""
        text, capacity, length = self._text, self._capacity, 0
        most = min(self._longest, len(tail), end - self._oldest)
        while length < most and text[(end - 1 - length) % capacity] == tail[-1 - length]:
            length += 1
        return length


def _put(ring: array[int], at: int, value: int) -> None:
    if at == len(ring):
        ring.append(value)
    else:
        ring[at] = value
