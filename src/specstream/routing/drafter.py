"""Drafting with whichever drafter the router chooses: one for a batch, at its beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specstream.core.ports import Drafter, DraftSession, TargetSession
from specstream.core.sampling import Sampling
from specstream.drafters.mixed import MixedDrafter
from specstream.routing.config import check_drafters
from specstream.routing.router import Router


class RoutedDrafter(MixedDrafter):
    """Several drafters of one target, of which a router chooses.

    Args:
        drafters: by the names that the router knows them by.
        router: bound to the target.

    Raises:
        UsageError: fewer than two drafters.
    """

    joinable = False  # rows of one batch have one drafter, and it would choose for each

    def __init__(self, drafters: Mapping[str, Drafter], router: Router) -> None:
        check_drafters(drafters)
        super().__init__(*drafters.values(), name="router")
        self.by_name, self.router = dict(drafters), router

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> DraftSession:
        """The session of the chosen drafter, with the choice.

        Where tokens are drawn, the table alone decides: which drafter drafts decides how chance is spent, and a seed
        has to repeat.
        """
        settled = not all(each.greedy for each in samplings)
        choice = self.router.choose_for(prompts, among=self.by_name, settled=settled)
        drafts = self.by_name[choice.drafter].begin(prompts, samplings, session)
        drafts.choice = choice
        return drafts
