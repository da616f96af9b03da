"""How far each row speculates in a round: what the controller chooses, or the first offer where nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any

from specstream.core.policy.controller import Controller
from specstream.core.ports import DraftRequest, Offer
from specstream.core.rows import Row
from specstream.core.tree import TokenTree


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
        lock: held for a round: between a choice and what became of it, threads that share a controller wait.
    """

    max_depth: int
    unmeasured_depth: int | None = None
    unmeasured_steps: bool = True
    acceptance_threshold: float | None = None
    controller: Controller | None = None
    lock: AbstractContextManager[Any] = field(default_factory=RLock, repr=False, compare=False)

    def measures(self, row: Row) -> bool:
        """Whether the controller decides for this row."""
        return self.controller is not None and not row.repeats

    def depth(self, row: Row) -> int:
        """The deepest tree to ask for."""
        return self.max_depth if self.measures(row) else self.unmeasured_depth or self.max_depth

    def plain_seconds(self, rows: int) -> float | None:
        """What a plain pass of so many rows takes, by the controller's own measurements; None where it has none."""
        return None if self.controller is None else self.controller.plain_seconds(rows)

    def pauses(self, rows: Sequence[Row]) -> bool:
        """Whether the next round is a plain one of which no drafter hears."""
        return self.controller is not None and all(map(self.measures, rows)) and self.controller.pauses(len(rows))

    def choose(
        self,
        rows: Sequence[Row],
        requests: Sequence[DraftRequest],
        offers: Sequence[Sequence[Offer]],
        left: Sequence[int] | None = None,
        *,
        ragged: bool = False,
    ) -> list[DraftRequest]:
        """The requests as they are to be met: with the offer taken, and its depth.

        Args:
            rows: of the round.
            requests: what they may ask for.
            offers: what there is for them.
            left: tokens that every row may still emit, in a batch that nobody joins.
            ragged: whether the target's passes need no padding.
        """
        measured = [self.measures(row) for row in rows]
        judged = [own if each else () for each, own in zip(measured, offers, strict=True)]
        chosen = list(requests)
        if self.controller is not None and any(measured):
            chosen = self.controller.choose(requests, judged, left, ragged=ragged)
        each = zip(measured, chosen, requests, offers, strict=True)
        return [mine if known else self._first(request, own) for known, mine, request, own in each]

    def cut(self, rows: Sequence[Row], trees: Sequence[TokenTree]) -> Sequence[TokenTree]:
        """What is worth a pass of what was drafted for them."""
        if self.controller is None or not any(map(self.measures, rows)):
            return trees
        return self.controller.cut(trees)

    def _first(self, request: DraftRequest, available: Sequence[Offer]) -> DraftRequest:
        """With what is taken unseen."""
        allowed = (offer for offer in available if self.unmeasured_steps or offer.tree is not None)
        offer = next(allowed, None)
        return replace(request, offer=offer, depth=offer.depth if offer else 0)
