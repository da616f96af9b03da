"""What the start-up self-test measured: seconds of passes and of drafts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PriceList:
    """Seconds on this machine, of one target and of what drafts for it.

    Attributes:
        passes: of scoring, verifying and committing, by (rows, nodes of all rows together, tokens of context of each
            row).
        drafts: of proposing, by the drafter's name, and by (rows that ask, depth).
    """

    passes: Mapping[tuple[int, int, int], float] = field(default_factory=dict)
    drafts: Mapping[str, Mapping[tuple[int, int], float]] = field(default_factory=dict)

    def merged(self, other: PriceList) -> PriceList:
        """Those of both; the other's where both have one."""
        names = [*self.drafts, *(name for name in other.drafts if name not in self.drafts)]
        drafts = {name: {**self.drafts.get(name, {}), **other.drafts.get(name, {})} for name in names}
        return PriceList({**self.passes, **other.passes}, drafts)
