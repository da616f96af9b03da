"""`specstream profile` on a tiny model: from a configuration and from options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specstream.cli import main
from specstream.evaluation.benchmark.config import read_config
from specstream.evaluation.benchmark.experiments import make_plan
from tests.tiny import tiny_model, tiny_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("profile")
    tiny_model().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    (root / "prompts.jsonl").write_text('{"prompt": "the cat sat on"}\n{"prompt": "one two three"}\n', encoding="utf-8")
    (root / "config.yaml").write_text(
        f"target: {{model: {root / 'model'}, dtype: float32}}\n"
        "models: {draft: }\n"
        f"prompts: {{files: [{{path: {root / 'prompts.jsonl'}}}]}}\n"
        "generation: {max_new_tokens: 8}\n"
        f"measure: {{output_dir: {root / 'runs'}}}\n"
        "experiments:\n"
        "  first:\n"
        "    arms:\n"
        "      lookup: {drafter: lookup}\n"
        "      drafted: {drafter: draft_model, draft_model: draft}\n",
        encoding="utf-8",
    )
    return root


@pytest.fixture
def run(capsys, monkeypatch):
    # A large buffer is read to see how fast memory is, which is not what is tested.
    monkeypatch.setattr("specstream.evaluation.bottleneck.BUFFER", 1 << 20)

    def command(*words):
        with pytest.raises(SystemExit) as exit_:
            main(["profile", *words])
        return exit_.value.code, *capsys.readouterr()

    return command


def test_a_configuration_is_profiled_arm_by_arm(run, folder, tmp_path):
    code, out, _ = run("--config", str(folder / "config.yaml"), "--num-samples", "1", "--output-dir", str(tmp_path))
    assert code == 0
    for words in (
        "plain",
        "lookup",
        "target pass",
        "other",
        "plain is bound by",
        "lookup is bound by",
        "the instrument",
    ):
        assert words in out
    record = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    assert set(record["arms"]) == {"plain", "lookup"}, "an arm without its draft is left out"
    plain = record["arms"]["plain"]
    assert (plain["prompts"], plain["rounds"], plain["tokens"]) == (1, plain["tokens"], len(plain["per_round"]))
    assert sum(each["share"] for each in plain["parts"].values()) == pytest.approx(1)
    assert record["memory"]["bytes_per_second"] > 0
    trace = json.loads((tmp_path / "trace-lookup.json").read_text(encoding="utf-8"))
    assert trace["traceEvents"]


def test_options_do_as_well_as_a_file(run, folder, tmp_path):
    files = ["--model", str(folder / "model"), "--prompts", str(folder / "prompts.jsonl"), "-o", str(tmp_path)]
    code, out, _ = run(*files, "--drafter", "draft_model", "--draft", str(folder / "model"), "-n", "6", "--json")
    record = json.loads(out)
    assert code == 0
    assert set(record["arms"]) == {"plain", "draft_model"}
    assert record["arms"]["draft_model"]["parts"]["draft"]["seconds"] > 0
    assert record["arms"]["draft_model"]["prompts"] == 2


def test_the_configuration_that_comes_along_is_one_of_both_commands():
    config, document = read_config(CONFIGS / "benchmark_profile.yaml")
    (group,) = make_plan(config, document).groups
    assert [arm.name for arm in group.arms] == ["plain", "auto", "lookup"], "there is no draft in it"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "x.yaml", "--model", "y"], "--config and --model were given; give one, or --set"),
        (["--set", "a.b=c"], "--set is 'a.b=c' and there is no --config"),
        (["--drafter", "best"], "drafter is 'best'"),
        (["--prompts", "nowhere.jsonl"], "prompts 'nowhere.jsonl' cannot be read"),
        (["--config", "nowhere.yaml"], "config 'nowhere.yaml' cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(run, monkeypatch, words, message):
    monkeypatch.setattr("specstream.cli.profile.load_engine", None)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
