"""Lossless to the bit: which widths of a pass give bit-equal rows, found by a self-test.

A pass over one token and a pass over eight run different kernels, and their logits differ in the last bits; in bf16
that flips an argmax now and then, and greedy outputs part ways. But kernels come in classes: from some width on, the
row of a token has the same bits whatever stands beside it. The self-test finds the cheapest such class for this
model, dtype, device and runtime; every pass, plain decoding's too, is padded up to a width of it. Speculation and
plain decoding are then the same function of the tokens. What was found is kept on disk (``selftest_cache.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specstream.core.ports import TargetSession
from specstream.core.tree import TokenTree
from specstream.models.cache import PADDING, STEP, capacity_for
from specstream.models.invariance.selftest_cache import SelfTestCache
from specstream.reporting import step

WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Widths worth padding to. Odd ones are left out: their last row may run another kernel than the others."""

USEFUL_WIDTH = 8
"""A class of widths must reach this far to be worth padding plain decoding for."""

SAFE_WIDTH = 4
"""Narrower passes have kernels of their own nearly everywhere; wider ones mostly share theirs."""

PROBE_CONTEXT, SIMPLE_CONTEXT = 72, 16
"""Tokens that are really read before the ones whose rows are compared; repeated, they fill any cache. The second
number is for attentions that sum every node's keys in path order, to which it makes no difference how many there are.
"""

ENOUGH_EVIDENCE = 1 << 18
"""Activations (tokens x layers x hidden size) to compare in half precisions before a class is believed in. Sums of
another order round to the same 16 bits nearly always: a difference may show in one row of a hundred."""


CERTIFY_SECONDS = 1.0
"""What trying widths may take before the first answer, for each number of rows; the test that runs then is ended."""


FRONT = 0
"""Where probe tokens stand right behind what was really read, in a mostly empty cache; else they end a block."""


class ProbeSession(TargetSession, Protocol):
    """What the self-test needs beyond a target session."""

    def fork(self, rows: int, length: int, capacity: int) -> ProbeSession:
        """A copy whose every row is this session's first row, repeated up to ``length`` tokens."""


@dataclass
class _Reference:
    """Plain decoding's logits ``[tokens, vocab]`` of the first probe tokens at one place, and how to get more.

    ``session`` has read the tokens that ``rows`` belong to, by passes that are known to give plain decoding's bits.
    """

    session: ProbeSession
    rows: Tensor


class Exactness:
    """Finds and remembers the widths of one model.

    Args:
        begin: starts a session that pads nothing.
        vocab_size: token ids of the probe are below this.
        context_length: the most tokens a sequence may have, None for no limit.
        dtype: of the model.
        activations: layers x hidden size of the model.
        simple: whether a pass of so many rows and of so many nodes each runs through an attention that sums every
            node's keys in path order by itself: then only the number of nodes matters, neither the length of the
            context nor how they are shared out to rows, and far fewer shapes are tried.
        alike: whether a pass of so many rows and of so many nodes each runs the kernels that plain decoding runs.
            Others may agree on every token of the probe and part on one in thousands, of a small model in two bytes;
            in float32 they part at once, and are left to the probe.
        one_width: where no class of widths is found, take a single width for all passes: on a GPU it costs little, and
            passes of one width run one kernel. Larger trees are then lossless up to rounding. Shapes are then tried in
            a nearly empty cache too, through the mask of which other kernels are seen to part.
        cache: opens what was found before, where what is found is kept too; asked once, when the tests begin.
    """

    def __init__(  # noqa: PLR0913
        self,
        begin: Callable[[Sequence[Sequence[int]]], ProbeSession],
        vocab_size: int,
        context_length: int | None,
        *,
        dtype: torch.dtype,
        activations: int,
        simple: Callable[[int, int], bool] = lambda rows, width: False,
        alike: Callable[[int, int], bool] = lambda rows, width: True,
        one_width: bool = False,
        cache: Callable[[], SelfTestCache | None] = lambda: None,
    ) -> None:
        self._begin = begin
        self._vocab_size = vocab_size
        self._context_length = context_length
        # In float32 another order of summation shows in every row, so few are enough.
        wanted = USEFUL_WIDTH if dtype.itemsize >= 4 else max(USEFUL_WIDTH, ENOUGH_EVIDENCE // activations)
        self._probe_rows = min(wanted, WIDTHS[-1])
        # A model too small for the evidence is padded to where differences are unlikely in the first place.
        narrowest = 1 if wanted <= WIDTHS[-1] else SAFE_WIDTH
        self._widths = [width for width in WIDTHS if width >= narrowest]
        self._simple, self._one_width = simple, one_width
        self._open_cache = cache
        self._selftest_cache = SelfTestCache(None)
        self._alike = alike if dtype.itemsize < 4 else lambda rows, width: True
        self._base: int | None = None
        self._calibrated = False
        self._tokens: list[int] = []
        self._before = 0
        self._context: ProbeSession | None = None
        self._references: dict[int, _Reference | None] = {}
        self._certified: dict[tuple[int, int, int], bool] = {}
        self._branches: dict[tuple[int, int, int], bool] = {}

    @property
    def base(self) -> int | None:
        """The width plain decoding is padded to; None if no class of widths was found (yet)."""
        return self._base

    def calibrate(self, nodes: int = 0) -> None:
        """Find the class. Costs a few dozen passes, once.

        Args:
            nodes: tokens of the largest tree to come, which a single width has to hold.

        The reference is plain decoding itself: each probe token in its turn stands first in a pass of the class's
        narrowest width. A wider pass belongs to the class if all its rows are those.
        """
        if self._calibrated:
            return
        self._calibrated = True
        self._selftest_cache = self._open_cache() or self._selftest_cache
        asked = f"base for {nodes}" if self._one_width else "base"  # kept below zero if it is the only width
        if (known := self._selftest_cache.get(asked)) is None:
            with step("testing which passes are batch-invariant here, once for this model"):
                self._find(nodes)
            found = self._base or 0
            self._selftest_cache.keep(asked, -found if self._widths == [self._base] else found)
        elif known:
            self._base = abs(known)
            self._widths = [self._base] if known < 0 else self._widths

    def _begin_probe(self) -> None:
        """Read what comes before the probe tokens; once."""
        if self._context is not None:
            return
        room = STEP if self._context_length is None else min(STEP, self._context_length)
        before = max(1, min(SIMPLE_CONTEXT if self._simple(1, 1) else PROBE_CONTEXT, room // 3))
        after = min(WIDTHS[-1], room - before)
        chance = torch.Generator().manual_seed(0)
        tokens = torch.randint(self._vocab_size, (before + after,), generator=chance).tolist()
        self._context, self._tokens, self._before = self._begin([tokens[:before]]), tokens[before:], before

    def _find(self, nodes: int) -> None:
        self._begin_probe()
        if len(self._tokens) < 2 * USEFUL_WIDTH:  # a context too short to compare anything in
            return
        for base in (width for width in self._widths if width <= USEFUL_WIDTH):
            reference = self._refer(base, 1, self._probe_rows, _partner(base))
            if reference is not None:
                self._base, self._references[1] = base, reference
                return
        self._settle_for(max(nodes, USEFUL_WIDTH))

    def _settle_for(self, nodes: int) -> None:
        """One width for everything, if such passes agree with themselves: a token first in one, or behind others."""
        only = next((width for width in WIDTHS if width >= nodes), None)
        if not self._one_width or only is None or only > len(self._tokens):
            return
        reference = self._refer(only, 1, self._probe_rows, only)
        if reference is not None:
            self._base, self._widths, self._references[1] = only, [only], reference

    def width(self, rows: int, nodes: int, length: int, capacity: int) -> tuple[int, bool]:
        """The width to pad a pass to, and whether its rows then have plain decoding's bits.

        Args:
            rows: sequences in the pass.
            nodes: tokens of the largest tree.
            length: committed tokens of the longest row.
            capacity: slots of the cache before the pass; it grows if the padded pass needs it to.
        """
        if self._base is None:
            return nodes, False
        needed = max(nodes, self._base)
        for width in self._widths:
            # A width far beyond the tree would cost more than it is worth.
            if needed <= width <= 2 * max(needed, USEFUL_WIDTH):
                blocks = max(capacity, capacity_for(length + width)) // STEP
                if self._certify(rows, width, blocks):
                    return width, True
        return needed, False

    def certify(
        self, rows: int, nodes: int, *, branched: bool = False, now: Callable[[], float] = time.perf_counter
    ) -> None:
        """Try now, not within the first generation, what passes of up to ``nodes`` tokens will need.

        Once for a shape of batches: what ``CERTIFY_SECONDS`` do not suffice for is tried when it first occurs. No width
        is used before.

        Args:
            rows: of those passes.
            nodes: of each row.
            branched: try branches too, when all widths are known.
            now: the clock, in seconds.
        """
        ahead = f"ahead of {rows}x{nodes}"
        if self._selftest_cache.get(ahead):
            return
        until, found = now() + CERTIFY_SECONDS, dict[int, bool]()
        for count in range(1, min(nodes, WIDTHS[-1]) + 1):  # of wider passes there is nothing to try
            if now() < until:
                width, certified = self.width(rows, count, 0, STEP)
                found[width] = certified and width > 1
        for width in (width for width, certified in found.items() if branched and certified):
            if now() < until:
                self.branches(rows, width, STEP)
        self._selftest_cache.keep(ahead, True)

    def branches(self, rows: int, width: int, capacity: int) -> bool:
        """Whether a branch that is not a tree's first has plain decoding's bits too, in passes of this shape.

        Its nodes stand at other slots than plain decoding has them at, so attention has to sum in path order. Ask
        only where that is how it is built: a difference in the order of sums can be too rare for a test.
        """
        key = self._shape(rows, width, capacity // STEP)
        if key not in self._branches:
            self._branches[key] = self._base is not None and self._asked(key, branched=True)
        return self._branches[key]

    def _certify(self, rows: int, width: int, blocks: int) -> bool:
        """Whether passes of this shape, in a cache of so many blocks, give plain decoding's rows; tried once."""
        key = self._shape(rows, width, blocks)
        if key not in self._certified:
            self._certified[key] = self._asked(key)
        return self._certified[key]

    def _asked(self, key: tuple[int, int, int], *, branched: bool = False) -> bool:
        """Whether passes of a shape agree, by what is known of it, else by trying."""
        rows, width, blocks = key
        name = f"{'branches' if branched else 'chains'} {rows}x{width} in {blocks}"
        if (known := self._selftest_cache.get(name)) is not None:
            return bool(known)
        # On an H200, passes of 16 had the bits of narrower ones behind 440 tokens, and behind 72 only up to the 97th.
        ends = [*_ends(blocks), *([FRONT] if self._one_width else [])]
        with step(
            f"testing passes of {rows} x {width} tokens (rows x width) for batch invariance, once for this model"
        ):
            agree = all(self._agrees(rows, width, end, blocks, branched=branched) for end in ends)
        self._selftest_cache.keep(name, agree)
        return agree

    def _shape(self, rows: int, width: int, blocks: int) -> tuple[int, int, int]:
        """The shape to try in place of this one."""
        return (1, rows * width, 1) if self._simple(rows, width) else (rows, width, blocks)

    def _agrees(self, rows: int, width: int, end: int, blocks: int, *, branched: bool = False) -> bool:
        """Whether passes of this shape read the probe tokens as plain decoding does: as a chain, or as a branch."""
        if not self._alike(rows, width):
            return False
        if (rows, width, blocks, end, self._base) == (1, 1, 1, 1, 1) and not branched:
            return True  # these are the passes that the reference was read with
        self._begin_probe()
        if end not in self._references:
            assert self._base is not None
            count = {1: self._probe_rows, FRONT: len(self._tokens)}.get(end, USEFUL_WIDTH)
            self._references[end] = self._refer(self._base, end, count, self._wide())
        reference = self._references[end]
        count = len(self._tokens) if end == FRONT else self._probe_rows if blocks == 1 else USEFUL_WIDTH
        step = (width + 1) // 2 if branched else width  # tokens read by a pass
        count = max(step, count - count % step)
        if reference is None or count > len(self._tokens):
            return False
        self._extend(reference, count)
        session = self._stand(rows, end, blocks)
        for start in range(0, count, step):
            tokens, expected = self._tokens[start : start + step], reference.rows[start : start + step]
            decoy = [(token + 1) % self._vocab_size for token in [*tokens[1:], *tokens]][: width - step]
            if not torch.equal(_read(session, tokens, rows, decoy), expected.expand(rows, -1, -1)):
                return False
        return True

    def _refer(self, base: int, end: int, count: int, wide: int) -> _Reference | None:
        """Plain decoding of ``count`` tokens in passes of width ``base``; None if passes ``wide`` differ from it."""
        reference, session = _Reference(self._stand(1, end, end), torch.empty(0)), self._stand(1, end, end)
        for at, token in enumerate(self._tokens[:count]):
            self._extend(reference, at + 1, wide)  # no further than needed: most candidates fail at the first token
            if at == len(reference.rows):
                break
            row = session.score([TokenTree.chain([token, *[PADDING] * (base - 1)])])[0, 0]
            if not torch.equal(row, reference.rows[at]):
                return None
            session.commit([[0]])
        return reference

    def _extend(self, reference: _Reference, count: int, step: int = 0) -> None:
        """Let the reference have at least ``count`` rows, as far as there are tokens."""
        step = step or self._wide()
        while (known := len(reference.rows)) < count and known + step <= len(self._tokens):
            rows = _read(reference.session, self._tokens[known : known + step])[0]
            reference.rows = torch.cat([reference.rows, rows]) if known else rows

    def _wide(self) -> int:
        """The width of the passes that references are read with."""
        assert self._base is not None
        return self._base if self._widths == [self._base] else _partner(self._base)

    def _stand(self, rows: int, end: int, blocks: int) -> ProbeSession:
        """A session of ``blocks`` blocks of slots, of which the probe tokens will fill the first ``end``."""
        assert self._context is not None
        if end == FRONT:
            return self._context.fork(rows, self._before, max(blocks, 1) * STEP)
        last = end * STEP if self._context_length is None else min(end * STEP, self._context_length)
        length = max(1, last - len(self._tokens) - USEFUL_WIDTH)
        return self._context.fork(rows, length, blocks * STEP)


def _read(session: ProbeSession, tokens: Sequence[int], rows: int = 1, decoy: Sequence[int] = ()) -> Tensor:
    """Logits ``[rows, tokens, vocab]`` of one pass over the same tokens in every row, which are then committed.

    With a decoy, the tokens are the second branch of a tree whose first branch that is.
    """
    tree = TokenTree.merge(tokens[0], [decoy, tokens[1:]])
    path = [0, *range(len(decoy) + 1, len(tree))]
    logits = session.score([tree] * rows)[:, path]
    session.commit([path] * rows)
    return logits


def _ends(blocks: int) -> list[int]:
    """Where a row of a cache of so many blocks may end.

    In the last block, in the one before (plain decoding has not grown its cache yet) or, beside a longer row, in the
    first.
    """
    return sorted({1, max(1, blocks - 1), blocks})


def _partner(base: int) -> int:
    """The wider width that a class must reach from ``base``."""
    return USEFUL_WIDTH if base < USEFUL_WIDTH else 2 * USEFUL_WIDTH
