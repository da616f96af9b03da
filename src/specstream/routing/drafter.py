"""Drafting with whichever drafter the router chooses: one for a batch, at its beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specstream.core.ports import Components, Drafter, DraftSession, TargetSession
from specstream.core.sampling import Sampling
from specstream.routing.config import check_drafters
from specstream.routing.router import Router


class RoutedDrafter(Drafter):
    """Several drafters of one target, by the names that a router knows them by, of which it chooses.

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

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> DraftSession:
        """The session of the chosen drafter, with the choice.

        Where tokens are drawn, the table alone decides: which drafter drafts decides how chance is spent, and a seed
        has to repeat.
        """
        settled = not all(each.greedy for each in samplings)
        choice = self.router.choose_for(prompts, among=self.drafters, settled=settled)
        drafting = self.drafters[choice.drafter].begin(prompts, samplings, session)
        drafting.choice = choice
        return drafting
