"""A simulated machine and text: what passes and drafts cost, and what is accepted. No model, no clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import pytest
import torch

from specstream.core.policy.acceptance import Calibrations
from specstream.core.policy.controller import Controller
from specstream.core.policy.cost_model import CostModel
from specstream.core.policy.prices import PriceList
from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.tree import TokenTree

CHANCE = torch.Generator()
RIGHT, WRONG = 1, 0
FAR_BEHIND, AFRESH = 128, 32  # as in drafters/draft_model.py


def widths(*seconds: float) -> Callable[[int], float]:
    """The price of a pass of 1, 2, ... nodes."""
    return lambda width: seconds[width - 1]


class Machine:
    """Decodes rows of a text that nobody reads.

    Attributes:
        price: seconds of a pass, by its width.
        step: seconds of a draft model's step; ``read``: of a token that it catches up on.
        model: how often its drafts are accepted; None for no draft model.
        lookup: how often there is a match, and how often what it copies is right; None for no lookup. A list of them
            is of the rows, each of which then ends with its own tokens.
        seconds, tokens: used, and emitted by all rows.
        sure: how often the model's next token is one it is sure of, accepted at 0.99 where any other is at 0.5; it
            ends drafts by that, and ``model`` does not matter. None for a model that does not.
        noisy: whether other work disturbs measurements: the first of a kind takes six times as long, one in eight of
            the others up to three times.
        deciding: seconds of offering and choosing in a round that does not pause.
        ragged: whether a pass needs no padding; ``price`` is then of the nodes of all rows together.
        spells: mean passes of a slow spell and of the time between two; None for no spells. In one, all takes one and
            a half to four times as long, but ``seconds`` has what it would have taken.
        log: for every round, what each row took: "m2" is two tokens of the model's, "l3" three of the lookup's, "-"
            nothing.
    """

    def __init__(self, price, *, step=0.0, read=0.0, model=None, lookup=None, rows=1, depth=5, branches=1, seed=0):  # noqa: PLR0913
        self.price, self.step, self.read = price, step, read
        self.model, self.lookup, self.rows, self.depth, self.branches = model, lookup, rows, depth, branches
        self.chance = random.Random(seed)
        self.sure: float | None = None
        self.noisy, self._done, self._disturbance = False, set[object](), random.Random(seed + 1)
        self.spells: tuple[float, float] | None = None
        self.ragged = False
        self.deciding, self._behind = 0.0, False
        self._slow, self._until = 1.0, 0
        self.seconds, self.tokens = 0.0, 0
        self.unread = [1] * rows
        self.calibrations = [Calibrations() for _ in range(rows)]
        self.log: list[list[str]] = []

    def run(self, controller: Controller, tokens: int) -> float:
        """So many tokens a row; their speed over that of plain decoding."""
        before, started = self.tokens, self.seconds
        while self.tokens - before < tokens * self.rows:
            self.round(controller, tokens * self.rows - (self.tokens - before))
        return (self.tokens - before) / self.rows * self.price(self._nodes([1] * self.rows)) / (self.seconds - started)

    def run_apart(self, controller: Controller, tokens: int) -> float:
        """The same of a batch that nobody joins, whose rows leave when they have so many tokens."""
        rows, started = self.rows, self.seconds
        assert isinstance(self.lookup, list)
        lookup, left = self.lookup, [tokens] * rows
        while left:
            emitted = self.round(controller, max(left), left)
            left = [each - more for each, more in zip(left, emitted, strict=True)]
            stay = [at for at, each in enumerate(left) if each > 0]
            left, self.lookup = [left[at] for at in stay], [self.lookup[at] for at in stay]
            self.unread = [self.unread[at] for at in stay]
            self.calibrations = [self.calibrations[at] for at in stay]
            self.rows = len(left)
        self.rows, self.lookup, self.unread = rows, lookup, [1] * rows
        self.begin()
        return tokens * self.price(self._nodes([1] * self.rows)) / (self.seconds - started)

    def begin(self) -> None:
        """Other texts, of which nothing was seen."""
        self.calibrations = [Calibrations() for _ in range(self.rows)]

    def best(self) -> float:
        """The speed of the best fixed depth of the model's chains, over that of plain decoding."""
        return max(
            sum(self.model**at for at in range(depth + 1)) / (self.price(depth + 1) + depth * self.step)
            for depth in range(self.depth + 1)
        ) * self.price(1)

    def round(self, controller: Controller, left: int = 99, each_left: Sequence[int] | None = None) -> list[int]:
        if controller.pauses(self.rows):
            self._behind = True
            self.seconds, self.tokens = self.seconds + self.price(self._nodes([1] * self.rows)), self.tokens + self.rows
            self.unread = [unread + 1 for unread in self.unread]
            self.log.append(["-"] * self.rows)
            return [1] * self.rows
        depth, self._behind = 0 if self._behind else min(self.depth, left - 1), False
        matches = [self._copied(row, depth) for row in range(self.rows)]
        offers = [self._offers(row, depth, matches[row]) for row in range(self.rows)]
        asked = [
            DraftRequest(tokens=[9], depth=depth, generator=CHANCE, calibrations=each) for each in self.calibrations
        ]
        requests = controller.choose(asked, offers, each_left, ragged=self.ragged)
        trees, verdicts, done = [], [], []
        steps = 0
        for row, request in enumerate(requests):
            likelihoods = self._likelihoods(request)
            drafted = sum(each >= request.threshold for each in accumulate(likelihoods, mul))
            if request.offer is not None and request.offer.tree is None:
                steps = max(steps, min(request.depth, drafted + 1))
            accepted, truth = self._accepted(request, drafted, matches[row], likelihoods)
            path = tuple(range(accepted + 1))
            done.append(drafted)
            trees.append(self._tree(request, drafted, min(request.depth, drafted + 1)))
            verdicts.append(Verdict(path=path, tokens=tuple(RIGHT if at < truth else WRONG for at in range(len(path)))))
            self.tokens += len(path)
        drafting = [each.offer for each in requests if each.offer and each.offer.tree is None]
        unread = max((each.unread - 2 for each in drafting if each.unread > 2), default=0)
        proposing = steps * self.step + unread * self.read
        nodes = self._nodes([len(tree) for tree in trees])
        scoring = self.price(nodes)
        proposing, scoring = self._measured("step", proposing), self._measured(nodes, scoring)
        slow = self._slowness()
        seconds = (slow * proposing, slow * scoring)
        deciding = slow * self.deciding
        controller.observe(offers, requests, trees, verdicts, seconds, deciding=deciding, ragged=self.ragged)
        self.seconds += self.deciding + proposing + scoring
        self.log.append(
            [f"{own.offer.source[0]}{deep}" if own.offer else "-" for own, deep in zip(requests, done, strict=True)]
        )
        for row, (request, verdict) in enumerate(zip(requests, verdicts, strict=True)):
            own = request.offer is not None and request.offer.tree is None
            self.unread[row] = (
                1 + (verdict.accepted == trees[row].drafted) if own else self.unread[row] + len(verdict.tokens)
            )
        return [len(verdict.tokens) for verdict in verdicts]

    def _nodes(self, sizes: list[int]) -> int:
        return sum(sizes) if self.ragged else max(sizes)

    def _measured(self, kind: object, seconds: float) -> float:
        if not self.noisy or not seconds:
            return seconds
        first = kind not in self._done
        self._done.add(kind)
        return seconds * (6 if first else self._disturbance.uniform(1, 3) if self._disturbance.random() < 1 / 8 else 1)

    def _slowness(self) -> float:
        if self.spells and len(self.log) >= self._until:
            self._slow = 1.0 if self._slow > 1 else self._disturbance.choice([1.5, 2, 3, 4])
            mean = self.spells[0] if self._slow > 1 else self.spells[1]
            self._until = len(self.log) + 1 + int(self._disturbance.expovariate(1 / mean))
        return self._slow

    def _copied(self, row: int, depth: int) -> int | None:
        """How many tokens of this round's match are right; None if nothing matches."""
        lookup = self.lookup[row] if isinstance(self.lookup, list) else self.lookup
        if not lookup or depth < 1 or self.chance.random() >= lookup[0]:
            return None
        return next((at for at in range(depth) if self.chance.random() >= lookup[1]), depth)

    def _offers(self, row: int, depth: int, match: int | None) -> list[Offer]:
        offers = []
        if match is not None:
            offers.append(Offer(source="lookup/3", depth=depth, tree=TokenTree.chain([9] + [RIGHT] * depth)))
        if self.model is not None and depth > 0:
            unread = AFRESH if self.unread[row] > FAR_BEHIND else self.unread[row]
            cuts = self.sure is not None
            offers.append(Offer(source="model", depth=depth, branches=self.branches, unread=unread, cuts=cuts))
        return offers

    def _likelihoods(self, request: DraftRequest) -> list[float]:
        """Of each token that the model would draft."""
        if request.offer is None or self.sure is None or request.offer.tree is not None:
            return [1.0] * (request.depth if request.offer else 0)
        return [0.99 if self.chance.random() < self.sure else 0.5 for _ in range(request.depth)]

    def _accepted(
        self, request: DraftRequest, drafted: int, match: int | None, likelihoods: list[float]
    ) -> tuple[int, int]:
        """Of what was drafted; and how many of the emitted tokens are those of the match."""
        if request.offer is None:
            return 0, match or 0
        if request.offer.tree is not None:
            return min(match or 0, drafted), match or 0
        rates = [self.model] * drafted if self.sure is None else likelihoods[:drafted]
        accepted = next((at for at, rate in enumerate(rates) if self.chance.random() >= rate), drafted)
        return accepted, match or 0

    def _tree(self, request: DraftRequest, depth: int, steps: int) -> TokenTree:
        offer = request.offer
        if offer is None:
            return TokenTree.chain([9])
        if offer.tree is not None:
            return offer.tree.pruned(depth)
        leaves = [(at, leaf) for at in range(depth) for leaf in range(1, offer.branches)]
        return TokenTree(
            (9, *[RIGHT] * depth, *(2 + leaf for _, leaf in leaves)),
            (*range(-1, depth), *(at for at, _ in leaves)),
            steps=steps,
        )


def ask(
    controller: Controller,
    offers: Sequence[Sequence[Offer]],
    *,
    context: int = 1,
    ragged: bool = False,
    calibrations: Calibrations | None = None,
):
    """What the controller takes of offers for rows with so many tokens: an offer and a depth, or None."""
    known = Calibrations() if calibrations is None else calibrations
    asked = [DraftRequest(tokens=[9] * context, depth=64, generator=CHANCE, calibrations=known) for _ in offers]
    return controller.choose(asked, offers, ragged=ragged)


def taken(controller: Controller, offers: Sequence[Sequence[Offer]], **settings: Any) -> list[tuple[Offer, int] | None]:
    """The same: an offer and a depth, or None."""
    return [(each.offer, each.depth) if each.offer else None for each in ask(controller, offers, **settings)]


def fix_costs(monkeypatch: pytest.MonkeyPatch, prices: PriceList) -> None:
    """Let every policy know these costs and no others: whatever other work makes of passes here."""
    monkeypatch.setattr(Controller, "know", lambda controller, measured: controller.costs.know(prices))
    for learned in ("observe_pass", "observe_drafting"):
        monkeypatch.setattr(CostModel, learned, lambda *of: 1.0)
