"""Two drafters in one: what is cheap to look up, where it is found, and a model's drafts where it is not.

Which of the two a row takes, and how deep, is not decided here: both make their offers, and the loop takes by expected
profit (``core/controller.py``). Without a controller the first offer is taken: the look-up wherever it matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specstream.core.ports import Drafter, DraftRequest, DraftSession, Offer, TargetSession
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.verify import Verdict


class MixedDrafter:
    """Drafts with one drafter or the other, row by row.

    Args:
        cheap: preferred wherever it has anything to offer.
        model: for where it has not.
    """

    name = "mixed"

    def __init__(self, cheap: Drafter, model: Drafter) -> None:
        self.cheap, self.model = cheap, model

    def begin(self, prompts: Sequence[Sequence[int]], sampling: Sampling, session: TargetSession) -> MixedSession:
        cheap, model = (drafter.begin(prompts, sampling, session) for drafter in (self.cheap, self.model))
        return MixedSession(cheap, model)


class MixedSession:
    """Both at work on one batch. The one that does not draft for a row is told what became of it all the same."""

    def __init__(self, cheap: DraftSession, model: DraftSession) -> None:
        self._cheap, self._model = cheap, model
        self._looked_up: list[list[Offer]] = []

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        self._looked_up = self._cheap.offers(requests)
        return [[*cheap, *model] for cheap, model in zip(self._looked_up, self._model.offers(requests), strict=True)]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        cheap = [
            any(request.offer is offer for offer in offers)
            for request, offers in zip(requests, self._looked_up, strict=True)
        ]
        rows = list(zip(requests, cheap, strict=True))
        looked_up = self._cheap.propose([request if own else replace(request, depth=0) for request, own in rows])
        drafted = self._model.propose([replace(request, depth=0) if own else request for request, own in rows])
        return [mine if own else other for mine, other, own in zip(looked_up, drafted, cheap, strict=True)]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        self._cheap.observe(verdicts)
        self._model.observe(verdicts)

    def keep(self, rows: Sequence[int]) -> None:
        self._cheap.keep(rows)
        self._model.keep(rows)
