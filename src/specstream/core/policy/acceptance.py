"""How likely drafts are to be accepted: estimated by source and depth, calibrated online."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import NamedTuple

from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.tree import TokenTree

FADE = 0.05
"""Weight of the newest judgement of a draft, once there were 20: enough to follow a text, too little to follow luck."""

PRIOR_ACCEPTANCE, PRIOR_WEIGHT = 0.8, 2
"""Before a depth was judged it is taken to be like the one before, the first like this, for so many judgements."""

SURPRISE = 0.001
"""A run of acceptances, or of rejections, that is less likely than this means that the text has changed."""

CALIBRATION_WEIGHT, CALIBRATION_FADE = 2.0, 1 / 64
"""Accepted tokens that an estimate counts for at first, and the weight of the newest after that."""


class Level(NamedTuple):
    """Nodes that a tree is extended by at once: those of one depth, or one node.

    Attributes:
        depth: in the tree.
        nodes: how many are expected to be drafted there.
        survival: how many of them are expected to be accepted.
    """

    depth: int
    nodes: float
    survival: float


class Acceptance:
    """Of one source: how often a draft of each depth is accepted where the one before it was."""

    def __init__(self) -> None:
        self.rates: list[float] = []  # of depth 1, 2, ..., as deep as was judged
        self._judged: list[float] = []  # how many judgements each of them still stands for
        self._runs: list[int] = []  # the newest that were alike: so many acceptances, or minus so many rejections
        self._kept: list[float] = []  # how often a draft that may end early has a token there, where it had the last

    @property
    def reach(self) -> int:
        """The deepest to go: twice as deep as was ever judged, so that a first trial is a cheap one."""
        return max(1, 2 * len(self.rates))

    def survivals(self, depth: int) -> list[float]:
        """How likely a token of depth 1, 2, ... is accepted."""
        found, reached, rate = [], 1.0, PRIOR_ACCEPTANCE
        for at in range(depth):
            if at < len(self.rates):  # the fewer judgements, the more like the depth before
                known = self._judged[at]
                prior = PRIOR_WEIGHT * (1 - FADE * known)
                rate = (known * self.rates[at] + prior * rate) / (known + prior)
            reached *= rate
            found.append(reached)
        return found

    def going(self, depth: int) -> list[float]:
        """How likely there is a token at depth 1, 2, ..., where a draft may end before."""
        last = self._kept[-1] if self._kept else 1.0
        return list(accumulate([*self._kept[:depth], *[last] * (depth - len(self._kept))], operator.mul))

    def judge(self, judged: int, accepted: int) -> None:
        """The first ``judged`` depths were looked at, the first ``accepted`` of them accepted."""
        for at in range(judged):
            if at == len(self.rates):
                self.rates.append(0.0)
                self._judged.append(0)
                self._runs.append(0)
            self._learn(at, at < accepted)
        if accepted >= judged:  # what might have been looked at too, and was not, is known less and less
            self._judged[judged:] = [(1 - FADE) * known for known in self._judged[judged:]]

    def judge_length(self, asked: int, drafted: int) -> None:
        """A draft of ``asked`` tokens was asked for, and ended after ``drafted``."""
        for at in range(min(asked, drafted + 1)):
            if at == len(self._kept):
                self._kept.append(1.0)
            self._kept[at] += FADE * ((at < drafted) - self._kept[at])

    def _learn(self, at: int, accepted: bool) -> None:
        run, rate = self._runs[at], self.rates[at]
        run = self._runs[at] = max(run, 0) + 1 if accepted else min(run, 0) - 1
        likelihood = min(max(rate if accepted else 1 - rate, 0.02), 0.98)
        if self._judged[at] > abs(run) and likelihood ** abs(run) < SURPRISE:
            # Another text: what was known of the last one is forgotten.
            self.rates[at], self._judged[at] = float(accepted), abs(run)
            return
        self._judged[at] = min(self._judged[at] + 1, 1 / FADE)
        self.rates[at] += (accepted - rate) / self._judged[at]


class Calibration:
    """What happened over what was expected of a drafter's drafts.

    Attributes:
        ratio: the two, as far as there were drafts.
    """

    def __init__(self) -> None:
        self._expected = self._happened = CALIBRATION_WEIGHT
        self.ratio = 1.0

    def judge(self, expected: float, happened: float) -> None:
        """So many tokens were expected, for example, and so many it were."""
        self._expected += expected - CALIBRATION_FADE * self._expected
        self._happened += happened - CALIBRATION_FADE * self._happened
        self.ratio = self._happened / self._expected


Calibrations = dict[tuple[str, bool], Calibration]
"""Of one row: by drafter, and whether of what it drafted. Texts differ: where one repeats itself and its neighbour does
not, copies of the first are accepted and copies of the second are not."""


class Estimates:
    """What is estimated of every source, of all rows together, and by how much each row is better or worse."""

    def __init__(self) -> None:
        self._sources: dict[str, Acceptance] = {}

    def of(self, offer: Offer) -> Acceptance:
        return self._sources.setdefault(offer.source, Acceptance())

    def calibration(self, calibrations: Calibrations, offer: Offer, *, drafted: bool = False) -> Calibration:
        """Of what is expected in a row before its drafter drafts, or of what was ``drafted``."""
        return calibrations.setdefault((offer.drafter, drafted), Calibration())

    def levels(self, offer: Offer, calibrations: Calibrations, least: float = 0.0) -> list[Level]:
        """What an offer's tree is extended by, in that order, as deep as it may be taken.

        Of an offer that is ranked, without nodes that are accepted less often than ``least``.
        """
        ratio = self.calibration(calibrations, offer).ratio
        if offer.ranked:
            likely = takewhile(lambda each: ratio * each[1] >= least, offer.ranked)
            return [Level(depth, 1.0, min(1.0, ratio * survival)) for depth, survival in likely]
        source = self.of(offer)
        depth = min(offer.depth, source.reach)
        counts = [float(count) for count in offer.per_depth[:depth]]
        if offer.cuts:
            counts = [count * going for count, going in zip(counts, source.going(depth), strict=True)]
            ratio = min(1.0, ratio)
        survivals = [min(1.0, ratio * each) for each in source.survivals(depth)]
        return [Level(at, *each) for at, each in enumerate(zip(counts, survivals, strict=True), 1)]

    def judge(self, offers: Sequence[Offer], request: DraftRequest, tree: TokenTree, verdict: Verdict) -> None:
        """Learn from a row's round.

        Every tree that was known is judged by what was emitted, whether it was taken or not; others if taken. Depth
        ``accepted + 1`` was judged and turned down, unless an end was accepted: nothing lies behind it.
        """
        emitted, taken, asked = len(verdict.tokens), request.offer, request.depth
        known = request.calibrations
        for offer in offers:
            if offer.tree is not None and not offer.tree.proposals:
                self._judge(known, offer, min(offer.depth, emitted), offer.tree.matched(verdict.tokens))
        if taken is None or taken.tree is not None or not asked:
            return
        if taken.ranked:
            planned = [survival for depth, survival in taken.ranked if depth <= asked][: request.planned or None]
            self.calibration(known, taken).judge(sum(planned), verdict.accepted)
            if tree.survival:
                self.calibration(known, taken, drafted=True).judge(sum(tree.survival[1:]), verdict.accepted)
            return
        source, drafted = self.of(taken), max(tree.depths)
        steps = drafted if tree.steps is None else tree.steps
        if taken.cuts:
            # What is known of each depth is of the drafts that got there, of which the drafter was sure.
            self.calibration(known, taken).judge(sum(source.survivals(asked)), verdict.accepted)
            # A draft that ended found out by a step more, whose token it may have proposed all the same.
            source.judge_length(asked, steps - (steps < asked or drafted < steps))
            source.judge(min(steps, emitted, verdict.accepted + 1), verdict.accepted)
        else:
            self._judge(known, taken, min(steps, emitted), verdict.accepted)

    def _judge(self, calibrations: Calibrations, offer: Offer, reached: int, accepted: int) -> None:
        """Of a draft that is so deep, as far as something was emitted, so many tokens were accepted."""
        source = self.of(offer)
        depth = min(reached, len(source.rates))  # what was never judged is expected by a guess
        self.calibration(calibrations, offer).judge(sum(source.survivals(depth)), min(depth, accepted))
        source.judge(min(reached, accepted + 1), accepted)
