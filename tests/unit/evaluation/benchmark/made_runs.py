"""Runs without a model: samples by chance, of arms whose figures are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specstream.evaluation.benchmark.folder import RunFolder

CATEGORIES = ("chat", "code", "summary", "translation", "maths", "extraction")


@dataclass(frozen=True)
class Made:
    """An arm: how deep it drafts, how often a draft is accepted, seconds of drafting one token."""

    experiment: str
    arm: str
    depth: int = 0
    chance: float = 0.0
    step: float = 0.0
    value: Any = None
    arm_value: Any = None


METHODS = tuple(
    Made("methods", *each)
    for each in (
        ("plain",),
        ("auto", 4, 0.6, 0.001),
        ("lookup", 3, 0.3, 0.0),
        ("lookahead", 3, 0.25, 0.001),
        ("streams", 3, 0.5, 0.002),
        ("medusa", 4, 0.4, 0.004),
        ("draft_model", 4, 0.8, 0.02),
        ("mixed", 4, 0.75, 0.012),
    )
)
ABLATIONS = (
    Made("ablation_K", "plain"),
    *(Made("ablation_K", "draft_model", depth, 0.8, 0.02, arm_value=depth) for depth in (3, 5, 7)),
    *(Made("ablation_temperature", "plain", value=value) for value in (0.0, 0.5, 1.0)),
    *(Made("ablation_temperature", "auto", 4, 0.6 - value / 5, 0.001, value=value) for value in (0.0, 0.5, 1.0)),
    *(Made("ablation_temperature", "lookup", 3, 0.3 - value / 5, 0.0, value=value) for value in (0.0, 0.5, 1.0)),
)


def make_run(
    root: Path, arms: Sequence[Made] = METHODS, *, prompts: int = 18, repeats: int = 2, slow: float = 1.0, seed: int = 0
) -> RunFolder:
    """A run in a folder; ``slow`` times the seconds of every arm but plain decoding."""
    folder = RunFolder(root)
    categories = [CATEGORIES[index * len(CATEGORIES) // prompts] for index in range(prompts)]
    facts = {
        "prompts": [{"category": each, "text": str(index), "chat": None} for index, each in enumerate(categories)],
        "left_out": {"specialized_drafts, code": "models.code_draft is null; give it to have this arm"},
    }
    experiments = {
        "methods": {"about": "Which way is worth most?"},
        "ablation_K": {"vary": "max_speculation_depth"},
        "ablation_temperature": {"vary": "temperature"},
    }
    settings = {"target": {"model": "tiny"}, "experiments": experiments}
    folder.begin(settings, {"cpu": "a processor", "threads": 2, "dtype": "bfloat16"}, facts)
    chance = np.random.default_rng(seed)
    for made in arms:
        place = {"experiment": made.experiment, "value": made.value, "arm": made.arm, "arm_value": made.arm_value}
        temperature = made.value if made.experiment == "ablation_temperature" else 0.0
        about = {"cpu": "a processor", "threads": 2, "dtype": "bfloat16", "runtime": "native"}
        weights = {"weights_bytes": 1000, "draft_bytes": int(made.step * 10_000), "memory_overhead": made.step * 10}
        work = {"generation": {"temperature": temperature}, "batch": 1, "context": None}
        folder.append({"kind": "arm", **place, **weights, **work, "provenance": about})
        for item in range(prompts):
            for repeat in range(repeats):
                about = {"item": item, "repeat": repeat, "name": f"prompt {item}", "category": categories[item]}
                sample = reading(made, chance, slow if made.arm != "plain" else 1.0)
                folder.append({"kind": "sample", **place, **about, "session": 0, **sample})
    return folder


def reading(made: Made, chance: np.random.Generator, slow: float, tokens: int = 64) -> dict[str, Any]:
    passes, depths = [], []
    emitted = drafted = accepted = 0
    while emitted < tokens:
        depth = min(made.depth, tokens - emitted - 1)
        matched = next((at for at in range(depth) if chance.random() > made.chance), depth)
        scoring = 0.03 * (1 + 0.02 * depth) * chance.lognormal(0, 0.05) * slow
        proposing = made.step * depth * slow
        passes.append((depth + 1, proposing, scoring, proposing + scoring * 1.05))
        depths.append([(depth, min(depth, matched + 1), matched, matched + 1)])
        emitted, drafted, accepted = emitted + matched + 1, drafted + depth, accepted + matched
    return {
        "tokens": [list(range(emitted))],
        "prompt_tokens": 30,
        "drafted": drafted,
        "accepted": accepted,
        "rejected": drafted - accepted,
        "prefill": 0.1,
        "decode": sum(each[3] for each in passes),
        "passes": passes,
        "depths": depths,
        "exact": "bits",
        "peak_bytes": 700 * 2**20,
        "grown_bytes": 3 * 2**20,
        "joules": None,
        "error": None,
    }
