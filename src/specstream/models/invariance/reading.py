"""Whether a token has the same keys and values however its text is read: what a prefix cache needs.

Decoding reads tokens one or a few at a time, a prompt is read in wide passes. The self-test of widths compares logits
of the former; this one compares all that a pass leaves in the cache. Where all layers run on our kernels, alike layers
run alike: as many are read as give enough evidence, and at least one of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from specstream.core.tree import TokenTree
from specstream.models.architecture import compat
from specstream.models.architecture.families import Family
from specstream.models.invariance.widths import ENOUGH_EVIDENCE
from specstream.models.runtime import native
from specstream.models.runtime.runtime import Runtime

PIECES = 1, 6, 33
"""Tokens of the narrow passes, which together read what the first ones of a wide pass are."""


class _Target(Protocol):
    model: Any
    family: Family
    runtime: Runtime

    @property
    def layers(self) -> list[nn.Module]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int | None: ...

    def begin_unpadded(self, prefixes: Sequence[Sequence[int]], *, unread: bool = False) -> Any: ...


def reads_alike(target: _Target) -> bool:
    """Whether a wide pass over random tokens leaves the bits that narrow ones leave."""
    length = min(native.MOST_ROWS, target.context_length or native.MOST_ROWS) - 1
    tokens = torch.randint(target.vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    layers = _telling(target) if target.runtime.ragged else 0
    whole, pieces = (target.begin_unpadded([tokens], unread=True) for _ in range(2))
    wide, narrow = _read(whole, tokens, [length], layers), _read(pieces, tokens, PIECES, layers)
    (read,) = pieces.cache.lengths
    known, found = whole.cache.parts(0, 0, read), pieces.cache.parts(0, 0, read)
    return torch.equal(wide[:read], narrow) and all(torch.equal(part, found[key]) for key, part in known.items())


def _read(session: Any, tokens: Sequence[int], counts: Sequence[int], layers: int) -> Tensor:
    """Read so many tokens in each pass, through the first ``layers`` layers or, if that is 0, through all.

    Returns:
        What leaves these layers, ``[tokens, hidden]``; of all layers nothing.
    """
    left = [torch.empty(0)]
    for count in counts:
        if not layers:
            session.read(count)
            continue
        (start,) = session.cache.lengths
        if piece := tokens[start : start + count]:
            left.append(session.descend([TokenTree.chain(piece)], layers)[0])
            session.commit([range(len(piece))])
    return torch.cat(left)


def _telling(target: _Target) -> int:
    """How many layers tell of all: of every kind one, and enough to see rounding; 0 if that takes all of them."""
    kinds = [
        (window, [(name, each.shape, getattr(each, "kind", "")) for name, each in layer.named_parameters()])
        for layer, window in zip_longest(target.layers, target.family.layer_windows)
    ]
    newest = max(at for at, kind in enumerate(kinds) if kind not in kinds[:at]) + 1
    activations = sum(PIECES) * compat.text_config(target.model).hidden_size
    needed = max(newest, ceil(ENOUGH_EVIDENCE / activations))
    return needed if needed < len(kinds) else 0
