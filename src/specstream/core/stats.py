"""What a generation did, counted with one ruler for every drafter, plain decoding included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from specstream.core.ports import Verdict
from specstream.core.tree import TokenTree


@dataclass
class RowStats:
    """Counts of one row.

    Attributes:
        emitted: tokens emitted by each target pass, in order; plain decoding emits 1 each.
        drafted: drafted tokens that were scored.
        accepted: drafted tokens that were accepted *and* emitted (not cut by a stop).
        rejected: drafted tokens that verification turned down.
        drafts: passes that a drafter drafted for, by its name.
        drafted_by: drafted tokens that were scored, likewise.
        accepted_by: those of them that were accepted and emitted.
        drafted_at: passes that drafted so deep, by depth from 1 on.
        accepted_at: passes in which a token of that depth was accepted and emitted.
    """

    emitted: list[int] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    drafts: Counter[str] = field(default_factory=Counter)
    drafted_by: Counter[str] = field(default_factory=Counter)
    accepted_by: Counter[str] = field(default_factory=Counter)
    drafted_at: Counter[int] = field(default_factory=Counter)
    accepted_at: Counter[int] = field(default_factory=Counter)

    def count(self, tokens: Sequence[int], tree: TokenTree, verdict: Verdict, drafter: str | None) -> None:
        """Count one pass.

        Args:
            tokens: what it emitted, after any stop.
            tree: what was scored.
            verdict: on that tree.
            drafter: whose tree it was, None if that is not known.
        """
        accepted = min(verdict.accepted, len(tokens))
        self.emitted.append(len(tokens))
        self.drafted += tree.drafted
        if drafter is not None and tree.drafted:
            self.drafts[drafter] += 1
            self.drafted_by[drafter] += tree.drafted
            self.accepted_by[drafter] += accepted
        self.accepted += accepted
        self.rejected += _rejected(tree, verdict)
        self.drafted_at.update(range(1, max(tree.depths) + 1))
        self.accepted_at.update(range(1, accepted + 1))

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


def _rejected(tree: TokenTree, verdict: Verdict) -> int:
    """Drafts that verification turned down. Those behind an accepted end were never judged."""
    rejected = tree.drafted - verdict.accepted
    if len(verdict.tokens) > verdict.accepted:
        return rejected
    return rejected - sum(verdict.path[-1] in tree.path(node)[:-1] for node in range(len(tree)))
