"""From samples to figures: of every arm, on all prompts and on those of each category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import eq
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specstream.evaluation.benchmark.folder import Place, RunFolder, Samples, place_of, plain_of
from specstream.evaluation.predicted import measured_over_predicted
from specstream.evaluation.statistics import plain_estimate, speed_ratio

Sample = Mapping[str, Any]
PERCENTILES = (50, 90, 99)

POSITIONS = 4
"""Drafted tokens of a pass whose acceptance ``side_of`` tells one by one."""

KEYS = ("experiment", "value", "arm", "arm_value")

COUNTED = {
    "tokens_per_second": "of decoding: the tokens of all passes over the seconds of all passes, drafting included",
    "prefill_tokens_per_second": "tokens of the prompts over the seconds before the first pass",
    "first_token_seconds": "median over generations: the prefill and the first pass",
    "inter_token_seconds": "percentiles over tokens: the seconds of the pass that a token came with, over the tokens "
    "that came with it; the first pass not counted",
    "arrival_seconds": "percentiles over passes but the first: how long a reader waits for the next piece of text; the "
    "tokens of a piece come together",
    "nodes": "drafted tokens that a pass scored, after any pruning",
    "mean_accepted_length": "tokens for each pass of the target and prompt, its own token included; plain is 1",
    "acceptance": "accepted at each depth, of those drafts that were judged there",
    "reach": "share of all passes that accepted at least so many drafted tokens",
    "speedup": "tokens_per_second over plain decoding's of the same experiment, prompts and repeats; 95 % interval by "
    "resampling prompts",
    "middle_speedup": "the median of the speedups of single generations",
    "total_speedup": "the same with the prefill on both sides",
    "theory": "the speedup that the measured acceptance at each depth, the median cost of a pass of each width and the "
    "median cost of drafting so deep would give",
    "efficiency": "speedup over theory",
    "measured_over_predicted": "the speed over that by passes timed alone (measure.predicted: true) and drafting",
    "peak_bytes": "the most memory of the process (of the allocator on a GPU), all that is loaded included",
    "grown_bytes": "of that, what was not there before the generation",
    "memory_overhead": "what drafting adds in memory over what the target takes: weights with their copies, KV caches",
    "joules_per_token": "of the processor's packages, all that runs on the machine included",
}
"""What the figures mean."""


def summarise(folder: RunFolder) -> dict[str, Any]:
    """Everything that a run says, as plain values.

    Args:
        folder: of the run; it may be unfinished.
    """
    arms = by_arm(folder)
    return {
        "provenance": folder.run["provenance"],
        "sessions": folder.run["sessions"],
        "left_out": folder.run["left_out"],
        "counted": COUNTED,
        "arms": arms_of(folder),
        "failures": [
            {key: sample[key] for key in (*KEYS, "item", "repeat", "error")}
            for samples in arms.values()
            for sample in sorted(samples, key=lambda each: (each["item"], each["repeat"]))
            if sample["error"] is not None
        ],
    }


def arms_of(folder: Samples) -> list[dict[str, Any]]:
    """The figures of every arm."""
    arms = by_arm(folder)
    return [_arm(place, samples, arms, folder) for place, samples in arms.items()]


def side_of(arm: Mapping[str, Any], category: str | None = None) -> dict[str, Any]:
    """The figures of an arm as ``benchmark heads`` and ``benchmark task`` write them, on one category or on all.

    ``acceptance`` is the share of passes in which the first, second, ... drafted token was accepted, where a pass that
    drafted nothing accepted nothing.
    """
    figures = arm["all"] if category is None else arm["categories"][category]
    return {
        "side": arm["arm"],
        "parameters": arm["facts"]["draft_parameters"],
        "mean_accepted_length": figures["mean_accepted_length"],
        "nodes": figures["nodes"],
        "acceptance": [*figures["reach"], *[0.0] * POSITIONS][:POSITIONS],
        "tokens_per_second": figures["tokens_per_second"],
        "ratio": figures["speedup"]["value"],
        "ratio_interval": figures["speedup"],
        "middle_ratio": figures["middle_speedup"],
        "equal": figures["equal"],
        "outputs": figures["compared"],
    }


def told(sample: Sample, samples: Samples) -> dict[str, Any]:
    """A sample as those commands write it; ``emitted`` are the tokens of every pass."""
    return {
        "side": sample["arm"],
        "emitted": [row[-1] for rows in sample["depths"] for row in rows],
        "drafted": sample["drafted"],
        "accepted": sample["accepted"],
        "seconds": sample["decode"],
        "total": sample["prefill"] + sample["decode"],
        "exact": sample["exact"],
        "equal": sample["tokens"] == samples.plain_of(sample)["tokens"],
    }


def by_arm(folder: Samples) -> dict[Place, list[Sample]]:
    """The samples of each arm, in the order in which arms were built."""
    arms: dict[Place, list[Sample]] = {place: [] for place in folder.arms}
    for sample in folder.samples:
        arms.setdefault(place_of(sample), []).append(sample)
    return {place: samples for place, samples in arms.items() if samples}


def amounts(samples: Iterable[Sample], *, prefill: bool = False) -> dict[str, tuple[float, float]]:
    """Tokens and seconds of what each generation started from, over its repeats."""
    found: dict[str, tuple[float, float]] = {}
    for each in samples:
        tokens, seconds = found.get(each["name"], (0.0, 0.0))
        extra = each["prefill"] if prefill else 0.0
        found[each["name"]] = (tokens + sum(map(len, each["tokens"])), seconds + each["decode"] + extra)
    return found


def paired(own: Sequence[Sample], base: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples of both that have one of the same item and repeat on the other side, and that did not fail."""
    sides = [{(each["item"], each["repeat"]): each for each in side if each["error"] is None} for side in (own, base)]
    both = [key for key in sides[0] if key in sides[1]]
    return [sides[0][key] for key in both], [sides[1][key] for key in both]


def _arm(
    place: Place, samples: Sequence[Sample], arms: Mapping[Place, Sequence[Sample]], folder: Samples
) -> dict[str, Any]:
    plain, facts = arms.get(plain_of(place), []), folder.arms.get(place, {})
    group = [sample for other, each in arms.items() if other[:2] == place[:2] for sample in each]
    costs, greedy = _pass_costs(group), facts.get("generation", {}).get("temperature") == 0
    categories = list(dict.fromkeys(sample["category"] for sample in samples))

    def figures(wanted: Callable[[Sample], bool]) -> dict[str, Any]:
        return _figures(list(filter(wanted, samples)), list(filter(wanted, plain)), costs, greedy)

    return {
        **{key: samples[0][key] for key in KEYS},
        "vary": folder.run.get("settings", {"experiments": {}})["experiments"].get(place[0], {}).get("vary"),
        "facts": {key: value for key, value in facts.items() if key not in ("kind", *KEYS)},
        "memory_overhead": facts.get("memory_overhead"),
        "all": figures(lambda _: True),
        "categories": {name: figures(lambda each, name=name: each["category"] == name) for name in categories},  # type: ignore[misc]
    }


def _figures(
    samples: Sequence[Sample], plain: Sequence[Sample], costs: Mapping[tuple[int, int], float], greedy: bool
) -> dict[str, Any]:
    good = [each for each in samples if each["error"] is None]
    outcome: dict[str, Any] = {"generations": len(samples), "failed": len(samples) - len(good)}
    if not good:
        return outcome
    own, base = paired(samples, plain)
    judged = [row for each in good for rows in each["depths"] for row in rows]
    tokens = sum(sum(map(len, each["tokens"])) for each in good)
    theory = _theory(good, costs) / _theory(base, costs) if base else None
    speedup = _speedup(own, base)
    joules = [each["joules"] for each in good]
    outcome |= {
        "prompts": len({each["item"] for each in good}),
        "tokens": tokens,
        "target_passes": sum(len(each["passes"]) for each in good),
        "tokens_per_second": tokens / sum(each["decode"] for each in good),
        "prefill_tokens_per_second": sum(each["prompt_tokens"] for each in good)
        / sum(each["prefill"] for each in good),
        "first_token_seconds": median(each["prefill"] + each["passes"][0][3] for each in good),
        **_latencies(good),
        "drafted": sum(each["drafted"] for each in good),
        "accepted": sum(each["accepted"] for each in good),
        "acceptance_rate": _share(sum(each["accepted"] for each in good), sum(each["drafted"] for each in good)),
        "nodes": sum(each["drafted"] for each in good) / len(judged),
        "mean_accepted_length": tokens / len(judged),
        **_positions(judged),
        "speedup": speedup,
        "middle_speedup": median(map(_ratio, own, base)) if own else None,
        "total_speedup": _speedup(own, base, prefill=True),
        "theory": theory,
        "efficiency": speedup["value"] / theory if speedup and theory else None,
        "measured_over_predicted": measured_over_predicted(good),
        "peak_bytes": _largest(each["peak_bytes"] for each in good),
        "grown_bytes": _largest(each["grown_bytes"] for each in good),
        "joules_per_token": None if None in joules else sum(joules) / tokens,
        "exact": sorted({each["exact"] for each in good}),
        "equal": sum(map(eq, _outputs(own), _outputs(base))) if greedy else None,
        "compared": len(_outputs(own)) if greedy else None,
    }
    return outcome


def _outputs(samples: Sequence[Sample]) -> list[list[int]]:
    """The tokens of every row of every generation."""
    return [row for each in samples for row in each["tokens"]]


def _ratio(own: Sample, base: Sample) -> float:
    """The speed of a generation over another's."""
    ours, theirs = (sum(map(len, each["tokens"])) / each["decode"] for each in (own, base))
    return float(ours / theirs)


def _speedup(own: Sequence[Sample], base: Sequence[Sample], *, prefill: bool = False) -> dict[str, Any] | None:
    ours, theirs = amounts(own, prefill=prefill), amounts(base, prefill=prefill)
    estimate = speed_ratio(as_array(ours.values()), as_array(theirs[name] for name in ours))
    return plain_estimate(estimate)


def as_array(rows: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
    """As ``statistics`` takes them, ``[prompts, 2]``."""
    return np.array(list(rows), np.float64).reshape(-1, 2)


def _latencies(samples: Sequence[Sample]) -> dict[str, Any]:
    waits: list[float] = []
    shares: list[float] = []
    for sample in samples:
        for (*_, seconds), rows in zip(sample["passes"][1:], sample["depths"][1:], strict=True):
            waits.append(seconds)
            for *_, emitted in rows:
                shares.extend([seconds / emitted] * emitted)
    return {"inter_token_seconds": _percentiles(shares), "arrival_seconds": _percentiles(waits)}


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(np.array(values), PERCENTILES)
    return {f"p{name}": float(value) for name, value in zip(PERCENTILES, found, strict=True)}


def _positions(rows: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    """Of each depth: how many drafts were judged there, the share of those that was accepted, and of all passes."""
    deepest = max(row[0] for row in rows)
    judged = [sum(row[1] >= depth for row in rows) for depth in range(1, deepest + 1)]
    accepted = [sum(row[2] >= depth for row in rows) for depth in range(1, deepest + 1)]
    return {
        "judged": judged,
        "acceptance": [_share(*each) for each in zip(accepted, judged, strict=True)],
        "reach": [each / len(rows) for each in accepted],
    }


def _pass_costs(samples: Sequence[Sample]) -> dict[tuple[int, int], float]:
    """Median seconds of scoring, by the rows of the batch that were left and the width of the pass."""
    measured: dict[tuple[int, int], list[float]] = defaultdict(list)
    for sample in samples:
        if sample["error"] is None:
            for (width, _, scoring, _), rows in zip(sample["passes"], sample["depths"], strict=True):
                measured[len(rows), width].append(scoring)
    return {shape: median(seconds) for shape, seconds in measured.items()}


def _theory(samples: Sequence[Sample], costs: Mapping[tuple[int, int], float]) -> float:
    """Tokens per second by the mean acceptance at each depth and median costs, in the passes that there were.

    This is Leviathan et al.'s (1 - a^(g+1)) / (1 - a) over g c + 1 (arXiv 2211.17192, theorem 3.8) with the acceptance
    and the cost that each depth and width were measured to have.
    """
    rounds = [(passed, rows) for each in samples for passed, rows in zip(each["passes"], each["depths"], strict=True)]
    proposing: dict[int, list[float]] = defaultdict(list)
    for (_, drafted, *_), rows in rounds:
        proposing[max(row[0] for row in rows)].append(drafted)
    drafting = {depth: median(seconds) for depth, seconds in proposing.items()}
    expected = [1.0]
    product = 1.0
    for share in _positions([row for _, rows in rounds for row in rows])["acceptance"]:
        product *= share
        expected.append(expected[-1] + product)
    tokens = spent = 0.0
    for (width, *_), rows in rounds:
        tokens += sum(expected[row[0]] for row in rows)
        spent += costs[len(rows), width] + drafting[max(row[0] for row in rows)]
    return tokens / spent


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
