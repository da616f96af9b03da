"""Drafting with whichever drafter the router chooses: one for a batch, at its beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specstream.core.ports import Drafter, DraftSession, TargetSession
from specstream.core.sampling import Sampling
from specstream.routing.config import check_drafters
from specstream.routing.router import Choice, Router


class RoutedDrafter:
    """Several drafters of one target, of which a router chooses.

    Args:
        drafters: by the names that the router knows them by.
        router: bound to the target.

    Raises:
        UsageError: fewer than two drafters.
    """

    name = "router"

    def __init__(self, drafters: Mapping[str, Drafter], router: Router) -> None:
        check_drafters(drafters)
        self.drafters, self.router = dict(drafters), router

    def route(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> Choice:
        """One drafter for a batch.

        Where tokens are drawn, the table alone decides: which drafter drafts decides how chance is spent, and a seed
        has to repeat.
        """
        return self.router.choose_for(prompts, among=self.drafters, settled=not all(each.greedy for each in samplings))

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> DraftSession:
        chosen = self.drafters[self.route(prompts, samplings).drafter]
        return chosen.begin(prompts, samplings, session)
