"""What a router is worth on prompts that were measured with every drafter: beside each fixed one, and beside the best.

Tokens per second are of decoding, all prompts together; the router's own seconds are added to its side, to no other.
The oracle takes the best drafter of each prompt. Where prompts were measured more than once it is chosen by the other
runs and judged by the one left out, since the best of several noisy measurements of one thing is better than the thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from specstream.routing.config import NONE
from specstream.routing.records import Collected, Run

ROUTER, ORACLE = "router", "oracle"

LEAST_LEAD = 0.02
"""Of the oracle over the best fixed drafter, as a share: less is within the noise, and to close it means nothing."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One way to choose, on some prompts.

    Attributes:
        name: a drafter that is always taken, ``router`` or ``oracle``.
        tokens_per_second: of decoding, and of routing where the router did it.
        ratio: of that to plain decoding's.
        tokens_per_pass: of the target.
    """

    name: str
    tokens_per_second: float
    ratio: float
    tokens_per_pass: float


@dataclass(frozen=True, kw_only=True)
class RouterTable:
    """All ways to choose, on all prompts and on each kind of them.

    Attributes:
        all: of all prompts.
        domains: of each kind.
        chosen: how often the router took each drafter.
        best_single: the fixed drafter that turned out best here.
        regret: the share of the oracle's speed that the router lacks.
        gap_closed: of the oracle's lead over the best fixed drafter, the router's share; None for less than
            ``LEAST_LEAD``.
        lead: how much faster the oracle is than the best fixed drafter, as a share of that.
        agreement: the share of prompts on which the router took what the oracle takes.
        routing_seconds: of the router for a prompt, on average.
        prompts: how many.
        runs: of each drafter on a prompt, at least.
    """

    all: list[Figures]
    domains: dict[str, list[Figures]]
    chosen: dict[str, int]
    best_single: str
    regret: float
    gap_closed: float | None
    lead: float
    agreement: float
    routing_seconds: float
    prompts: int
    runs: int


def router_table(collected: Sequence[Collected], chosen: Sequence[str], seconds: Sequence[float]) -> RouterTable:
    """The table of a router on prompts that were measured, by its drafter for each and the seconds of each choice."""
    routed = list(zip(collected, chosen, seconds, strict=True))
    every = _figures(routed)
    fixed = {each.name: each.tokens_per_second for each in every if each.name not in (ROUTER, ORACLE)}
    best_single = max(fixed, key=lambda name: fixed[name])
    router, oracle = (next(each.tokens_per_second for each in every if each.name == name) for name in (ROUTER, ORACLE))
    lead = oracle / fixed[best_single] - 1
    domains = list(dict.fromkeys(each.domain for each in collected))
    return RouterTable(
        all=every,
        domains={domain: _figures([row for row in routed if row[0].domain == domain]) for domain in domains},
        chosen={name: list(chosen).count(name) for name in fixed},
        best_single=best_single,
        regret=1 - router / oracle,
        gap_closed=(router / fixed[best_single] - 1) / lead if lead >= LEAST_LEAD else None,
        lead=lead,
        agreement=mean(name == best_of(each.runs) for each, name, _ in routed),
        routing_seconds=mean(seconds),
        prompts=len(collected),
        runs=min(len(own) for each in collected for own in each.runs.values()),
    )


def best_of(runs: Mapping[str, Sequence[Run]]) -> str:
    """The fastest drafter of a prompt."""
    return max(runs, key=lambda name: speed(runs[name]))


def speed(runs: Sequence[Run]) -> float:
    """Tokens per second of some runs together."""
    return sum(run.tokens for run in runs) / sum(run.seconds for run in runs)


def _figures(routed: Sequence[tuple[Collected, str, float]]) -> list[Figures]:
    """Of prompts, the router's drafter for each, and the seconds that its choice took."""
    names = sorted(routed[0][0].runs, key=lambda name: name != NONE)
    sides = {name: [(each.runs[name], 0.0) for each, _, _ in routed] for name in names}
    sides[ROUTER] = [(each.runs[name], spent) for each, name, spent in routed]
    sides[ORACLE] = [(_oracle(each.runs), 0.0) for each, _, _ in routed]
    plain = _speed(sides[NONE])
    return [
        Figures(
            name=name,
            tokens_per_second=_speed(side),
            ratio=_speed(side) / plain,
            tokens_per_pass=_mean_of(side, "tokens") / _mean_of(side, "passes"),
        )
        for name, side in sides.items()
    ]


def _oracle(runs: Mapping[str, Sequence[Run]]) -> list[Run]:
    """The best drafter's runs; each, if there are several, of the one that was best in the others."""
    count = min(map(len, runs.values()))
    if count < 2:
        return list(runs[best_of(runs)])
    return [
        runs[best_of({name: [*own[:left], *own[left + 1 : count]] for name, own in runs.items()})][left]
        for left in range(count)
    ]


def _speed(side: Sequence[tuple[Sequence[Run], float]]) -> float:
    """Each prompt counts once, with the mean of its runs."""
    return _mean_of(side, "tokens") / (_mean_of(side, "seconds") + sum(spent for _, spent in side))


def _mean_of(side: Sequence[tuple[Sequence[Run], float]], what: str) -> float:
    return float(sum(mean(getattr(run, what) for run in runs) for runs, _ in side))
