"""What is believed of every drafter's drafts, by what became of those before."""

from __future__ import annotations

from collections.abc import Sequence

from specstream.core.policy.acceptance import Acceptance, Reach, Trust
from specstream.core.policy.plans import Choice
from specstream.core.ports import Offer, Verdict


class Beliefs:
    """How often drafts of each source are accepted, how far they get, and what each drafter's own word is worth."""

    def __init__(self) -> None:
        self._acceptance: dict[str, Acceptance] = {}
        self._reach: dict[str, Reach] = {}
        self._trust: dict[str, Trust] = {}  # by drafter

    def renew(self) -> None:
        """Another text begins, in which drafters may be worth more than in the last one, or less."""
        for trust in self._trust.values():
            trust.renew()

    def judge(self, offers: Sequence[Offer], taken: Choice, verdict: Verdict) -> None:
        """Every tree that was known is judged by what was emitted, whether it was taken or not; others if taken."""
        emitted = len(verdict.tokens)
        for offer in offers:
            if offer.tree is not None and not offer.tree.proposals:
                matched = offer.tree.matched(verdict.tokens)
                judged = min(offer.depth, emitted, matched + 1)
            elif taken and taken.offer is offer and offer.expected:
                self._trusted(offer).judge(offer.expected[taken.depth] - 1, verdict.accepted)
                continue
            elif taken and taken.offer is offer:
                # Depth `accepted + 1` was judged and turned down, unless an end was accepted: nothing lies behind it.
                # Where a draft ended early the drafter turned it down.
                matched = verdict.accepted
                judged = min(taken.depth, emitted, matched + 1)
            else:
                continue
            self._of(offer).judge(judged, matched)

    def hopeful(self, offer: Offer) -> float:
        """Tokens that it might emit, taken to depth 1; who measures for itself is asked again when it has waited."""
        return self.expected(offer)[1] if offer.expected else self._of(offer).hopeful

    def expected(self, offer: Offer) -> Sequence[float]:
        """Tokens that it emits, taken to depth 0, 1, ... as deep as it may be taken."""
        known, ratio = offer.expected or self._of(offer).expected, 1.0
        if offer.expected:
            ratio = self._trusted(offer).ratio
        elif offer.cuts:  # what runners-up bring besides is no reason to go deeper
            ratio = min(1.0, self._trusted(offer).ratio)
        return known if ratio == 1 else [1 + (tokens - 1) * ratio for tokens in known]

    def judge_cut(self, offer: Offer, depth: int, accepted: int) -> None:
        """So many tokens were accepted where a draft of this depth was asked for, that might end before.

        What is known of each depth is of the drafts that got there, of which the drafter was sure.
        """
        self._trusted(offer).judge(self._of(offer).expected[depth] - 1, accepted)

    def _trusted(self, offer: Offer) -> Trust:
        return self._trust.setdefault(offer.drafter, Trust())

    def _of(self, offer: Offer) -> Acceptance:
        return self._acceptance.setdefault(offer.source, Acceptance())

    def reached(self, offer: Offer) -> Reach:
        return self._reach.setdefault(offer.source, Reach())
