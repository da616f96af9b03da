"""Plain decoding: nothing is ever drafted. The honest baseline, in the same loop."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from specstream.core.ports import Drafter, DraftRequest, DraftSession, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree


class NoDrafter(Drafter, DraftSession):
    """Proposes the root alone, so that every pass emits one token."""

    name = "none"

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession | None = None
    ) -> DraftSession:
        return copy(self)  # a session of its own, which a router may write its choice on

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        return [[] for _ in requests]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [TokenTree.chain(request.tokens[-1:]) for request in requests]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """There is nothing to learn."""

    def keep(self, rows: Sequence[int]) -> None:
        """There is nothing to drop."""

    def join(self, other: NoDrafter) -> None:
        """There is nothing to take in."""
