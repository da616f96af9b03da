"""What passes and drafts cost here: measured once, before the first answer, and kept beside what the self-test found.

Passes are real rounds over chains of a token that says nothing, behind a context that nobody read. Drafts are real too:
a drafter begins on such a batch, sees one plain round, and is then asked again and again. What it drafts is junk, so it
is never told what became of it, and learns nothing.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import torch

from specstream.core.clock import settle
from specstream.core.policy.prices import PriceList
from specstream.core.ports import Drafter, DraftRequest, DraftSession, Offer, Target, TargetSession, Verdict, begun
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.verify import verify_each
from specstream.errors import DeviceMemoryError
from specstream.models.invariance.selftest_cache import SelfTestCache
from specstream.reporting import step

NEAR, FAR = 64, 1024
"""Tokens of each row behind which passes are timed; drafts are, behind the first."""

MOST_TOKENS = 1 << 14
"""Tokens of all rows together behind which passes are timed: it bounds the memory of their keys and values."""

TREES = (1, 2, 4, 8, 16, 32)
"""Nodes of each row's tree in the passes that are timed."""

MOST_NODES = 64
"""Nodes of all rows together in the largest of these passes, and the most rows."""

ROW_NODES = 8
"""Nodes of each row's tree in the largest of these passes where there are several rows."""

DEPTHS = (1, 2, 4)
"""Depths of the drafts that are timed."""

RUNS = 4
"""Timed rounds of a shape, of which the fastest counts, as other work only adds time; the first also pays for what is
done once."""

PASS_SECONDS, DRAFT_SECONDS = 1.5, 0.5
"""What the timing of passes, and of drafts, of one number of rows may take, but for the run that is under way then.
Shapes may begin in the first half of it; what does not fit is left out."""

UNEVEN = 1.5
"""Times its fastest run that the slowest of most shapes takes where other work disturbed it. That is not written to
disk: the next start measures again."""

TOKEN = 0
"""What all the trees and prompts are made of."""

_measuring = threading.Lock()  # two measurements at once would time each other

_Shape = TypeVar("_Shape")
_Of = TypeVar("_Of", bound=tuple[int, ...])


class MeasuredTarget(Target, Protocol):
    """A target that remembers what was measured of it."""

    @property
    def measured(self) -> SelfTestCache:
        """Where that is kept, for as long as the model is what it is."""


def prices_of(target: MeasuredTarget, drafter: Drafter, rows: int, nodes: int) -> PriceList:
    """All that is known of what passes and drafts cost, after measuring what is missing for a batch.

    Args:
        target: of the passes.
        drafter: of the drafts; what it is made of is measured one by one.
        rows: of the batch. Measured are 1 and the next power of two, up to ``MOST_NODES``.
        nodes: of each row's largest tree, the root among them.
    """
    with _measuring:
        kept = _Kept(target.measured, drafter)
        missing = [each for each in sorted({1, rungs(rows)[-1]}) if kept.lacks(each, nodes)]
        if missing:
            with step("measuring what passes and drafts cost here, once for this model"):
                for each in missing:
                    kept.measure(target, each, nodes)
        return kept.prices


def known_prices(target: MeasuredTarget, drafter: Drafter) -> PriceList:
    """What is known without measuring anything."""
    return _Kept(target.measured, drafter).prices


def forget_prices(target: MeasuredTarget) -> None:
    """Forget what passes and drafts were found to cost: it is measured again when it is next asked for."""
    with _measuring:
        target.measured.forget("seconds of ")


def rungs(rows: int) -> list[int]:
    """The numbers of rows that are measured where a batch may have up to so many; the last stands for it."""
    return [1 << power for power in range((min(rows, MOST_NODES) - 1).bit_length() + 1)]


def measure_passes(
    target: Target,
    rows: int,
    *,
    known: Collection[tuple[int, int, int]] = (),
    nodes: int = TREES[-1],
    now: Callable[[], float] = time.perf_counter,
    disturbed: Callable[[], None] = lambda: None,
) -> dict[tuple[int, int, int], float]:
    """Seconds of the score, verification and commit of rounds of so many rows.

    Args:
        target: of the passes; it has been prepared for them.
        rows: of the batch.
        known: what need not be measured again.
        nodes: of each row's largest tree, the root among them.
        now: the clock, in seconds.
        disturbed: called if other work of the machine was in the way.

    Returns:
        By rows, nodes of all rows together, and tokens of context of each.
    """
    sessions = dict[int, TargetSession]()

    def run(shape: tuple[int, int, int]) -> float:
        _, total, context = shape
        if context not in sessions:
            sessions[context] = target.begin_idle(rows, context)
        return _pass(sessions[context], rows, total // rows, context, now)

    shapes = [shape for shape in _shapes(target.context_length, rows, nodes) if shape not in known]
    return _fastest(shapes, run, PASS_SECONDS, now, disturbed)


def measure_drafting(
    target: Target,
    drafter: Drafter,
    rows: int,
    *,
    known: Mapping[str, Collection[tuple[int, int]]] | None = None,
    deepest: int = DEPTHS[-1],
    now: Callable[[], float] = time.perf_counter,
    disturbed: Callable[[], None] = lambda: None,
) -> dict[str, dict[tuple[int, int], float]]:
    """Seconds of ``propose``, with the offers before it, where all of so many rows ask.

    Args:
        target: that is drafted for.
        drafter: whose members are measured one by one; one without steps costs nothing, and is left out.
        rows: of the batch.
        known: what need not be measured again.
        deepest: depth that is ever asked for.
        now: the clock, in seconds.
        disturbed: called if other work of the machine was in the way.

    Returns:
        By the drafter's name, and the rows that ask and the depth.
    """
    found = dict[str, dict[tuple[int, int], float]]()
    for member in drafter.members:
        measured = (known or {}).get(member.name, ())
        depths = [depth for depth in DEPTHS if depth <= deepest and (rows, depth) not in measured]
        if depths and (table := _drafting(target, member, rows, depths, now, disturbed)):
            found[member.name] = {(rows, depth): took for depth, took in table.items()}
    return found


class _Kept:
    """What is known of a target and of a drafter."""

    passes = "seconds of passes"

    def __init__(self, cache: SelfTestCache, drafter: Drafter) -> None:
        self._cache, self._drafter = cache, drafter
        self._drafts = {member.name: f"seconds of drafts by {_identity(member)}" for member in drafter.members}

    @property
    def prices(self) -> PriceList:
        passes = {(rows, nodes, context): took for (rows, nodes, context), took in self._seconds(self.passes)}
        drafts = {
            name: {(rows, depth): took for (rows, depth), took in self._seconds(kept)}
            for name, kept in self._drafts.items()
        }
        return PriceList(passes, {name: table for name, table in drafts.items() if table})

    def _seconds(self, name: str) -> Collection[tuple[tuple[int, ...], float]]:
        return self._cache.seconds(name).items()

    def lacks(self, rows: int, nodes: int) -> bool:
        """Whether something was not measured yet for so many rows and trees of so many nodes."""
        return any(self._lacks(name, rows, nodes) for name in (self.passes, *self._drafts.values()))

    def _lacks(self, name: str, rows: int, nodes: int) -> bool:
        """What took too long, or was not offered, is left out for good: a start that follows measures nothing."""
        return (self._cache.get(f"{name}, rows {rows}") or 0) < min(nodes, TREES[-1])

    def measure(self, target: Target, rows: int, nodes: int) -> None:
        """Measure what is missing, and keep it."""
        known = self.prices
        if self._lacks(self.passes, rows, nodes):
            noise = list[bool]()
            passes = measure_passes(
                target, rows, known=known.passes, nodes=nodes, disturbed=partial(noise.append, True)
            )
            self._keep(self.passes, rows, nodes, passes, lasting=not noise)
        for member in self._drafter.members:
            name, noise = self._drafts[member.name], []
            if self._lacks(name, rows, nodes):
                found = measure_drafting(
                    target, member, rows, known=known.drafts, deepest=nodes - 1, disturbed=partial(noise.append, True)
                )
                self._keep(name, rows, nodes, found.get(member.name, {}), lasting=not noise)

    def _keep(self, name: str, rows: int, nodes: int, found: Mapping[_Of, float], *, lasting: bool) -> None:
        # The fastest of some runs beside other work is nearer to the truth than a guess (docs/experiments/0087).
        self._cache.keep_seconds(name, found, lasting=lasting)
        self._cache.keep(f"{name}, rows {rows}", min(nodes, TREES[-1]), lasting=lasting)


def _identity(drafter: Drafter) -> str:
    """What tells a drafter's costs from another's of the same target: what it drafts with, and how large that is."""
    made = drafter.components
    heads = [(type(each).__name__, each.nbytes, each.extra_parameters) for each in made.heads]
    models = [(type(each.model).__name__, each.nbytes, each.num_parameters) for each in made.models]
    parts = (heads, models, drafter.nodes, sorted(drafter.limits.items()))
    return f"{drafter.name} {hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"


def _shapes(limit: int | None, rows: int, nodes: int) -> list[tuple[int, int, int]]:
    """Rows, nodes of all together and context of the passes to time, the cheapest and most telling first.

    A pass behind a long context comes with those of eight times as many nodes behind a short one.
    """
    most = min(nodes, MOST_NODES // rows, TREES[-1] if rows == 1 else ROW_NODES)
    trees = [each for each in TREES if each <= most]
    far = min(FAR, MOST_TOKENS // rows)
    far = far if limit is None else min(far, limit - TREES[-1])
    near = min(NEAR, far)
    contexts = {near: 1, far: 8} if far >= 2 * near else {near: 1}
    places = [(each * later, each, context) for context, later in contexts.items() for each in trees if context > 0]
    return [(rows, rows * each, context) for _, each, context in sorted(places)]


def _pass(session: TargetSession, rows: int, nodes: int, context: int, now: Callable[[], float]) -> float:
    """Seconds of one round over a chain of so many nodes in each row, after which the session is as before."""
    trees = [TokenTree.chain([TOKEN] * nodes)] * rows
    settle(session.device)
    started = now()
    _scored(session, trees)
    session.commit([[0]] * rows)
    settle(session.device)
    took = now() - started
    session.rollback([context] * rows)
    return took


def _scored(session: TargetSession, trees: Sequence[TokenTree]) -> list[Verdict]:
    """What greedy verification says of a pass."""
    logits = session.score(trees)
    rules = [(Sampling(), frozenset[int]())] * len(trees)
    contexts, generators = [[TOKEN]] * len(trees), [torch.Generator()] * len(trees)
    return verify_each(trees, logits, contexts, rules, generators, finder=session.finder)


def _drafting(
    target: Target,
    drafter: Drafter,
    rows: int,
    depths: Sequence[int],
    now: Callable[[], float],
    disturbed: Callable[[], None],
) -> dict[int, float]:
    """Seconds of drafting so deep, as far as one drafter offers it."""
    limit = target.context_length
    length = NEAR if limit is None else min(NEAR, limit - max(depths) - 2)
    if length < 1:
        return {}
    session = target.begin_idle(rows, length)
    prompt = [TOKEN] * (length + 1)
    drafts = begun(drafter, [prompt] * rows, [Sampling()] * rows, session)
    texts = _plain_round(session, drafts, [prompt] * rows)
    offered = [depth for depth in depths if _offered(drafts, _requests(texts, depth))]

    def run(depth: int) -> float:
        settle(session.device)
        started = now()
        asked = _requests(texts, depth)
        taken = _offered(drafts, asked)
        drafts.propose([replace(each, offer=offer) for each, offer in zip(asked, taken, strict=True)])
        settle(session.device)
        return now() - started

    if offered:
        run(offered[-1])  # pays for what is done once: tables are made, kernels are chosen (a second on a GPU)
    return _fastest(offered, run, DRAFT_SECONDS, now, disturbed)


def _plain_round(session: TargetSession, drafts: DraftSession, prompts: list[list[int]]) -> list[list[int]]:
    """One round of which nothing is drafted: a drafter that lives on the target's states has none before it."""
    while drafts.read(sys.maxsize):
        pass
    requests = _requests(prompts, 0)
    drafts.offers(requests)
    verdicts = _scored(session, drafts.propose(requests))
    session.commit([verdict.path for verdict in verdicts])
    drafts.observe(verdicts)
    return [[*prompt, *verdict.tokens] for prompt, verdict in zip(prompts, verdicts, strict=True)]


def _requests(texts: Sequence[Sequence[int]], depth: int) -> list[DraftRequest]:
    return [DraftRequest(tokens=text, depth=depth, generator=torch.Generator()) for text in texts]


def _offered(drafts: DraftSession, requests: Sequence[DraftRequest]) -> list[Offer]:
    """Each row's offer of a draft that takes steps and goes as deep as is asked; none if a row has none."""
    steps = [
        next((offer for offer in offers if offer.tree is None and offer.depth >= request.depth), None)
        for offers, request in zip(drafts.offers(requests), requests, strict=True)
    ]
    return [offer for offer in steps if offer is not None] if None not in steps else []


def _fastest(
    shapes: Sequence[_Shape],
    run: Callable[[_Shape], float],
    most: float,
    now: Callable[[], float],
    disturbed: Callable[[], None],
) -> dict[_Shape, float]:
    """The seconds of each shape, as far as so many seconds suffice.

    All shapes are run once before any is run again: a slow spell of the machine hits all of them. One for which time
    sufficed only once is left out beside others: the first run may take several times as long as the rest.
    """
    started, runs = now(), dict[_Shape, list[float]]()
    for shape in shapes:
        if runs and now() - started > most / 2:
            break
        try:
            runs[shape] = [run(shape)]
        except (torch.OutOfMemoryError, DeviceMemoryError):  # a batch of such rows has other things to say of it
            break
    for shape in [*runs] * (RUNS - 1):
        if now() - started > most:
            break
        runs[shape].append(run(shape))
    uneven = [max(own[1:]) > UNEVEN * min(own[1:]) for own in runs.values() if own[1:]]
    if 2 * sum(uneven) > len(runs):
        disturbed()
    again = {shape: min(own) for shape, own in runs.items() if own[1:]}
    return again or {shape: min(own) for shape, own in runs.items()}
