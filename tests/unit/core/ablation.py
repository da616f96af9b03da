"""What each constant of the policy gains on simulated machines: run from the root of a checkout.

    python -m tests.unit.core.ablation [NAME ..]

Every scenario is a machine with given costs and a text with given acceptance (``machine.py``); its figure
is the speed over plain decoding. A constant is changed, each scenario runs again with the same seeds, and a table says
by how much the geometric mean over all scenarios and the slowest scenario change, in percent: positive where the
constant as it is does better.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from specstream.core.policy import acceptance, controller, cost_model, plan
from specstream.core.policy.controller import Controller
from specstream.core.policy.prices import PriceList
from tests.unit.core.machine import Machine

SEEDS = 3
"""Runs of a scenario."""

TOKENS, TEXTS = 200, 4
"""Tokens of a row in a text, and texts one after the other."""

NEVER = 10**9

SHORT_TOKENS = 48
SHORT = (
    ((0.0,) * 4,),
    ((0.9,) * 4, (0.0,) * 4),
    ((0.9, 0.9, 0.9, 0.0), (0.3,) * 4),
    ((0.9, 0.7, 0.5, 0.3), (0.0,) * 4),
    ((0.9, 0.0, 0.0, 0.0), (0.9, 0.9, 0.9, 0.0)),
)
"""Short texts of four rows, one kind after the other: how often what is copied for each row is right."""

CHANGES: dict[str, tuple[Any, Sequence[Any]]] = {
    "FADE": (acceptance, (0.02, 0.1)),
    "PRIOR_ACCEPTANCE": (acceptance, (0.5, 0.95)),
    "PRIOR_WEIGHT": (acceptance, (0.5, 8)),
    "SURPRISE": (acceptance, (0.0,)),
    "CALIBRATION_WEIGHT": (acceptance, (1.0, 16.0)),
    "CALIBRATION_FADE": (acceptance, (1 / 16, 1 / 256)),
    "NODE_SHARE": (cost_model, (0.0, 0.2)),
    "STEP_SHARE": (cost_model, (0.02, 0.4)),
    "READ_SHARE": (cost_model, (0.0, 0.4)),
    "NEWEST": (cost_model, (3, 27)),
    "VOTES": (cost_model, (0, 6)),
    "PACE": (cost_model, (1, 9)),
    "LIFETIME": (cost_model, (32, NEVER)),
    "UNLIKELY": (plan, (0.0, 1.0)),
    "SURE": (plan, (0.7, 1.0)),
    "BESIDE": (plan, (0,)),
    "SPARE": (plan, (1, 4)),
    "CHANCE": (plan, (0.25, 2.0)),
    "DEPTHS": (plan, (tuple(range(1, 33)), (1, 4, 16))),
    "BUDGET": (controller, (1.0, 10.0, NEVER)),
    "REFILL": (controller, (0.0, 0.005, 0.03)),
    "BUDGET_OF_A_TEXT": (controller, (0.5, 1.5, 3.0)),
    "TRIAL_AFTER": (controller, (4, 64)),
    "LONGEST_WAIT": (controller, (16, 1024)),
    "PLAIN_AFTER": (controller, (32, NEVER)),
    "LONGEST_PAUSE": (controller, (1, 4, 128)),
    "GAIN_FADE": (controller, (1 / 8, 1 / 512)),
    "GAIN_OF_A_TEXT": (controller, (0.0, 0.2, NEVER)),
    "AGREES": (controller, (0.05, NEVER)),
}
"""Where each constant stands, and what it is changed to."""

DECIDING = 0.02
"""Plain passes that offering and choosing take."""

SMALL = {"base": 12.0, "node": (0.0, 0.6), "free": 8, "step": 1.8}
"""Milliseconds of SmolLM2 with streams: a pass of one node, of further ones up to ``free`` and beyond it, a step."""

AVX2 = {"base": 18.0, "node": (2.5, 2.5), "free": 8, "step": 2.5}
"""Of SmolLM2 where two processors with AVX2 are busy with the arithmetic of few nodes."""

PAIR = {"base": 60.0, "node": (1.0, 3.0), "free": 8, "step": 20.0}
"""Of a model of 1.5B with a draft of 0.5B."""


def scenarios() -> Iterator[tuple[str, Callable[[int], float]]]:
    """By name, what runs each with a seed."""
    for name, costs in (("small", SMALL), ("pair", PAIR)):
        for listed in (True, False):
            for rows in (1, 4):
                for rates in ((0.0,), (0.5,), (0.85,), (0.85, 0.0)):
                    kind = {"costs": costs, "listed": listed, "rows": rows}
                    label = f"{name}, {rows} rows, {'list' if listed else 'no list'}, {rates}"
                    yield f"{label}, draft", _case(**kind, models=rates)
                    yield f"{label}, lookup", _case(**kind, lookups=rates)
            for rates in ((0.85, 0.0, 0.0, 0.0), (0.85, 0.85, 0.5, 0.3)):
                label = f"{name}, {'list' if listed else 'no list'}, rows of {rates}"
                yield label, _case(costs=costs, listed=listed, rows=4, apart=(rates,))
        yield f"{name}, sure drafts", _case(costs=costs, sure=0.8, models=(0.0,))
        for noise in ("noisy", "spells"):
            yield f"{name}, {noise}", _case(costs=costs, models=(0.7,), lookups=(0.5,), noise=noise)

    for texts in SHORT:
        yield (
            f"avx2, texts of {SHORT_TOKENS} tokens, rows of {texts}",
            _case(costs=AVX2, rows=4, apart=texts, length=SHORT_TOKENS),
        )


def _case(  # noqa: PLR0913
    *,
    costs: dict[str, Any],
    rows: int = 1,
    listed: bool = True,
    models: Sequence[float] = (),
    lookups: Sequence[float] = (),
    apart: Sequence[Sequence[float]] = (),
    length: int = TOKENS,
    sure: float | None = None,
    noise: str = "",
) -> Callable[[int], float]:
    def price(nodes: float) -> float:
        near, far = costs["node"]
        return float(costs["base"] + near * min(nodes, costs["free"]) + far * max(0.0, nodes - costs["free"]))

    def run(seed: int) -> float:
        machine = Machine(price, step=costs["step"], read=costs["step"] / 10, rows=rows, depth=8, seed=seed)
        machine.ragged, machine.sure, machine.deciding = True, sure, DECIDING * price(rows)
        machine.noisy = noise == "noisy"
        machine.spells = (6, 20) if noise == "spells" else None
        prices = PriceList()
        if listed:
            passes = {(each, nodes, 64): price(nodes) for each in (1, rows) for nodes in _sizes(each)}
            drafts = {(each, depth): costs["step"] * depth for each in (1, rows) for depth in (1, 4)}
            prices = PriceList(passes, {"model": drafts})
        policy = Controller(prices)
        for text in range(TEXTS):
            policy.renew(rows)
            if apart:
                machine.lookup = [(0.9, rate) for rate in apart[text % len(apart)]]
                machine.run_apart(policy, length)
                continue
            machine.begin()
            machine.model = models[text % len(models)] if models else None
            machine.lookup = (0.5, lookups[text % len(lookups)]) if lookups else None
            machine.run(policy, length)
        tokens = TEXTS * length if apart else machine.tokens / rows
        return tokens * price(rows) / machine.seconds

    return run


def _sizes(rows: int) -> list[int]:
    return [rows * each for each in (1, 2, 4, 8, 16)]


def speeds() -> dict[str, float]:
    """Of every scenario, the geometric mean over seeds."""
    return {name: math.exp(sum(math.log(run(seed)) for seed in range(SEEDS)) / SEEDS) for name, run in scenarios()}


def table(names: Sequence[str]) -> Iterator[str]:
    """Its lines."""
    base = speeds()
    yield f"{len(base)} scenarios: mean {_mean(base):.4f}, slowest {min(base.values()):.4f}"
    yield f"{'constant':<20} {'is':>10} {'tried':>10} {'mean %':>8} {'slowest %':>10}  most changed"
    for name in names or CHANGES:
        module, tried = CHANGES[name]
        kept = getattr(module, name)
        for value in tried:
            setattr(module, name, value)
            found = speeds()
            setattr(module, name, kept)
            changed = {each: abs(math.log(base[each] / found[each])) for each in base}
            most = max(changed, key=changed.__getitem__)
            mean, slowest = _mean(base) / _mean(found) - 1, min(base.values()) / min(found.values()) - 1
            yield (
                f"{name:<20} {_short(kept):>10} {_short(value):>10} {100 * mean:>8.2f} {100 * slowest:>10.2f}  "
                f"{most}: {base[most]:.3f} to {found[most]:.3f}"
            )


def _mean(figures: dict[str, float]) -> float:
    return math.exp(sum(map(math.log, figures.values())) / len(figures))


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float | int) else str(value)
    return text if len(text) <= 10 else f"{text[:7]}..."


if __name__ == "__main__":
    for line in table(sys.argv[1:]):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
