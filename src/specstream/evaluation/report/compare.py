"""Two runs beside each other: whether the same arm is faster in one, by a test and an interval, not by eye.

Prompts are paired. Seconds of two runs hold the weather of both: so the speedups over each run's own plain decoding
are compared too, from which whatever slowed down all arms alike has gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specstream.engine.contestants import PLAIN
from specstream.evaluation.benchmark.folder import Place, RunFolder, place_of, plain_of
from specstream.evaluation.benchmark.summary import KEYS, amounts, as_array, by_arm, paired
from specstream.evaluation.quality import Estimate, Values
from specstream.evaluation.statistics import holm, ratio_of_ratios, sign_flips

SURE = 0.05
"""Below this p-value, corrected for the number of arms, a difference is seen."""

_WORK = ("generation", "batch", "context")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of an arm in two runs.

    Attributes:
        ratio: of the later run over the first, with its interval.
        probability: of so large a change by chance (sign flips over prompts, Holm's correction over arms).
    """

    ratio: Estimate
    probability: float

    @property
    def verdict(self) -> str:
        """In words."""
        if self.probability < SURE and self.ratio.low > 1:
            return "faster"
        if self.probability < SURE and self.ratio.high < 1:
            return "slower"
        return "no difference seen"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One arm in two runs.

    Attributes:
        arm: ``experiment``, ``value``, ``arm`` and ``arm_value``.
        prompts: that both have.
        speed: tokens per second.
        speedup: over plain decoding; None for plain decoding itself.
    """

    arm: Mapping[str, Any]
    prompts: int
    speed: Change
    speedup: Change | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs.

    Attributes:
        arms: that both have, on the same work.
        apart: what tells the runs apart: versions, the machine, work of another kind.
    """

    arms: list[Compared]
    apart: list[str]


def compare(first: RunFolder, later: RunFolder) -> Comparison:
    """A later run against a first."""
    sides = [by_arm(folder) for folder in (first, later)]
    apart = _apart(first, later)
    found: list[tuple[Place, tuple[Values, Values], tuple[Values, Values] | None]] = []
    for place in sides[0]:
        if place not in sides[1]:
            continue
        if _work(first, place) != _work(later, place):
            apart.append(f"{_called(place)}: other work ({_work(first, place)} and {_work(later, place)})")
            continue
        speeds = _matched([amounts(_good(side[place])) for side in sides])
        against = None if place[2] == PLAIN else [paired(side[place], side.get(plain_of(place), [])) for side in sides]
        both = _matched([amounts(each) for pair in against for each in pair]) if against else None
        if len(speeds[0]):
            found.append((place, (speeds[0], speeds[1]), _gains(both) if both and len(both[0]) else None))
    return Comparison(arms=_judged(found, first), apart=apart)


def _judged(
    found: Sequence[tuple[Place, tuple[Values, Values], tuple[Values, Values] | None]], first: RunFolder
) -> list[Compared]:
    speeds = _changes([each[1] for each in found])
    gains = iter(_changes([each[2] for each in found if each[2] is not None]))
    names = {place_of(sample): sample for sample in first.samples}
    return [
        Compared(
            arm={key: names[place][key] for key in KEYS},
            prompts=len(own[0]),
            speed=speed,
            speedup=next(gains) if gain is not None else None,
        )
        for (place, own, gain), speed in zip(found, speeds, strict=True)
    ]


def _changes(pairs: Sequence[tuple[Values, Values]]) -> list[Change]:
    """Of ``[prompts, 2]`` before and after: amounts whose ratio of sums is the figure."""
    probabilities = holm([sign_flips(_logs(after) - _logs(before)) for before, after in pairs])
    changes = []
    for (before, after), probability in zip(pairs, probabilities, strict=True):
        ratio = ratio_of_ratios([(after, before)])
        assert ratio is not None
        changes.append(Change(ratio=ratio, probability=probability))
    return changes


def _logs(amounts_: Values) -> Values:
    return np.asarray(np.log(amounts_[:, 0]) - np.log(amounts_[:, 1]))


def _gains(sides: Sequence[Values]) -> tuple[Values, Values]:
    """From arm and plain decoding of both runs: of every prompt the plain seconds and the arm's, for as many tokens."""
    own_before, plain_before, own_after, plain_after = sides
    before = np.stack([plain_before[:, 1] / plain_before[:, 0], own_before[:, 1] / own_before[:, 0]], 1)
    after = np.stack([plain_after[:, 1] / plain_after[:, 0], own_after[:, 1] / own_after[:, 0]], 1)
    return before, after


def _matched(sides: Sequence[Mapping[str, tuple[float, float]]]) -> list[Values]:
    """The amounts of the prompts that all sides have, in one order."""
    names = [name for name in sides[0] if all(name in side for side in sides)]
    return [as_array(side[name] for name in names) for side in sides]


def _good(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in samples if each["error"] is None]


def _work(folder: RunFolder, place: Place) -> dict[str, Any]:
    facts = folder.arms.get(place, {})
    return {key: facts.get(key) for key in _WORK}


def _called(place: Place) -> str:
    return f"{place[0]}, {place[2]}"


def _apart(first: RunFolder, later: RunFolder) -> list[str]:
    before, after = first.run["provenance"], later.run["provenance"]
    found = [f"{key}: {before.get(key)} and {after[key]}" for key in after if after[key] != before.get(key)]
    models = [folder.run["settings"]["target"]["model"] for folder in (first, later)]
    return found if models[0] == models[1] else [f"model: {models[0]} and {models[1]}", *found]
