"""Successive halving: many candidates on few prompts, then the faster half of them on more (arXiv 1502.07943).

Everything of a stage runs in turn, prompt by prompt, the base with it, and speeds are compared in pairs. Who comes out
fastest of many owes some of that to luck, so the last stage runs the finalists afresh, and only that is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from specstream.errors import reason_of
from specstream.evaluation.quality import Estimate, Values
from specstream.evaluation.statistics import speed_ratio

FINALISTS = 2
"""Candidates of the last stage, besides the base."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation.

    Attributes:
        tokens: how many.
        seconds: of decoding, the prompt not counted.
    """

    tokens: int
    seconds: float


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


Measure = Callable[[str, int], Run]
"""candidate, prompt -> a run of it; raises what is wrong with the candidate."""


def search(
    base: str,
    names: Sequence[str],
    prompts: int,
    measure: Measure,
    *,
    first: int = 2,
    repeats: int = 2,
    on_run: Callable[[str], None] | None = None,
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
        stage = _stage(base, left, range(count), measure, on_run)
        stages.append(stage)
        stay, count = _next_stage(len(left), count, prompts)
        left = stage.left[:stay]
    stage, sums = _stage_with_runs(base, left, [*range(prompts)] * repeats, measure, on_run)
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
    base: str, names: Sequence[str], order: Sequence[int], measure: Measure, on_run: Callable[[str], None] | None
) -> Stage:
    return _stage_with_runs(base, names, order, measure, on_run)[0]


def _stage_with_runs(
    base: str, names: Sequence[str], order: Sequence[int], measure: Measure, on_run: Callable[[str], None] | None
) -> tuple[Stage, dict[str, Values]]:
    """A stage, and tokens and seconds of every candidate and prompt, ``[prompts, 2]``."""
    sums: dict[str, Values] = {name: np.zeros((max(order) + 1, 2)) for name in (base, *names)}
    out: dict[str, str] = {}
    for turn, prompt in enumerate(order):
        running = [name for name in (base, *names) if name not in out]
        for place in range(len(running)):
            name = running[(place + turn) % len(running)]
            if on_run is not None:
                on_run(name)
            try:
                run = measure(name, prompt)
            except Exception as error:
                if name == base:
                    raise
                out[name] = reason_of(error)[:300]
            else:
                sums[name][prompt] += run.tokens, run.seconds
    ratios = {name: _speed(sums[name]) / _speed(sums[base]) for name in names if name not in out}
    left = sorted(ratios, key=ratios.__getitem__, reverse=True)
    return Stage(prompts=len(set(order)), ratios=ratios, left=left, out=out), sums


def _speed(runs: Values) -> float:
    tokens, seconds = runs.sum(0)
    return float(tokens / seconds)
