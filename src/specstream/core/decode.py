"""The loop: propose, score, verify, commit, observe. Plain decoding is this loop with empty trees.

Read this file first. A row's tokens are ``prompt + emitted``; the last of them, the root of its next tree, is
decided but not yet committed. One pass scores the root and the drafts below it, verification picks a path and one
token more, and that token is the next root.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from specstream.core.clock import Clock, between, split
from specstream.core.controller import Controller
from specstream.core.plans import Taken
from specstream.core.ports import Drafter, DraftRequest, Offer, Target
from specstream.core.sampling import Sampling
from specstream.core.stats import RowStats, Timings
from specstream.core.tree import TokenTree
from specstream.core.verify import Verdict, verify
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


@dataclass(kw_only=True, eq=False)
class Row:
    """One sequence being decoded."""

    index: int
    tokens: list[int]
    prompt_length: int
    generator: torch.Generator
    stats: RowStats = field(default_factory=RowStats)
    finish_reason: str | None = None
    exact: str = "bits"

    @property
    def emitted(self) -> list[int]:
        return self.tokens[self.prompt_length :]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One row's share of one pass: what was emitted, after any stop has cut it."""

    row: Row
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """How far to speculate, and by which rule drafts are accepted.

    Attributes:
        max_depth: the deepest tree.
        unmeasured_depth: the deepest without a controller; None for ``max_depth``.
        unmeasured_steps: whether drafts that cost the drafter time are taken without a controller.
        acceptance_threshold: None is lossless; a number is typical acceptance, which is not.
        controller: chooses what each row takes of its offers, and how deep, by what it measured; None always takes the
            first offer that it may, as deep as it goes.
    """

    max_depth: int
    unmeasured_depth: int | None = None
    unmeasured_steps: bool = True
    acceptance_threshold: float | None = None
    controller: Controller | None = None

    @property
    def depth(self) -> int:
        """The deepest tree to ask for."""
        return self.max_depth if self.controller else self.unmeasured_depth or self.max_depth

    def choose(self, requests: Sequence[DraftRequest], offers: Sequence[Sequence[Offer]]) -> list[DraftRequest]:
        """The requests as they shall be met: with the offer taken, and its depth."""
        if self.controller is None:
            choices = [self._first(available) for available in offers]
        else:
            choices = self.controller.choose(offers)
        return [
            replace(request, offer=choice.offer, depth=choice.depth, least=choice.least)
            if choice
            else replace(request, depth=0)
            for request, choice in zip(requests, choices, strict=True)
        ]

    def _first(self, available: Sequence[Offer]) -> Taken | None:
        """What is taken unseen."""
        allowed = (offer for offer in available if self.unmeasured_steps or offer.steps(offer.depth) == 0)
        return next((Taken(offer, offer.depth) for offer in allowed), None)


def start_rows(prompts: Sequence[Sequence[int]], seeds: Sequence[int], context_length: int | None) -> list[Row]:
    """Rows ready to decode, each with a generator of its own.

    Raises:
        UsageError: an empty prompt, or one that leaves no room in the model's context.
    """
    rows = []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        if not prompt:
            raise UsageError(f"prompt {index} is empty; give at least one token")
        if context_length is not None and len(prompt) >= context_length:
            raise UsageError(
                f"prompt {index} has {len(prompt)} tokens and the model's context holds {context_length}; shorten it"
            )
        generator = torch.Generator().manual_seed(seed)
        rows.append(Row(index=index, tokens=list(prompt), prompt_length=len(prompt), generator=generator))
    return rows


def decode(
    target: Target,
    drafter: Drafter,
    rows: Sequence[Row],
    *,
    sampling: Sampling,
    stopping: Stopping,
    speculation: Speculation,
    timings: Timings,
) -> Iterator[list[Round]]:
    """Decode every row to its end, yielding after each pass what the rows emitted.

    Args:
        target: the model whose output this is.
        drafter: where drafts come from; it cannot change the output, only its speed.
        rows: from ``start_rows``; they are advanced in place, each at its own pace.
        sampling: how the target chooses tokens.
        stopping: when a row is finished; finished rows leave the batch.
        speculation: bounds of the trees and the acceptance rule.
        timings: added to in place.

    Raises:
        NumericalError: NaN or infinite logits.
    """
    started = time.perf_counter()
    active = list(rows)
    session = target.begin([row.tokens[:-1] for row in active])
    drafts = drafter.begin([row.tokens for row in active], sampling, session)
    clock = Clock(session)
    timings.prefill += time.perf_counter() - started

    while active:
        start = clock.mark()
        asked = [_request(row, stopping, speculation.depth, target.context_length) for row in active]
        offers = drafts.offers(asked)
        requests, chosen = speculation.choose(asked, offers), clock.mark()
        trees = drafts.propose(requests)
        proposed = clock.mark()
        logits = session.score(trees)
        scored = clock.mark()
        contexts, generators = [row.tokens for row in active], [row.generator for row in active]
        threshold, ends = speculation.acceptance_threshold, stopping.eos_token_ids
        verdicts = verify(trees, logits, contexts, sampling, generators, threshold, ends)
        session.commit([verdict.path for verdict in verdicts])
        drafts.observe(verdicts)
        if speculation.controller is not None:
            speculation.controller.observe(offers, requests, trees, verdicts, split(chosen, proposed))
        rounds = [
            _advance(*each, stopping, target.context_length, session.exact)
            for each in zip(active, requests, trees, verdicts, strict=True)
        ]
        alive = [index for index, row in enumerate(active) if row.finish_reason is None]
        if 0 < len(alive) < len(active):
            session.keep(alive)
            drafts.keep(alive)
        active = [active[index] for index in alive]
        timings.propose += between(start, proposed)
        timings.score += between(proposed, scored)
        timings.decode += time.perf_counter() - start.seconds
        yield rounds


def _request(row: Row, stopping: Stopping, depth: int, context_length: int | None) -> DraftRequest:
    """A tree of depth d emits up to d + 1 tokens, so the deepest useful one is one short of what is left."""
    left = stopping.max_new_tokens - (len(row.tokens) - row.prompt_length)
    if context_length is not None:
        left = min(left, context_length - len(row.tokens))
    return DraftRequest(tokens=row.tokens, depth=min(depth, left - 1), generator=row.generator)


def _advance(
    row: Row,
    request: DraftRequest,
    tree: TokenTree,
    verdict: Verdict,
    stopping: Stopping,
    context_length: int | None,
    exact: str,
) -> Round:
    """Append what the pass emitted, cut where the row stops, and count it."""
    row.exact = exact
    before = len(row.tokens)
    row.tokens.extend(verdict.tokens)
    kept, row.finish_reason = _stop(row, len(verdict.tokens), stopping, context_length)
    del row.tokens[row.prompt_length + kept :]
    tokens = tuple(row.tokens[before:])
    row.stats.emitted.append(len(tokens))
    row.stats.drafted += tree.drafted
    if request.offer is not None and tree.drafted:
        row.stats.drafts[request.offer.drafter] += 1
    row.stats.accepted += min(verdict.accepted, len(tokens))
    row.stats.rejected += _rejected(tree, verdict)
    return Round(row=row, tokens=tokens)


def _rejected(tree: TokenTree, verdict: Verdict) -> int:
    """Drafts that verification turned down. Those behind an accepted end were never judged."""
    ended = len(verdict.tokens) == verdict.accepted
    behind = int(tree.ancestor_mask()[:, verdict.path[-1]].sum()) - 1 if ended else 0
    return tree.drafted - verdict.accepted - behind


def _stop(row: Row, new: int, stopping: Stopping, context_length: int | None) -> tuple[int, str | None]:
    """How many emitted tokens to keep, and why the row ends there (None if it does not): the earliest rule wins."""
    emitted = row.emitted
    limit = stopping.max_new_tokens
    if context_length is not None:
        limit = min(limit, context_length - row.prompt_length)
    stops: list[tuple[int, str]] = [(limit, "length")] if len(emitted) >= limit else []
    if emitted[-1] in stopping.eos_token_ids:  # verification emits nothing behind one
        stops.append((len(emitted), "stop"))
    if stopping.check is not None and (kept := stopping.check(emitted, new)) is not None:
        stops.append((kept, "stop"))
    # At the same token a real stop is the better reason than the length.
    return min(stops, key=lambda stop: (stop[0], stop[1] == "length"), default=(len(emitted), None))
