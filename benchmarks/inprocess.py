"""Figures of ours against ours, in one process: pairs of runs in turn (``specstream.engine.engine.contestants``).

Both runs of a pair take the same target, runtime and prompt. Speeds here are of decoding, the prompt on neither side,
because both sides read it alike; the reports show the whole call as well.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from benchmarks.prompts import Item
from specstream.config import GenerationConfig
from specstream.core.ports import Drafter, DraftRequest, DraftSession, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.drafters.none import NoDrafter
from specstream.engine.contestants import Run, by_turn, in_turn, interleaved, rotated
from specstream.engine.engine import SpeculativeEngine
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.errors import SpecStreamError
from specstream.evaluation.predicted import PassCosts
from specstream.evaluation.profile import StandIn
from specstream.models.architecture.checkpoint import CheckpointRules


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A speculative run and a plain one of the same prompt in the same round."""

    item: str
    round: int
    own: Run
    plain: Run

    @property
    def ratio(self) -> float:
        """Decoding speed over plain decoding speed."""
        return self.own.new_tokens / self.own.decode / (self.plain.new_tokens / self.plain.decode)

    @property
    def whole_ratio(self) -> float:
        """The same of the whole call."""
        return self.own.new_tokens / self.own.total / (self.plain.new_tokens / self.plain.total)

    @property
    def matching_passes(self) -> float:
        """The share of passes in which a draft was accepted."""
        return sum(count > 1 for count in self.own.passes) / len(self.own.passes)


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much to generate."""

    rounds: int
    limit: int
    ignore_eos: bool = False


def generate(parts: Parts, amount: Amount, item: Item) -> Run:
    """Generate for an item."""
    return Run.of(_begin(parts, amount, item).run())


def alternate(parts: Parts, items: Sequence[Item], amount: Amount) -> list[Pair]:
    """Pairs of every item in every round; one pair warms up and is not counted."""
    ways = {name: partial(generate, side, amount) for name, side in _sides(parts, items).items()}
    turns = by_turn(in_turn(ways, items, rounds=amount.rounds))
    return [Pair(item=items[turn.prompt].name, round=turn.round, **turn.values()) for turn in turns]


def in_step(parts: Parts, items: Sequence[Item], amount: Amount) -> list[Pair]:
    """The same, but both sides generate at once, pass by pass: whoever has fewer tokens goes on.

    A second in which the machine has other work then meets both. It is for small differences; the two take each other's
    place in the processor's caches.
    """
    sides = _sides(parts, items)

    def both(item: Item, names: Sequence[str]) -> dict[str, Run]:
        running = {name: _begin(sides[name], amount, item) for name in names}
        rounds = {name: generation.rounds() for name, generation in running.items()}
        for _ in interleaved(rounds, lambda name: running[name].new_tokens):
            pass
        return {name: Run.of(generation) for name, generation in running.items()}

    both(items[0], list(sides))
    order = product(range(amount.rounds), range(len(items)))
    return [
        Pair(item=items[at].name, round=round_, **both(items[at], rotated(list(sides), round_ + at)))
        for round_, at in order
    ]


def _sides(parts: Parts, items: Sequence[Item]) -> dict[str, Parts]:
    sides = {"own": parts, "plain": parts.with_drafter(NoDrafter())}
    for side in sides.values():
        prepare(side, max(len(item.prompts) for item in items))
    return sides


def _begin(parts: Parts, amount: Amount, item: Item) -> Generation:
    parts = replace(parts, checkpoint=CheckpointRules())  # the other systems follow none of them either
    return Generation(parts, item.prompts, GenerationConfig(max_new_tokens=amount.limit, ignore_eos=amount.ignore_eos))


class Adversarial(Drafter):
    """A drafter whose drafts are replaced by tokens half the vocabulary away: all its work, nothing accepted.

    The next token of the vocabulary would not do: it is often the next digit, and a list's numbers were accepted.
    """

    def __init__(self, drafter: Drafter, vocab_size: int) -> None:
        self._drafter = drafter
        self._vocab_size = vocab_size
        self.name = f"{drafter.name}, adversarial drafts"

    @property
    def members(self) -> tuple[Drafter, ...]:
        """As costly as its own."""
        return tuple(self._drafter.members)

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> AdversarialSession:
        return AdversarialSession(self._drafter.begin(prompts, samplings, session), self._vocab_size)


class AdversarialSession(DraftSession):
    """See ``Adversarial``."""

    def __init__(self, session: DraftSession, vocab_size: int) -> None:
        self._session = session
        self._vocab_size = vocab_size
        self._own: dict[int, Offer] = {}  # the session's own offer, by the id of the other one

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        own = self._session.offers(requests)
        given = [[replace(each, tree=each.tree and self._replaced(each.tree)) for each in offers] for offers in own]
        pairs = zip(itertools.chain(*given), itertools.chain(*own), strict=True)
        self._own = {id(other): offer for other, offer in pairs}
        return given

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        own = [replace(each, offer=self._own.get(id(each.offer))) for each in requests]
        return [self._replaced(tree) for tree in self._session.propose(own)]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        self._session.observe(verdicts)

    def keep(self, rows: Sequence[int]) -> None:
        self._session.keep(rows)

    def join(self, other: AdversarialSession) -> None:
        self._session.join(other._session)

    def _replaced(self, tree: TokenTree) -> TokenTree:
        drafted = ((token + self._vocab_size // 2) % self._vocab_size for token in tree.tokens[1:])
        return TokenTree((tree.tokens[0], *drafted), tree.parents, survival=tree.survival)


def adversarial(engine: SpeculativeEngine) -> Parts:
    """The engine's parts with adversarial drafts in place of its drafter's."""
    parts = engine.parts
    return replace(parts, drafter=Adversarial(parts.drafter, engine.target.vocab_size))


def unlearned(parts: Parts) -> Parts:
    """The same parts with a controller of their own, which knows what theirs knows now."""
    speculation = parts.speculation
    return replace(parts, speculation=replace(speculation, controller=copy.deepcopy(speculation.controller)))


def recorded(target: Any, widths: list[int]) -> Any:
    """A target that adds the width of every pass over it to a list."""

    def noted(session: Any) -> Any:
        def score(trees: Sequence[TokenTree]) -> Any:
            widths.append(max(map(len, trees)))
            return session.score(trees)

        return StandIn(session, score=score)

    return StandIn(
        target,
        begin=lambda prefixes: noted(target.begin(prefixes)),
        begin_reading=lambda prefixes: noted(target.begin_reading(prefixes)),
    )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Runs of one prompt, and what they should have taken.

    Attributes:
        item: its name.
        ratios: predicted seconds over measured seconds, of each run.
        costs: seconds of a pass of each width: of the target and of the draft.
        passes: how often each width occurred in the last run: of the target and of the draft.
    """

    item: str
    ratios: list[float]
    costs: dict[str, dict[str, float]]
    passes: dict[str, dict[str, int]]


def predict(engine: SpeculativeEngine, item: Item, amount: Amount, repeats: int = 5) -> Prediction:
    """Measure pass costs and runs in turn, at the context in the middle of the output.

    Raises:
        SpecStreamError: drafts were made by passes that could not be seen.
    """
    drafter: Any = copy.copy(engine.parts.drafter)
    models = {"target": engine.parts.target, "draft": drafter.model}
    costs = {name: PassCosts(model) for name, model in models.items()}
    widths: dict[str, list[int]] = {name: [] for name in models}
    target, drafter.model = (recorded(model, widths[name]) for name, model in models.items())
    parts = replace(engine.parts, target=target, drafter=drafter)
    first = generate(parts, amount, item)
    context = [*item.prompts[0], *first.tokens[0][: first.new_tokens // 2]]
    runs: list[tuple[float, dict[str, list[int]]]] = []
    _price(costs, widths, context, repeats)
    for _ in range(amount.rounds):
        for own in widths.values():
            own.clear()
        run = generate(parts, amount, item)
        if run.drafted and not widths["draft"]:
            raise SpecStreamError("drafts were made without a pass that could be seen; measure them another way")
        runs.append((run.decode, {name: list(own) for name, own in widths.items()}))
        _price(costs, widths, context, repeats)
    predicted = [sum(costs[name].total([(width,) for width in seen[name]]) for name in costs) for _, seen in runs]
    return Prediction(
        item=item.name,
        ratios=[total / measured for total, (measured, _) in zip(predicted, runs, strict=True)],
        costs={name: each.as_json() for name, each in costs.items()},
        passes={name: _counted(seen) for name, seen in runs[-1][1].items()},
    )


def _price(costs: dict[str, PassCosts], widths: dict[str, list[int]], context: list[int], repeats: int) -> None:
    for name, own in widths.items():
        costs[name].measure([context], {1: sorted(set(own))}, repeats)


def _counted(widths: Sequence[int]) -> dict[str, int]:
    return {str(width): widths.count(width) for width in sorted(set(widths))}
