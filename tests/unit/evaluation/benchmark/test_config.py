from __future__ import annotations

from pathlib import Path

import pytest

from specstream.engine.contestants import PLAIN
from specstream.errors import UsageError
from specstream.evaluation.benchmark.config import read_config
from specstream.evaluation.benchmark.experiments import make_plan
from specstream.evaluation.benchmark.prompts import read_prompts

CONFIGS = Path(__file__).parents[4] / "configs"

EXPERIMENTS = [
    "baseline",
    "generic_draft",
    "specialized_drafts",
    "adaptive_routing",
    "methods",
    "ablation_K",
    "ablation_gamma",
    "ablation_temperature",
    "ablation_batch",
    "ablation_context",
]


def test_the_whole_benchmark_runs_with_what_everybody_has():
    config, document = read_config(CONFIGS / "benchmark.yaml")
    assert list(config.experiments) == EXPERIMENTS
    plan = make_plan(config, document)
    assert sorted(plan.left_out) == [
        "adaptive_routing, router",
        "methods, medusa",
        "specialized_drafts, chat",
        "specialized_drafts, code",
        "specialized_drafts, general",
    ]
    assert {group.experiment for group in plan.groups} == {*EXPERIMENTS} - {"specialized_drafts", "adaptive_routing"}
    assert all(group.arms[0].name == PLAIN for group in plan.groups)
    (depths,) = [group for group in plan.groups if group.experiment == "ablation_K"]
    assert [(arm.value, arm.config.max_speculation_depth) for arm in depths.arms] == [
        (None, None),
        (3, 3),
        (5, 5),
        (7, 7),
    ]
    hot = [group for group in plan.groups if group.experiment == "ablation_temperature"]
    assert [group.generation.temperature for group in hot] == [0.0, 0.5, 1.0]
    assert [group.context for group in plan.groups if group.experiment == "ablation_context"] == [128, 512, 1536]
    assert len(read_prompts(config.prompts, document)) == 18


def test_the_smoke_is_small_and_only_some_experiments_may_be_chosen():
    config, document = read_config(CONFIGS / "benchmark_smoke.yaml", ["measure.warmup=0"], ["methods"])
    plan = make_plan(config, document)
    assert [group.experiment for group in plan.groups] == ["methods"]
    assert plan.left_out == {}
    assert config.measure.warmup == 0
    assert len(read_prompts(config.prompts, document)) == 6


def test_a_key_of_the_work_does_not_go_into_an_arm():
    config, document = read_config(
        CONFIGS / "benchmark_smoke.yaml", ["experiments.methods.arms.lookup={drafter: lookup, temperature: 1.0}"]
    )
    with pytest.raises(
        UsageError,
        match=r"it belongs in section .generation.; what changes the work goes",
    ):
        make_plan(config, document)
