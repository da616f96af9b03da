"""Words of a command line."""

from __future__ import annotations

from collections.abc import Sequence


def in_place_of(fixed: Sequence[str], words: Sequence[str]) -> list[str]:
    """Options with a value each, and words, without the options that are given again: twice is refused.

    Args:
        fixed: options and their values in turn.
        words: the rest of the line.
    """
    pairs = zip(fixed[::2], fixed[1::2], strict=True)
    return [part for pair in pairs if pair[0] not in words for part in pair] + list(words)
