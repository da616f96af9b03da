"""Where the end of a text occurred before: n-grams by their hash, each with the one before it, newest first.

A suffix automaton gives the longest match too, in ten times the memory and with no way to let the oldest tokens go.
Here a token takes one place in a ring and one link for each size of n-gram, whatever the text, and a match is found by
its last tokens and then counted backwards.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from zlib import crc32

SEPARATOR = -1
"""Stands between texts that do not belong together: no token equals it, so no match and no copy goes across."""

WALK = 16
"""Occurrences of an n-gram that are looked at, the newest: enough for a long match, and a bound on a round's time."""

SLOTS = 12
"""Bits of the hash of an n-gram in the text of one row. What is found is compared, so more only save steps. The
hash is the same in every process: a seed has to repeat."""


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
        sizes = sorted({shortest, min(longest, 3 * shortest)}, reverse=True)
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
            at = end % self._capacity
            for size, newest, before in self._tables:
                if size > end:
                    _put(before, at, 0)
                    continue
                slot = crc32(self._read(end - size, end)) & self._mask
                _put(before, at, newest[slot])
                newest[slot] = end
        self._linked = self._written

    def matches(self, tail: Sequence[int]) -> Iterator[tuple[int, int]]:
        """``(length, position)`` of what followed the end of ``tail``: the longest first, then the most recent."""
        seen, oldest, capacity = set[int](), self._oldest, self._capacity
        wanted = array("i", tail[-self._longest :])
        for size, newest, before in self._tables:
            if size > len(wanted):
                continue
            found = list[tuple[int, int]]()
            end = newest[crc32(wanted[-size:]) & self._mask]
            for _ in range(WALK):
                if end <= oldest:
                    break
                if end not in seen and (length := self._common(wanted, end, oldest)) >= size:
                    seen.add(end)
                    if length == self._longest:
                        yield length, end  # none is better, and those of the same length come later
                    else:
                        found.append((length, end))
                end = min(before[end % capacity], end - 1)  # whatever another thread writes there, it ends
            yield from sorted(found, reverse=True)

    def after(self, end: int, count: int) -> list[int]:
        """Up to ``count`` tokens from a position on, as far as its text goes."""
        tokens = self._read(end, min(end + count, self._written)).tolist()
        return tokens[: tokens.index(SEPARATOR)] if SEPARATOR in tokens else tokens

    def tokens(self) -> array[int]:
        """All that are kept, the oldest first."""
        return self._read(self._oldest, self._written)

    @property
    def _oldest(self) -> int:
        return max(0, self._written - self._capacity)

    def _read(self, begin: int, end: int) -> array[int]:
        first = begin % self._capacity
        last = first + end - begin
        if last <= self._capacity:
            return self._text[first:last]
        return self._text[first:] + self._text[: last - self._capacity]

    def _common(self, wanted: array[int], end: int, oldest: int) -> int:
        """How many tokens before a position are those that ``wanted`` ends with."""
        most = min(len(wanted), end - oldest)
        text = self._read(end - most, end)
        length = 0
        while length < most and text[-1 - length] == wanted[-1 - length]:
            length += 1
        return length


def _put(ring: array[int], at: int, value: int) -> None:
    if at == len(ring):
        ring.append(value)
    else:
        ring[at] = value
