"""Drafting with whichever drafter the router chooses: one for a batch, at its beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specstream.core.ports import Components, Drafter, DraftRequest, DraftSession, Offer, TargetSession, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.errors import UsageError
from specstream.routing.config import check_drafters
from specstream.routing.router import Choice, Router


class RoutedDrafter(Drafter):
    """Several drafters of one target, of which a router chooses.

    Args:
        drafters: by the names that the router knows them by.
        router: bound to the target.

    Raises:
        UsageError: fewer than two drafters.
    """

    name = "router"
    joinable = False  # rows of one batch have one drafter, and it would choose for each

    def __init__(self, drafters: Mapping[str, Drafter], router: Router) -> None:
        check_drafters(drafters)
        self.drafters, self.router = dict(drafters), router

    @property
    def members(self) -> tuple[Drafter, ...]:
        return tuple(member for each in self.drafters.values() for member in each.members)

    @property
    def nodes(self) -> int:
        return max(each.nodes for each in self.drafters.values())

    @property
    def components(self) -> Components:
        return Components.union(each.components for each in self.drafters.values())

    @property
    def limits(self) -> Mapping[str, int]:
        return {set_by: depth for each in self.drafters.values() for set_by, depth in each.limits.items()}

    def route(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> Choice:
        """One drafter for a batch.

        Where tokens are drawn, the table alone decides: which drafter drafts decides how chance is spent, and a seed
        has to repeat.
        """
        settled = not all(each.greedy for each in samplings)
        return self.router.choose_for(prompts, among=self.drafters, settled=settled)

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> RoutedSession:
        choice = self.route(prompts, samplings)
        return RoutedSession(self.drafters[choice.drafter].begin(prompts, samplings, session), choice)


class RoutedSession(DraftSession):
    """The chosen drafter at work."""

    def __init__(self, session: DraftSession, choice: Choice) -> None:
        self._session, self._drafter, self.choice = session, choice.drafter, choice

    def read(self, most: int) -> bool:
        return self._session.read(most)

    def offers(self, requests: Sequence[DraftRequest]) -> list[list[Offer]]:
        return self._session.offers(requests)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return self._session.propose(requests)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        self._session.observe(verdicts)

    def keep(self, rows: Sequence[int]) -> None:
        self._session.keep(rows)

    def join(self, other: RoutedSession) -> None:
        """Take in rows for which the same drafter was chosen.

        Raises:
            UsageError: another drafter was chosen for them.
        """
        if other._drafter != self._drafter:
            raise UsageError(
                f"the router chose {other._drafter!r} for rows that join a batch of {self._drafter!r}; "
                "decode them in a batch of their own"
            )
        self._session.join(other._session)
