"""Lossless to the bit: which widths of a pass give bit-equal rows, found by a self-test.

A pass over one token and a pass over eight run different kernels, and their logits differ in the last bits; in bf16
that flips an argmax now and then, and greedy outputs part ways. But kernels come in classes: from some width on, the
row of a token has the same bits whatever stands beside it. The self-test finds the cheapest such class for this
model, dtype, device and runtime; every pass, plain decoding's too, is padded up to a width of it. Speculation and
plain decoding are then the same function of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from specstream.core.ports import TargetSession
from specstream.core.tree import TokenTree
from specstream.models.cache import PADDING, STEP

WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Widths worth padding to. Odd ones are left out: their last row may run another kernel than the others."""

USEFUL_WIDTH = 8
"""A class of widths must reach this far to be worth padding plain decoding for."""

PROBE_CONTEXT = 72
"""Tokens before the ones whose rows are compared."""


class ProbeSession(TargetSession, Protocol):
    """What the self-test needs beyond a target session."""

    def fork(self, rows: int, slots: int) -> ProbeSession:
        """A copy whose every row is this session's first row, in a cache that reaches ``slots``."""


class Exactness:
    """Finds and remembers the widths of one model.

    Args:
        begin: starts a session that pads nothing.
        vocab_size: token ids of the probe are below this.
        context_length: the most tokens a sequence may have, None for no limit.
    """

    def __init__(
        self,
        begin: Callable[[Sequence[Sequence[int]]], ProbeSession],
        vocab_size: int,
        context_length: int | None,
    ) -> None:
        self._begin = begin
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._base: int | None = None
        self._calibrated = False
        self._tokens: list[int] = []
        self._context: ProbeSession | None = None
        self._reference: Tensor = torch.empty(0)
        self._certified: dict[tuple[int, int, int], bool] = {}

    @property
    def base(self) -> int | None:
        """The width plain decoding is padded to; None if no class of widths was found (yet)."""
        return self._base

    def calibrate(self) -> None:
        """Find the class. Costs about fifteen passes, once.

        The reference is plain decoding itself: each probe token in its turn stands first in a pass of the class's
        narrowest width. A wider pass belongs to the class if all its rows are those.
        """
        if self._calibrated:
            return
        self._calibrated = True
        room = 2 * PROBE_CONTEXT if self._context_length is None else self._context_length
        before = min(PROBE_CONTEXT, room // 3)
        after = min(WIDTHS[-1], room - before)
        chance = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(self._vocab_size, (before + after,), generator=chance).tolist()
        self._context = self._begin([self._tokens[:before]])
        self._tokens = self._tokens[before:]
        first_rows = {width: self._rows(width)[0, 0] for width in WIDTHS if width <= 2 * USEFUL_WIDTH}
        for base in (width for width in WIDTHS if width <= USEFUL_WIDTH):
            partner = USEFUL_WIDTH if base < USEFUL_WIDTH else 2 * USEFUL_WIDTH
            if not torch.equal(first_rows[base], first_rows[partner]):
                continue
            self._certified.clear()
            self._reference = self._plain_rows(base)
            if self._certify(1, partner, 0):
                self._base = base
                return

    def width(self, rows: int, nodes: int, slots: int) -> tuple[int, bool]:
        """The width to pad a pass to, and whether its rows then have plain decoding's bits.

        Args:
            rows: sequences in the pass.
            nodes: tokens of the largest tree.
            slots: slots of the cache that the pass may reach.
        """
        if self._base is None:
            return nodes, False
        for width in WIDTHS:
            if width >= max(nodes, self._base) and self._certify(rows, width, slots):
                return width, True
        return max(nodes, self._base), False

    def _certify(self, rows: int, width: int, slots: int) -> bool:
        """Whether passes of this shape give the reference's rows; tried once, then remembered."""
        key = (rows, width, slots // STEP)
        if key not in self._certified:
            self._extend_reference(width)
            expected = self._reference[:width].expand(rows, -1, -1)
            self._certified[key] = len(self._reference) >= width and torch.equal(
                self._rows(width, rows, slots), expected
            )
        return self._certified[key]

    def _rows(self, width: int, rows: int = 1, slots: int = 0) -> Tensor:
        """Logits ``[rows, width, vocab]`` of one pass over the first probe tokens, in every row alike."""
        assert self._context is not None
        return self._context.fork(rows, slots).score([TokenTree.chain(self._tokens[:width])] * rows)

    def _plain_rows(self, base: int) -> Tensor:
        """``[USEFUL_WIDTH, vocab]``: plain decoding in passes of width ``base``, one token committed by each."""
        assert self._context is not None
        session = self._context.fork(1, 0)
        rows = []
        for token in self._tokens[:USEFUL_WIDTH]:
            rows.append(session.score([TokenTree.chain([token, *[PADDING] * (base - 1)])])[0, 0])
            session.commit([[0]])
        return torch.stack(rows)

    def _extend_reference(self, width: int) -> None:
        """More rows, by passes of a width that is certified already."""
        known = len(self._reference)
        if known >= min(width, len(self._tokens)) or self._base is None:
            return
        assert self._context is not None
        step = max(self._base, USEFUL_WIDTH)
        session = self._context.fork(1, 0)
        blocks = []
        for start in range(0, len(self._tokens) - step + 1, step):
            blocks.append(session.score([TokenTree.chain(self._tokens[start : start + step])])[0])
            session.commit([range(step)])
        self._reference = torch.cat(blocks)
