"""`specstream benchmark` and `specstream report` on tiny models: measured, interrupted, gone on with, compared."""

from __future__ import annotations

import json
import re

import pytest
import torch

import specstream.engine.engine
from specstream.cli import main
from specstream.evaluation.benchmark import run as bench
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from tests.tiny import tiny_model, tiny_tokenizer

CONFIG = """\
target: {{model: {root}/model, dtype: float32}}
models:
  draft: {root}/draft
  medusa: null
prompts:
  files: [{{path: {root}/prompts.jsonl}}]
  chat: false
generation: {{max_new_tokens: 12}}
measure:
  repeats: 2
  output_dir: {root}/run
experiments:
  baseline: {{}}
  methods:
    arms:
      lookup: {{drafter: lookup, adaptive: false, max_speculation_depth: 3}}
      draft: {{drafter: draft_model, draft_model: draft, adaptive: false}}
      streams: {{drafter: streams, heads: {root}/streams}}
      medusa: {{drafter: medusa, heads: medusa}}
  depths:
    arms:
      draft: {{drafter: draft_model, draft_model: draft, adaptive: false}}
    vary: max_speculation_depth
    values: [1, 3]
  batches:
    arms:
      lookup: {{drafter: lookup}}
    vary: batch
    values: [1, 2]
  hot:
    arms:
      lookup: {{drafter: lookup}}
    vary: temperature
    values: [1.0]
"""
PROMPTS = [("talk", "the cat sat on the mat"), ("count", "one two three one two three"), ("talk", "the dog " * 400)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    other = tiny_tokenizer()
    other.add_tokens(["<more>"])
    for name, model, tokenizer in (
        ("model", tiny_model(), tiny_tokenizer()),
        ("draft", tiny_model(noise=0.02), tiny_tokenizer()),
        ("stranger", tiny_model(), other),
    ):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Streams(tiny_model(), StreamsConfig(gamma=3, layers=1, rank=2)).save(root / "streams")
    return root


@pytest.fixture
def root(tmp_path, models):
    for name in ("model", "draft", "stranger", "streams"):
        (tmp_path / name).symlink_to(models / name)
    lines = [json.dumps({"category": kind, "prompt": text}) for kind, text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(CONFIG.format(root=tmp_path), encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(capsys, root):
    def command(verb, *words):
        files = ["--config", str(root / "config.yaml")] if verb == "benchmark" else []
        with pytest.raises(SystemExit) as exit_:
            main([verb, *files, *map(str, words)])
        return exit_.value.code, *capsys.readouterr()

    return command


@pytest.fixture
def clockwork(monkeypatch):
    """Seconds that depend on nothing but the widths of passes."""
    real = bench.generate

    def generate(*arguments):
        reading = real(*arguments)
        passes = [(width, 0.001, 0.01 * width, 0.02 * width) for width, *_ in reading["passes"]]
        decode = sum(each[3] for each in passes)
        fixed = {"prefill": 0.1, "decode": decode, "passes": passes, "peak_bytes": 1, "grown_bytes": 0}
        return {**reading, **fixed}

    monkeypatch.setattr(bench, "generate", generate)


def summary(root, folder="run"):
    return json.loads((root / folder / "summary.json").read_text(encoding="utf-8"))


def test_everything_is_measured_reported_and_compared(run, root):
    code, out, err = run("benchmark")
    assert code == 0, err
    assert "left out: methods, medusa: models.medusa is null" in out
    assert "generations failed; the first: plain: the prompt has" in out
    found = summary(root)
    arms = {(each["experiment"], each["value"], each["arm"], each["arm_value"]): each for each in found["arms"]}
    assert set(arms) == {
        ("baseline", None, "plain", None),
        *(("methods", None, arm, None) for arm in ("plain", "lookup", "draft", "streams")),
        ("depths", None, "plain", None),
        ("depths", None, "draft", 1),
        ("depths", None, "draft", 3),
        *(("batches", value, arm, None) for value in (1, 2) for arm in ("plain", "lookup")),
        *(("hot", 1.0, arm, None) for arm in ("plain", "lookup")),
    }
    for each in arms.values():
        own = each["all"]
        assert own["failed"] == 2, "the long prompt, and what is in a batch with it"
        assert own["speedup"]["value"] > 0
        if own["compared"] is not None:
            assert own["equal"] == own["compared"] > 0
    draft = arms["methods", None, "draft", None]
    assert draft["all"]["mean_accepted_length"] > 1
    assert draft["memory_overhead"] > 0
    assert arms["depths", None, "draft", 1]["all"]["judged"][1:] == []
    assert len(arms["depths", None, "draft", 3]["all"]["judged"]) == 3
    assert set(draft["categories"]) == {"talk", "count"}
    assert draft["facts"]["provenance"]["runtime"]
    assert arms["hot", 1.0, "lookup", None]["all"]["equal"] is None

    pytest.importorskip("matplotlib")
    assert run("benchmark", "--set", f"measure.output_dir={root}/again", "--experiments", "methods")[0] == 0
    code, out, err = run("report", root / "run", root / "again", "-o", root / "report")
    assert (code, err) == (0, "")
    for line, name in zip(out.splitlines(), ("run", "again"), strict=False):
        assert re.match(rf"{root}/{name}: .*(pays? here|was measured|can be said)", line)
    assert out.splitlines()[-1].startswith(f"written to {root}/report/report.html and ")
    html = (root / "report" / "report.html").read_text(encoding="utf-8")
    assert "no difference seen" in html
    assert "Left out: methods, medusa" in html


def test_an_interrupted_run_ends_in_the_same_summary(run, root, monkeypatch, clockwork):
    only = ["--experiments", "methods,depths", "--set", "experiments.methods.arms.streams.adaptive=false"]
    assert run("benchmark", *only, "--set", f"measure.output_dir={root}/whole")[0] == 0
    counted, calls = bench.generate, 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return counted(*arguments)

    monkeypatch.setattr(bench, "generate", interrupted)
    assert run("benchmark", *only)[0] == 130
    assert not (root / "run" / "summary.json").exists()
    before = (root / "run" / "samples.jsonl").read_text(encoding="utf-8").count('"kind":"sample"')
    assert before == 15 - 1 - 4, "one generation of each arm warmed up"
    assert run("benchmark", *only)[0] == 0
    first, second = summary(root, "whole"), summary(root)
    assert len(second.pop("sessions")) == 2
    assert len(first.pop("sessions")) == 1
    assert first == second
    assert {each["all"]["failed"] for each in first["arms"]} == {2}, "the long prompt alone"

    monkeypatch.setattr(specstream.engine.engine, "load_model", None)  # nothing is left to load it for
    assert run("benchmark", *only)[0] == 0


def test_a_run_goes_on_only_with_its_own_settings(run, root):
    only = ["--experiments", "baseline"]
    assert run("benchmark", *only)[0] == 0
    code, _, err = run("benchmark", *only, "--set", "measure.repeats=1")
    assert code == 2
    assert "holds a run with measure.repeats 2 and now it is 1; give the same, another measure.output_dir" in err
    assert run("benchmark", *only, "--set", "measure.repeats=1", "--no-resume")[0] == 0
    assert (root / "run.1" / "run.json").exists()
    assert run("benchmark", "--set", "measure.repeats=1", "--experiments", "hot")[0] == 0
    assert [each["experiment"] for each in summary(root)["arms"]] == ["baseline", "hot", "hot"]


def test_a_file_can_name_what_benchmark_heads_measures(run, root):
    streams = {"drafter": "streams", "heads": str(root / "streams")}
    arms = json.dumps({"free": streams, "fixed": {**streams, "fixed_tree": 5}, "lookup": {"drafter": "lookup"}})
    words = ["--experiments", "methods", "--set", f"experiments.methods.arms={arms}", "--set", "measure.predicted=true"]
    assert run("benchmark", *words)[0] == 0
    own = {each["arm"]: each for each in summary(root)["arms"]}
    assert list(own) == ["plain", "free", "fixed", "lookup"]
    assert own["fixed"]["facts"]["fixed_tree"] == 5
    assert own["fixed"]["all"]["nodes"] > 3, "five, but for the first pass and the last ones"
    assert all(each["all"]["measured_over_predicted"] > 0 for each in own.values())
    words[3] = f"experiments.methods.arms={json.dumps({'lookup': {'drafter': 'lookup', 'fixed_tree': 5}})}"
    assert run("benchmark", "--no-resume", *words)[0] == 0
    errors = {each["error"] for each in summary(root)["failures"] if each["arm"] == "lookup"}
    assert errors == {
        "it cannot be built: drafter is 'lookup'; give streams, medusa, block, eagle3 or dflash for a fixed tree"
    }


def test_an_arm_that_cannot_be_built_is_told_and_the_others_are_measured(run, root):
    code, out, _ = run("benchmark", "--experiments", "hot", "--set", "experiments.hot.arms.streams={drafter: streams}")
    assert code == 0
    assert "generations failed" in out
    said = "it cannot be built: drafter is 'streams' and there are no heads for this model"
    assert said in (root / "run" / "samples.jsonl").read_text()
    arms = {each["arm"]: each["all"] for each in summary(root)["arms"]}
    assert arms["streams"] == {"generations": 6, "failed": 6}
    assert arms["lookup"]["failed"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("measure.repeat=1", "unknown setting 'measure.repeat'; known are output_dir, predicted, repeats, warmup"),
        ("measure.repeats=0", "measure.repeats is 0; give a value that is greater than or equal to 1"),
        ("prompts.files=[{path: none.jsonl}]", "--set: file 'none.jsonl' cannot be read: No such file"),
        ("prompts.categories=[chess]", "no prompt is of the category 'chess'; give some of talk, count"),
        ("experiments.methods.arms.lookup={drafter: lookpu}", "drafter is 'lookpu'; give a value that is 'auto'"),
        ("experiments.methods.arms.lookup={depth: 3}", "unknown setting 'depth'; known are acceptance_threshold"),
        ("experiments.methods.arms.plain={}", "every experiment has an arm 'plain'; call this one otherwise"),
        ("experiments.methods.vary=speed", "vary is 'speed' with the values []; give both or neither"),
        ("experiments.hot.values=[-1.0]", "temperature is -1.0; give a value that is greater than or equal to 0"),
        ("experiments.batches.values=[0]", "batch is 0; give 1 or more"),
        ("experiments.methods.arms.streams.fixed_tree=0", "fixed_tree is 0; give 1 or more"),
        ("models.draft=stranger", "cannot be read: "),
    ],
)
def test_a_bad_configuration_is_refused_before_a_model_is_loaded(run, root, monkeypatch, override, message):
    monkeypatch.setattr(specstream.engine.engine, "load_model", None)
    monkeypatch.setattr(specstream.engine.build, "load_draft", None)
    code, out, err = run("benchmark", "--set", override)
    if override == "models.draft=stranger":
        code, out, err = run("benchmark", "--set", f"models.draft={root}/stranger")
        message = "has another vocabulary (301 tokens) than"
    assert (code, out) == (2, "")
    assert message in err
    assert not (root / "run").exists()


def test_a_wrong_line_of_the_file_is_named(run, root, monkeypatch):
    monkeypatch.setattr(specstream.engine.engine, "load_model", None)
    text = (root / "config.yaml").read_text(encoding="utf-8")
    for old, new, message in (
        ("repeats: 2", "repeat: 2", ":10: unknown setting 'measure.repeat'"),
        ("lookup, adaptive: false", "lookup, heads: x", ":16: drafter is 'lookup' and there are heads"),
        ("vary: batch", "vary: speed", ":28: unknown setting 'speed'"),
        (f"{root}/draft\n", f"{root}/stranger\n", ":3: the draft "),
    ):
        (root / "config.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
        code, _, err = run("benchmark")
        assert code == 2
        assert f"config.yaml{message}" in err
    (root / "config.yaml").write_text(text, encoding="utf-8")
    code, _, err = run("benchmark", "--experiments", "chess")
    assert code == 2
    assert "there is no experiment 'chess' in" in err


def test_without_a_file_the_experiments_that_need_none_are_named(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["benchmark"])
    assert exit_.value.code == 2
    assert "there is no --config; give a YAML file (see configs/), or one of: heads, task" in capsys.readouterr().err
