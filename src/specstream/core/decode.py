"""The loop: propose, score, verify, commit, observe. Plain decoding is this loop with empty trees.

Read this file first. A row's tokens are ``prompt + emitted``; the last of them, the root of its next tree, is
decided but not yet committed. One pass scores the root and the drafts below it, verification picks a path and one
token more, and that token is the next root.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from specstream.core.clock import Clock, Mark, between, split
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter, DraftRequest, Offer, Target, TargetSession, Verdict, begun
from specstream.core.prefix_cache import PrefixCache
from specstream.core.rows import Known, Round, Row
from specstream.core.stats import Timings
from specstream.core.tree import TokenTree
from specstream.core.verify import verify_each

RULE = "rule"
"""Whose drafts those of ``Row.known`` are."""


class Batch:
    """Rows that are decoded side by side. They leave when they are finished; others may join between two rounds.

    If ``step`` or ``join`` raises, the batch is of no use any more: nobody knows what its cache holds.
    Where nobody is going to join, ``closed`` says so, and speculation is for the rows that end last.

    Args:
        target: the model whose output this is.
        drafter: where drafts come from; it cannot change the output, only its speed.
        rows: from ``start_rows``, at least one; they are advanced in place, each at its own pace.
        speculation: bounds of the trees and the acceptance rule.
        timings: added to in place.
        session: one that has read the rows' prompts; None to read them now.
        prefixes: of texts that were read before, to begin with where it fits; None begins anew.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        rows: Sequence[Row],
        *,
        speculation: Speculation,
        timings: Timings,
        session: TargetSession | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        started = time.perf_counter()
        self.rows, self.timings, self._speculation = list(rows), timings, speculation
        self._context_length = target.context_length
        self._turn, self._prefixes = target.rereads_at, prefixes
        self._session = _read_by(target, drafter, rows, prefixes) if session is None else session
        self._drafts = begun(drafter, [row.tokens for row in rows], [row.sampling for row in rows], self._session)
        for at, row in enumerate(rows):
            if row.expected:
                self._drafts.expect(at, row.expected)
        while session is None and self.read(sys.maxsize):
            pass
        self._ragged = self._session.ragged
        for at, row in enumerate(rows):
            row.choice = self._drafts.choice
            row.cached = 0 if prefixes is None else self._session.cached(at)
        self.closed = False
        self._behind = set[Row]()  # of the last round, if drafters did not hear of it
        if self._speculation.controller is not None:
            with self._speculation.lock:
                self._speculation.controller.renew(len(rows))
        self._clock = Clock(self._session.device)
        self.timings.prefill += time.perf_counter() - started

    def read(self, most: int) -> bool:
        """Let a drafter with a model of its own read on in the prompts; whether something is left."""
        return self._drafts.read(most)

    def join(self, newcomers: Batch) -> None:
        """Take in the rows of a batch of the same target and drafter.

        Its prompts have been read by itself: if that fails, this one does not notice.
        """
        self._session.join(newcomers._session)
        self._drafts.join(newcomers._drafts)
        self.rows.extend(newcomers.rows)

    def leave(self, gone: Callable[[Row], bool]) -> None:
        """Let go of rows; of their neighbours nothing changes."""
        for index, row in enumerate(self.rows):
            if self._prefixes is not None and gone(row) and row.error is None:
                self._session.retain(index, row.tokens)
        alive = [index for index, row in enumerate(self.rows) if not gone(row)]
        if 0 < len(alive) < len(self.rows):
            self._session.keep(alive)
            self._drafts.keep(alive)
        self.rows = [self.rows[index] for index in alive]

    def step(self) -> list[Round]:
        """One round of all rows, of which there is at least one; those that it finishes leave.

        A row whose own numbers, processor, check or watcher fails is finished with ``error``; its round is empty.
        """
        started = time.perf_counter()
        with self._speculation.lock:  # what the controller chose is what it has to observe
            rounds = self._round()
        self.leave(lambda row: row.finish_reason is not None)
        self.timings.decode += time.perf_counter() - started
        return rounds

    def _round(self) -> list[Round]:
        start, rows, speculation = self._clock.mark(), self.rows, self._speculation
        known = {row: tokens for row in rows if row.known is not None and (tokens := self._known(row, row.known))}
        draft = None if speculation.pauses(rows) else self._propose(start, known)
        trees = [TokenTree.chain(row.tokens[-1:]) for row in rows] if draft is None else list(draft.trees)
        for at in (at for at, row in enumerate(rows) if row in known):
            trees[at] = TokenTree.chain((rows[at].tokens[-1], *known[rows[at]]))
        proposed = self._clock.mark()
        logits = self._session.score(trees)
        scored = self._clock.mark()
        contexts, generators = [row.tokens for row in rows], [row.generator for row in rows]
        rules = [(row.sampling, row.stopping.eos_token_ids) for row in rows]
        threshold, finder = speculation.acceptance_threshold, self._session.finder
        verdicts = verify_each(trees, logits, contexts, rules, generators, threshold, finder)
        self._session.commit([verdict.path for verdict in verdicts])
        self._behind = set(rows) if draft is None else set()
        if draft is not None:
            self._observe(draft._replace(trees=trees), verdicts, proposed)
        elif speculation.controller is not None and not known and not any(verdict.error for verdict in verdicts):
            speculation.controller.observe_pause(len(rows), split(start, proposed)[1])
        rounds = []
        for at, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
            row.exact = self._session.exact_of(at)
            drafter = RULE if row in known else None if draft is None else draft.requests[at].drafter
            rounds.append(_advance(row, drafter, trees[at], verdict, logits[at], self._context_length))
        self.timings.propose += between(start, proposed)
        self.timings.score += between(proposed, scored)
        return rounds

    def _known(self, row: Row, known: Known) -> Sequence[int]:
        """What the row's own rule drafts, no longer than a tree may be deep."""
        depth = _request(row, self._speculation.max_depth, self._context_length, self._turn).depth
        return known(row.tokens)[:depth] if depth > 0 else ()

    def _propose(self, start: Mark, known: Collection[Row]) -> _Draft:
        """What drafters offer, what is chosen of it, and what they draft: nothing for rows of which it is known."""
        rows, speculation = self.rows, self._speculation
        # A drafter that missed the last round has not seen its states: it catches up, and is asked in the next one.
        depths = [0 if row in self._behind or row in known else speculation.depth(row) for row in rows]
        asked = [_request(*each, self._context_length, self._turn) for each in zip(rows, depths, strict=True)]
        offers = self._drafts.offers(asked)
        timed = self.closed and len(rows) > 1  # to a lone row its end makes no difference
        left = [row.left(self._context_length) for row in rows] if timed else None
        requests = speculation.choose(rows, asked, offers, left, ragged=self._ragged)
        chosen = self._clock.mark()
        trees = speculation.cut(rows, self._drafts.propose(requests))
        if self._session.chains_only:
            trees = [tree.first_path for tree in trees]
        return _Draft(offers, requests, trees, chosen.seconds - start.seconds, chosen)

    def _observe(self, draft: _Draft, verdicts: Sequence[Verdict], proposed: Mark) -> None:
        """The drafters and the policy learn what became of it."""
        self._drafts.observe(verdicts)
        speculation, sound = self._speculation, not any(verdict.error for verdict in verdicts)
        if speculation.controller is not None and sound and any(map(speculation.measures, self.rows)):
            seconds = split(draft.chosen, proposed)
            offers, requests, trees, deciding, _ = draft
            speculation.controller.observe(
                offers, requests, trees, verdicts, seconds, deciding=deciding, ragged=self._ragged
            )


class _Draft(NamedTuple):
    """Offers and requests of every row, its trees, and seconds of deciding, till when."""

    offers: list[list[Offer]]
    requests: list[DraftRequest]
    trees: Sequence[TokenTree]
    deciding: float
    chosen: Mark


class Reading:
    """A batch to be.

    The arguments are ``Batch``'s. If ``step`` raises, it is of no use any more.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        rows: Sequence[Row],
        *,
        speculation: Speculation,
        timings: Timings,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._timings = timings
        self._session = _begun_by(target, drafter, rows, prefixes)
        self._begin = partial(
            Batch,
            *(target, drafter, rows),
            speculation=speculation,
            timings=timings,
            session=self._session,
            prefixes=prefixes,
        )
        self._batch: Batch | None = None

    def step(self, most: int) -> Batch | None:
        """Read up to ``most`` tokens on, the target first; the batch, when all is read."""
        if self._batch is None:
            if self._timed(self._session.read, most):
                return None
            self._batch = self._begin()
        return None if self._timed(self._batch.read, most) else self._batch

    def _timed(self, read: Callable[[int], bool], most: int) -> bool:
        started = time.perf_counter()
        left = read(most)
        self._timings.prefill += time.perf_counter() - started
        return left


def _begun_by(target: Target, drafter: Drafter, rows: Sequence[Row], prefixes: PrefixCache | None) -> TargetSession:
    """A session that is to read the rows' prompts."""
    session = target.begin_reading([row.tokens[:-1] for row in rows])
    if drafter.reads and session.hidden_states is not None:
        session.hidden_states.tap_prompts(drafter.reads)
    for at, row in enumerate(rows):
        if row.watch_prompt is not None:
            session.watch(at, row.watch_prompt)
    if prefixes is not None:
        session.reuse(prefixes)
    return session


def _read_by(target: Target, drafter: Drafter, rows: Sequence[Row], prefixes: PrefixCache | None) -> TargetSession:
    """One that has read them."""
    if prefixes is None and not drafter.reads and not any(row.watch_prompt for row in rows):
        return target.begin([row.tokens[:-1] for row in rows])
    session = _begun_by(target, drafter, rows, prefixes)
    while session.read(sys.maxsize):
        pass
    return session


def decode(
    target: Target,
    drafter: Drafter,
    rows: Sequence[Row],
    *,
    speculation: Speculation,
    timings: Timings,
    prefixes: PrefixCache | None = None,
) -> Iterator[list[Round]]:
    """Decode every row to its end, yielding after each pass what the rows emitted. The arguments are ``Batch``'s.

    Raises:
        NumericalError: NaN or infinite logits.
    """
    if not rows:
        return
    batch = Batch(target, drafter, rows, speculation=speculation, timings=timings, prefixes=prefixes)
    batch.closed = True
    while batch.rows:
        rounds = batch.step()
        for each in rounds:
            if each.row.error is not None:
                raise each.row.error
        yield rounds


def _request(row: Row, depth: int, context_length: int | None, turn: int | None) -> DraftRequest:
    """A tree of depth d emits up to d + 1 tokens, so the deepest useful one is one short of what is left."""
    depth = min(depth, row.left(context_length) - 1)
    if turn is not None and len(row.tokens) <= turn:
        depth = min(depth, turn - len(row.tokens))
    return DraftRequest(tokens=row.tokens, depth=depth, generator=row.generator, calibrations=row.calibrations)


def _advance(
    row: Row, drafter: str | None, tree: TokenTree, verdict: Verdict, logits: Tensor, context_length: int | None
) -> Round:
    """Append what the pass emitted, cut where the row stops, and count it."""
    before, kept = len(row.tokens), len(row.tokens) - row.prompt_length
    try:
        if verdict.error is not None:
            raise verdict.error
        if row.watch is not None:
            row.watch(logits[list(verdict.path[: len(verdict.tokens)])], verdict.tokens)
        row.tokens.extend(verdict.tokens)
        room = None if context_length is None else context_length - row.prompt_length
        kept, row.finish_reason = row.stopping.cut(row.emitted, len(verdict.tokens), room)
    except Exception as error:  # the row's own; its neighbours go on
        row.finish_reason, row.error = "error", error
    del row.tokens[row.prompt_length + kept :]
    tokens = tuple(row.tokens[before:])
    drafter = drafter if tree.drafted else None
    row.stats.count(tokens, tree, verdict, drafter)
    return Round(row=row, tokens=tokens, tree=tree, path=verdict.path, drafter=drafter)
