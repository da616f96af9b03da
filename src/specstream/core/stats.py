"""What a generation did, counted with one ruler for every drafter, plain decoding included."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class RowStats:
    """Counts of one row.

    Attributes:
        emitted: tokens emitted by each target pass, in order; plain decoding emits 1 each.
        drafted: drafted tokens that were scored.
        accepted: drafted tokens that were accepted *and* emitted (not cut by a stop).
        rejected: drafted tokens that verification turned down.
        drafts: passes that a drafter drafted for, by its name.
    """

    emitted: list[int] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    drafts: Counter[str] = field(default_factory=Counter)

    @property
    def target_passes(self) -> int:
        return len(self.emitted)

    @property
    def new_tokens(self) -> int:
        return sum(self.emitted)

    @property
    def mean_accepted_length(self) -> float:
        """Tokens per target pass, the bonus or correction included; 1.0 for plain decoding."""
        return self.new_tokens / len(self.emitted) if self.emitted else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0.0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass
class Timings:
    """Where the wall-clock time of one batch went, in seconds.

    ``prefill`` is everything before the first pass of the loop; ``decode`` everything after, of which
    ``propose`` and ``score`` are parts. On a GPU those two are the device's own time for them (see ``core/clock.py``).
    """

    prefill: float = 0.0
    propose: float = 0.0
    score: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        return self.prefill + self.decode
