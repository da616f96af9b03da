"""How often the drafts of one source are accepted, by depth, and when what was known of it is no longer true."""

from __future__ import annotations

import math
import operator
from itertools import accumulate

FADE = 0.05
"""Weight of the newest judgement of a draft, once there were 20: enough to follow a text, too little to follow luck."""

PRIOR_ACCEPTANCE = 0.8
"""Hopeful, so that drafts are tried at all. A depth that was never reached is taken to be like the one before."""

PRIOR_WEIGHT = 2
"""Judgements that the prior counts for."""

TRUST, TRUST_FADE = 4.0, 1 / 64
"""What somebody's own word counts for at first, in what they said, and the weight of the newest of it after that."""

SURPRISE = 0.001
"""A run of acceptances, or of rejections, that is less likely than this means that the text has changed."""


class Acceptance:
    """Of one source.

    Attributes:
        expected: tokens that a draft of depth 0, 1, ... emits, the target's own included, as deep as ``reach``.
    """

    def __init__(self) -> None:
        self._rates: list[float] = []  # of depth 1, 2, ..., as deep as was judged
        self._judged: list[float] = []  # how many judgements each of them still stands for
        self._runs: list[int] = []  # the newest that were alike: so many acceptances, or minus so many rejections
        self.expected = self._curve()

    @property
    def reach(self) -> int:
        """The deepest to go: twice as deep as was ever judged, so that a first trial is a cheap one."""
        return max(1, 2 * len(self._rates))

    @property
    def hopeful(self) -> float:
        """Tokens that a draft of one token might emit, for all that is known."""
        if not self._rates or self._runs[0] > 0:
            return 2.0
        rate = self._rates[0]
        return 1 + min(1.0, rate + math.sqrt(rate * (1 - rate) / (PRIOR_WEIGHT + self._judged[0])))

    def _curve(self) -> list[float]:
        expected, reached, rate = [1.0], 1.0, PRIOR_ACCEPTANCE
        for at in range(self.reach):
            if at < len(self._rates):  # the fewer judgements, the more like the depth before
                known = self._judged[at]
                prior = PRIOR_WEIGHT * (1 - FADE * known)
                rate = (known * self._rates[at] + prior * rate) / (known + prior)
            reached *= rate
            expected.append(expected[-1] + reached)
        return expected

    def judge(self, judged: int, accepted: int) -> None:
        """The first ``judged`` depths were looked at, the first ``accepted`` of them accepted."""
        for at in range(judged):
            if at == len(self._rates):
                self._rates.append(0.0)
                self._judged.append(0)
                self._runs.append(0)
            self._learn(at, at < accepted)
        if accepted >= judged:  # what might have been looked at too, and was not, is known less and less
            self._judged[judged:] = [(1 - FADE) * known for known in self._judged[judged:]]
        self.expected = self._curve()

    def _learn(self, at: int, accepted: bool) -> None:
        run, rate = self._runs[at], self._rates[at]
        run = self._runs[at] = max(run, 0) + 1 if accepted else min(run, 0) - 1
        likelihood = min(max(rate if accepted else 1 - rate, 0.02), 0.98)
        if self._judged[at] > abs(run) and likelihood ** abs(run) < SURPRISE:
            # Another text: what was known of the last one is forgotten.
            self._rates[at], self._judged[at] = float(accepted), abs(run)
            return
        self._judged[at] = min(self._judged[at] + 1, 1 / FADE)
        self._rates[at] += (accepted - rate) / self._judged[at]


class Trust:
    """How what happens compares with what somebody said of themselves.

    Heads may be mistaken of their trees: shares of paths are multiplied as if depths knew nothing of each other, and
    what they were told of their candidates need not be what was scored. A draft model's probabilities are about the
    text, and the target need not doubt where they do: a copy of it in fewer bits agrees with it at any of them.

    Attributes:
        ratio: what happened over what was expected.
    """

    def __init__(self) -> None:
        self._expected = self._happened = TRUST
        self.ratio = 1.0

    def renew(self) -> None:
        """Another text: what was seen of the last ones weighs little, and is half as far from the word given."""
        self._expected, self._happened = TRUST, TRUST * (1 + self.ratio) / 2
        self.ratio = self._happened / self._expected

    def judge(self, expected: float, happened: int) -> None:
        """So much was expected, of tokens for example, and so much it was."""
        self._expected += expected - TRUST_FADE * self._expected
        self._happened += happened - TRUST_FADE * self._happened
        self.ratio = self._happened / self._expected


class Reach:
    """How far drafts of one source get that end where they become unlikely."""

    def __init__(self) -> None:
        self._kept: list[float] = []  # how often there was a token at depth 1, 2, ... where there was one before it
        self._judged: list[int] = []
        self.beside = 0.0  # nodes that came with them on the way

    def judge(self, asked: int, drafted: int, beside: int = 0) -> None:
        """A draft of ``asked`` tokens was asked for, and ended after ``drafted``, with other nodes beside them."""
        self.beside += FADE * (beside - self.beside)
        for at in range(min(asked, drafted + 1)):
            if at == len(self._kept):
                self._kept.append(1.0)
                self._judged.append(0)
            self._judged[at] = min(self._judged[at] + 1, round(1 / FADE))
            self._kept[at] += ((at < drafted) - self._kept[at]) / (self._judged[at] + 1)

    def tokens(self, depth: int) -> float:
        """Expected of a draft for which so many are asked."""
        return math.fsum(accumulate(self._shares(depth), operator.mul))

    def going(self, depth: int) -> list[float]:
        """How likely step 1, 2, ... is made for it: a draft ends after the step that finds out that it has to."""
        return list(accumulate((1.0, *self._shares(depth)[:-1]), operator.mul)) if depth else []

    def _shares(self, depth: int) -> list[float]:
        last = self._kept[-1] if self._kept else 1.0
        return [*self._kept[:depth], *[last] * (depth - len(self._kept))]
