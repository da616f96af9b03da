"""A key that stands in the wrong section of a configuration file is told where it belongs, in every such file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from specstream import DeploymentConfig
from specstream.engine.settings_file import read_settings
from specstream.errors import UsageError
from specstream.evaluation.benchmark.config import read_config as read_benchmark
from specstream.evaluation.benchmark.experiments import make_plan
from specstream.evaluation.evaluate_config import read_config as read_evaluation
from specstream.evaluation.tasks.task import read_task
from specstream.routing.config import router_config
from specstream.training.config import read_config as read_training
from specstream.training.router_config import read_collect_config, read_router_config

CONFIGS = Path(__file__).parents[2] / "configs"


def plan(path):
    return make_plan(*read_benchmark(path))


def put(values, place, value):
    *sections, key = place.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[key] = value


CASES = [
    ("base.yaml", read_training, "data.num_train_steps", 5, "in section 'data': it belongs in section 'training'"),
    ("base.yaml", read_training, "num_train_steps", 5, "at the top of the file: it belongs in section 'training'"),
    ("base.yaml", read_training, "training.recipe", "lora", "'training': it belongs at the top of the file"),
    ("base.yaml", read_training, "training.lora", {"r": 4}, "'training': it belongs at the top of the file"),
    ("base.yaml", read_training, "data.plot", True, "in section 'data': it belongs in section 'logging'"),
    ("train_code.yaml", read_training, "model.alpha", 4, "it belongs in section 'lora' or 'streams'"),
    ("benchmark_smoke.yaml", plan, "target.repeats", 5, "'target': it belongs in section 'measure'"),
    ("benchmark_smoke.yaml", plan, "drafter", "lookup", "top of the file: .*'experiments.NAME.arms.NAME'"),
    ("benchmark_smoke.yaml", plan, "experiments.methods.gamma", 3, "'experiments.methods': it belongs in section"),
    ("benchmark_smoke.yaml", plan, "experiments.methods.arms.lookup.dtype", "auto", "belongs in section 'target'"),
    (
        "eval_full.yaml",
        read_evaluation,
        "speculative.output_dir",
        "x",
        "'speculative': it belongs in section 'measure'",
    ),
    ("eval_full.yaml", read_evaluation, "target.drafter", "lookup", "'target': it belongs in section 'speculative'"),
    ("eval_full.yaml", read_evaluation, "limit", 3, "it belongs in section 'datasets.NAME'"),
    ("router_example.yaml", read_collect_config, "target.max_new_tokens", 3, "it belongs in section 'collection'"),
    ("router_example.yaml", read_collect_config, "collection.heads", "x", "it belongs in section 'drafters.NAME'"),
    ("router_train.yaml", read_router_config, "fit.held_out", 0.2, "in section 'fit': it belongs in section 'data'"),
    ("router_train.yaml", read_router_config, "fit.output_dir", "x", "'fit': it belongs at the top of the file"),
    ("deploy.yaml", DeploymentConfig.read, "server", {"port": 80}, "this file has no sections; give the keys"),
]


@pytest.mark.parametrize(
    ("file", "read", "place", "value", "message"), CASES, ids=[f"{a} {c}" for a, _, c, *_ in CASES]
)
def test_a_key_in_the_wrong_section(tmp_path, file, read, place, value, message):
    values = yaml.safe_load((CONFIGS / file).read_text(encoding="utf-8"))
    put(values, place, value)
    path = tmp_path / file
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"unknown (key|section) '{place.rpartition('.')[2]}'.*{message}"):
        read(str(path))


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_settings, "model: gpt2\ngeneration:\n  temperature: 1\n", r"a.yaml:2: unknown section 'generation'"),
        (router_config, "router: x\nlearning: {explore: 0}\n", r"a.yaml:2: unknown section 'learning'"),
        (
            read_collect_config,
            "drafters: {none: {drafter: none}}\nprompts: [{file: a, domain: b}]\noutput: x\n",
            r"a.yaml:3: unknown key 'output' at the top of the file: it belongs in section 'collection'",
        ),
        (
            lambda path: read_task(str(path)),
            "prompt: '{a}'\nparse: {field: a}\nmetrics: [bleu]\nsplit: test\n",
            "unknown key 'split' at the top of the file: it belongs in section 'dataset'",
        ),
    ],
)
def test_the_line_is_named_and_what_is_missing_comes_after_it(tmp_path, read, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read(path)


def test_the_right_sections_are_silent():
    """What the tests above change is accepted before."""
    for file, read, *_ in CASES:
        read(str(CONFIGS / file))
