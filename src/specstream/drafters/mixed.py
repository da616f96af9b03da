"""Several drafters in one: what is cheap to look up, where it is found, and a model's or its heads' drafts beside it.

Which of them a row takes, and how deep, is not decided here: all make their offers, and the policy takes the plan with
most tokens a second (``core/policy/plan.py``). Without one the first offer is taken: the look-up wherever it matches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from specstream.core.ports import Components, Drafter, DraftRequest, DraftSession, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree


class MixedDrafter(Drafter):
    """Drafts with one drafter or another, row by row.

    Args:
        *drafters: the one to prefer unseen comes first.
        name: to be known by.
    """

    def __init__(self, *drafters: Drafter, name: str = "mixed") -> None:
        self.drafters, self.name = drafters, name

    @property
    def members(self) -> tuple[Drafter, ...]:
        return tuple(member for each in self.drafters for member in each.members)

    @property
    def nodes(self) -> int:
        return max(each.nodes for each in self.drafters)

    @property
    def components(self) -> Components:
        return Components.union(each.components for each in self.drafters)

    @property
    def reads(self) -> Collection[int]:
        return {layer for each in self.drafters for layer in each.reads}

    @property
    def limits(self) -> Mapping[str, int]:
        return {set_by: depth for each in self.drafters for set_by, depth in each.limits.items()}

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> DraftSession:
        return MixedSession([drafter.begin(prompts, samplings, session) for drafter in self.drafters])


class MixedSession(DraftSession):
    """All at work on one batch. Those that do not draft for a row are told what became of it all the same."""

    def __init__(self, sessions: Sequence[DraftSession]) -> None:
        self._sessions = sessions
        self._offered: list[list[list[Offer]]] = []  # by session and row

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        self._offered = [session.offers(requests) for session in self._sessions]
        return [[offer for own in offered for offer in own] for offered in zip(*self._offered, strict=True)]

    def expect(self, row: int, text: Sequence[int]) -> None:
        for session in self._sessions:
            session.expect(row, text)

    def read(self, most: int) -> bool:
        return any([session.read(most) for session in self._sessions])

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        chosen = [self._whose(row, request) for row, request in enumerate(requests)]
        turns = list(zip(requests, chosen, strict=True))
        proposed = [
            session.propose([each if at == own else each.declined() for each, own in turns])
            for at, session in enumerate(self._sessions)
        ]
        return [proposed[own][row] for row, own in enumerate(chosen)]

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        for session in self._sessions:
            session.observe(verdicts)

    def keep(self, rows: Sequence[int]) -> None:
        for session in self._sessions:
            session.keep(rows)

    def join(self, other: MixedSession) -> None:
        for session, theirs in zip(self._sessions, other._sessions, strict=True):
            session.join(theirs)

    def _whose(self, row: int, request: DraftRequest) -> int:
        """The session whose offer was taken, the first where none was."""
        taken = request.offer
        return next(
            (at for at, offered in enumerate(self._offered) if any(taken is offer for offer in offered[row])), 0
        )
