"""`specstream evaluate` on a tiny model: both sides, judged; stopped and gone on with; wrong configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specstream.cli import evaluate as command
from specstream.cli import main
from specstream.cli.progress import progress
from specstream.evaluation.evaluate_config import read_config
from specstream.evaluation.tasks.task import task_names
from tests.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("rouge_score")
pytest.importorskip("sacrebleu")

TASK = """
format: jsonl
prompt: "{question}\\nA:\\n"
references: [answer]
category: kind
metrics: [rougeL]
category_metrics: {odd: [exact_answer, bleu]}
max_new_tokens: 12
"""
CODE = """
format: jsonl
prompt: "{turns}"
metrics: ["pass@1"]
program: "text = {answer_of_the_model!r}\\n{test}\\n"
max_new_tokens: 8
chat: null
"""
QUESTIONS = ["the cat", "one two three", "the dog sat " * 300, "def add(a, b):", "a line with €"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, two tasks with their data, and a configuration."""
    root = tmp_path_factory.mktemp("evaluate")
    tiny_model().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    (root / "text.yaml").write_text(TASK, encoding="utf-8")
    (root / "code.yaml").write_text(CODE, encoding="utf-8")
    lines = [
        {"question": each, "answer": "the mat 4", "kind": "odd" if at % 2 else "even"}
        for at, each in enumerate(QUESTIONS)
    ]
    (root / "text.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    tests = ["assert isinstance(text, str)", "assert False", "import sys; sys.exit(0)"]
    lines = [{"turns": ["the cat", "one two"], "test": each + f"  # {at}"} for at, each in enumerate(tests)]
    for at, line in enumerate(lines):
        line["turns"][0] += f" {at}"
    (root / "code.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (root / "config.yaml").write_text(
        f"target: {{model: {root / 'model'}, dtype: float32}}\n"
        f"speculative: {{draft_model: {root / 'model'}, adaptive: false, max_speculation_depth: 3}}\n"
        f"measure: {{output_dir: {root / 'runs'}}}\n"
        "datasets:\n"
        f"  text: {{task: {root / 'text.yaml'}, path: {root / 'text.jsonl'}}}\n"
        f"  code: {{task: {root / 'code.yaml'}, path: {root / 'code.jsonl'}}}\n",
        encoding="utf-8",
    )
    return root


@pytest.fixture
def run(capsys, folder, tmp_path):
    def command(*words):
        with pytest.raises(SystemExit) as exit_:
            main(["evaluate", "--config", str(folder / "config.yaml"), *words])
        return exit_.value.code, *capsys.readouterr()

    return command


def test_both_sides_answer_and_are_judged(run, folder, tmp_path):
    code, out, _ = run("--dataset", "text", "--set", f"measure.output_dir={tmp_path}")
    assert code == 0
    for words in ("rougeL", "exact_answer", "odd", "even", "failed:", "x plain"):
        assert words in out
    record = json.loads((tmp_path / "text" / "results.json").read_text(encoding="utf-8"))
    everything = record["all"]
    assert (everything["answers"], everything["equal"], everything["exact"]) == (4, 4, "bits")
    assert record["different"] == []
    for metric, count in (("rougeL", 4), ("exact_answer", 2), ("bleu", 2)):
        own = everything["quality"][metric]
        assert own["examples"] == count
        assert own["plain"] == own["speculative"]
        assert own["difference"] == {"value": 0, "low": 0, "high": 0}
    assert set(record["categories"]) == {"odd", "even"}
    assert set(record["categories"]["even"]["quality"]) == {"rougeL"}
    assert everything["speedup"]["low"] <= everything["speedup"]["value"] <= everything["speedup"]["high"]
    assert everything["mean_accepted_length"] > 1, "a model agrees with itself"
    (failure,) = record["failures"]
    assert failure["where"].endswith("text.jsonl:3")
    assert "the prompt has" in failure["error"]
    assert record["provenance"]["drafter"] == "draft_model"


def test_a_run_that_was_stopped_goes_on(run, folder, tmp_path):
    words = ["--dataset", "text", "--set", f"measure.output_dir={tmp_path}"]
    assert run(*words, "--json")[0] == 0
    path = tmp_path / "text" / "answers.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if '"example": 1,' not in line]
    path.write_text("".join(kept) + '{"example": 1, "whe', encoding="utf-8")
    code, out, _ = run(*words, "--json")
    (record,) = json.loads(out)
    assert (code, record["all"]["answers"]) == (0, 4)
    after = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert after[: len(kept)] == kept, "what was answered is not answered again"
    assert len(after) == len(kept) + 2, "the one that was cut, and the one that failed, once more"
    code, out, err = run(*words, "--set", "speculative.adaptive=true")
    assert (code, out) == (2, "")
    assert "was written with settings" in err


def test_programs_are_run_only_if_asked_for(run, folder, tmp_path, monkeypatch):
    pytest.importorskip("resource")
    words = ["--dataset", "code", "--set", f"measure.output_dir={tmp_path}"]
    bars = []
    monkeypatch.setattr(command, "progress", lambda what, *rest: (bars.append(what), progress(what, *rest))[1])
    code, out, _ = run(*words)
    assert code == 0
    assert bars == ["code"], "no bar of programs"
    assert "no code was run, so there is no pass@1; give --execute-code" in out
    code, out, _ = run(*words, "--execute-code")
    assert code == 0
    assert "programs were held by" in out
    record = json.loads((tmp_path / "code" / "results.json").read_text(encoding="utf-8"))
    own = record["all"]["quality"]["pass@1"]
    assert own["plain"]["value"] == own["speculative"]["value"] == pytest.approx(100 / 3)
    reasons = [each["reason"] for each in record["programs"] if each["side"] == "plain"]
    assert reasons == ["", "AssertionError: ", "ended early"]
    answers = (tmp_path / "code" / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert [len(json.loads(line)["plain"]["texts"]) for line in answers] == [2, 2, 2], "two turns each"


def test_an_example_or_two_of_a_task(run, tmp_path, folder):
    data = str(folder / "text.jsonl")
    words = ["--dataset", str(folder / "text.yaml"), "--data", data, "--limit", "2", "--json"]
    code, out, _ = run(*words, "--set", f"measure.output_dir={tmp_path}")
    (record,) = json.loads(out)
    assert (code, record["examples"], record["dataset"], record["source"]) == (0, 2, "text", data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "target.modl=x"], "--set: unknown setting 'target.modl'; known are"),
        (["--set", "speculative.draftr=x"], "--set: unknown setting 'speculative.draftr'; known are"),
        (["--set", "speculative.drafter=best"], "drafter is 'best'"),
        (["--set", "speculative.drafter=medusa"], "drafter is 'medusa' and there are no heads"),
        (["--set", "datasets.text.path=nowhere.jsonl"], "--set: data 'nowhere.jsonl' of the task 'text' is no file"),
        (["--set", "datasets.text.task=chess"], "task 'chess' is no task"),
        (["--dataset", "chess"], "there is no data set 'chess'; give a task's YAML file, or one of"),
        (["--dataset", "spider"], "'spider' names no data set of the hub; give a .jsonl file"),
        (["--data", "x.jsonl"], "data is 'x.jsonl' and there are 2 data sets; give --dataset"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(run, monkeypatch, words, message):
    monkeypatch.setattr("specstream.cli.evaluate.load_engine", None)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err


def test_a_draft_that_does_not_fit_is_refused_before_a_model_is_loaded(run, monkeypatch, tmp_path):
    monkeypatch.setattr("specstream.cli.evaluate.load_engine", None)
    other = tiny_tokenizer()
    other.add_tokens(["another"])
    other.save_pretrained(tmp_path / "draft")
    tiny_model().config.save_pretrained(tmp_path / "draft")
    code, out, err = run("--dataset", "text", "--set", f"speculative.draft_model={tmp_path / 'draft'}")
    assert (code, out) == (2, "")
    assert "--set: the draft" in err
    assert "has another vocabulary" in err


def test_the_configuration_that_comes_along_names_every_task():
    config, _ = read_config(Path(__file__).parents[2] / "configs" / "eval_full.yaml")
    assert sorted(config.datasets) == task_names()


def test_an_unknown_key_names_its_line(capsys, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("target:\n  model: x\nmeasure:\n  outputdir: y\n", encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", "--config", str(path)])
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert f"{path}:4: unknown setting 'measure.outputdir'" in err
