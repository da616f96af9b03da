"""Whether a token has the same keys and values however its text is read: what a prefix cache needs.

Decoding reads tokens one or a few at a time, a prompt is read in wide passes. The self-test of widths compares logits
of the former; this one compares all that a pass leaves in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from specstream.models.runtime import native

PIECES = 1, 6, 33
"""Tokens of the narrow passes, which together read what the first ones of a wide pass are."""


class _Target(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int | None: ...

    def begin_unpadded(self, prefixes: Sequence[Sequence[int]], *, unread: bool = False) -> Any: ...


def reads_alike(target: _Target) -> bool:
    """Whether a wide pass over random tokens leaves the bits that narrow ones leave."""
    length = min(native.MOST_ROWS, target.context_length or native.MOST_ROWS) - 1
    tokens = torch.randint(target.vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    whole, pieces = target.begin_unpadded([tokens]), target.begin_unpadded([tokens[: sum(PIECES)]], unread=True)
    for piece in PIECES:
        pieces.read(piece)
    (read,) = pieces.cache.lengths
    known, found = whole.cache.parts(0, 0, read), pieces.cache.parts(0, 0, read)
    return all(torch.equal(part, found[key]) for key, part in known.items())
