"""What passes and drafts cost on this machine, as measured before the first answer (``models/invariance/costs.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PriceList:
    """Seconds, as far as they were measured.

    Attributes:
        passes: of the score, verification and commit of one round, by ``(rows, nodes of all rows together, tokens of
            context of each row)``.
        drafts: of ``propose()``, with the offers before it, by the drafter's name (``Offer.drafter``) and ``(rows that
            ask, depth)``.
    """

    passes: Mapping[tuple[int, int, int], float] = field(default_factory=dict)
    drafts: Mapping[str, Mapping[tuple[int, int], float]] = field(default_factory=dict)

    def merged(self, other: PriceList) -> PriceList:
        """All of both; where both know, what the other says."""
        names = {**self.drafts, **other.drafts}
        drafts = {name: {**self.drafts.get(name, {}), **other.drafts.get(name, {})} for name in names}
        return PriceList({**self.passes, **other.passes}, drafts)
