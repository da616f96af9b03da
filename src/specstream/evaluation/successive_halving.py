"""Successive halving: many candidates on few prompts, then the faster half of them on more (arXiv 1502.07943).

The candidates of a stage and the base run in turn (``contestants.py``), and speeds are compared in pairs. Who comes out
fastest of many owes some of that to luck, so the last stage runs the finalists afresh, and only that is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from specstream.engine.contestants import in_turn
from specstream.errors import reason_of
from specstream.evaluation.quality import Estimate, Values
from specstream.evaluation.statistics import speed_ratio

FINALISTS = 2
"""Candidates of the last stage, besides the base."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage found.

    Attributes:
        prompts: how many every candidate ran on.
        ratios: of each candidate's speed to the base's.
        left: candidates that go on, the fastest first.
        out: candidates that cannot, and why.
    """

    prompts: int
    ratios: dict[str, float]
    left: list[str]
    out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Found:
    """How the search ended.

    Attributes:
        best: the fastest candidate; None if none could run.
        ratio: of its speed to the base's, from the last stage alone.
        stages: all of them.
    """

    best: str | None
    ratio: Estimate | None
    stages: tuple[Stage, ...]

    @property
    def pays(self) -> bool:
        """Whether the best is surely faster than the base."""
        return self.ratio is not None and self.ratio.low > 1


Measure = Callable[[str, int], tuple[int, float]]
"""candidate, prompt -> tokens of a run of it, and seconds of its decoding; raises what is wrong with the candidate."""


def search(
    base: str,
    names: Sequence[str],
    prompts: int,
    measure: Measure,
    *,
    first: int = 2,
    repeats: int = 2,
    on_run: Callable[[str], None] = lambda name: None,
) -> Found:
    """Find the fastest candidate.

    Args:
        base: what all of them are compared with; never out.
        names: of the candidates.
        prompts: how many there are.
        measure: runs a candidate on a prompt.
        first: prompts of the first stage; every further one has twice as many.
        repeats: of the last stage, which has all prompts.
        on_run: called with the candidate's name before each run.
    """
    stages: list[Stage] = []
    left, count = list(names), min(first, prompts)
    while len(left) > FINALISTS:
        stage, _ = _stage(base, left, count, measure, 1, on_run)
        stages.append(stage)
        stay, count = _next_stage(len(left), count, prompts)
        left = stage.left[:stay]
    stage, sums = _stage(base, left, prompts, measure, repeats, on_run)
    stages.append(stage)
    if not stage.left:
        return Found(best=None, ratio=None, stages=tuple(stages))
    best = stage.left[0]
    return Found(best=best, ratio=speed_ratio(sums[best], sums[base]), stages=tuple(stages))


def runs_of(candidates: int, prompts: int, *, first: int = 2, repeats: int = 2) -> int:
    """How many runs a search among so many candidates takes, the base's among them, if all can run."""
    runs, count = 0, min(first, prompts)
    while candidates > FINALISTS:
        runs += (candidates + 1) * count
        candidates, count = _next_stage(candidates, count, prompts)
    return runs + (candidates + 1) * prompts * repeats if candidates else runs


def _next_stage(candidates: int, count: int, prompts: int) -> tuple[int, int]:
    """How many of so many candidates go on, and on how many of the prompts they run."""
    return max(FINALISTS, (candidates + 1) // 2), min(2 * count, prompts)


def _stage(
    base: str,
    names: Sequence[str],
    prompts: int,
    measure: Measure,
    rounds: int,
    on_run: Callable[[str], None],
) -> tuple[Stage, dict[str, Values]]:
    """A stage, and tokens and seconds of every candidate and prompt, ``[prompts, 2]``."""
    sums: dict[str, Values] = {name: np.zeros((prompts, 2)) for name in (base, *names)}
    out: dict[str, str] = {}
    ways = {name: partial(measure, name) for name in sums}
    for entry in in_turn(ways, range(prompts), rounds=rounds, warm_up=0, errors="leave", on_run=on_run):
        if entry.error is None or entry.contestant == base:
            sums[entry.contestant][entry.prompt] += entry.value
        else:
            out[entry.contestant] = reason_of(entry.error)[:300]
    ratios = {name: _speed(sums[name]) / _speed(sums[base]) for name in names if name not in out}
    left = sorted(ratios, key=ratios.__getitem__, reverse=True)
    return Stage(prompts=prompts, ratios=ratios, left=left, out=out), sums


def _speed(runs: Values) -> float:
    tokens, seconds = runs.sum(0)
    return float(tokens / seconds)
