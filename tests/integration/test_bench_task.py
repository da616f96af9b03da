"""`specstream bench-task` on tiny models: a table, a record, and an example that cannot be answered."""

from __future__ import annotations

import json

import pytest
import torch

from specstream.cli import main
from specstream.heads.streams import Streams
from specstream.heads.streams_config import StreamsConfig
from tests.tiny import tiny_model, tiny_tokenizer
from tests.words import in_place_of

pytest.importorskip("rouge_score")
pytest.importorskip("sacrebleu")

TASK = """
format: jsonl
prompt: "{question}\\nA:\\n"
references: [answer]
metrics: [exact_match, rougeL, bleu]
max_new_tokens: 12
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models, one of them as training in the shared mode leaves it, and a task with its data."""
    root = tmp_path_factory.mktemp("bench")
    for name, model in (("tuned", tiny_model()), ("shared/model", tiny_model(noise=0.02))):
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Streams(tiny_model(noise=0.02), StreamsConfig(gamma=3, layers=1, rank=2)).save(root / "shared" / "streams")
    (root / "task.yaml").write_text(TASK, encoding="utf-8")
    questions = ["the cat", "one two three", "the dog sat " * 300, "def add(a, b):", "a line with €"]
    lines = [json.dumps({"question": each, "answer": "the mat"}) for each in questions]
    (root / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def run(capsys, folders):
    def command(*words):
        with pytest.raises(SystemExit) as exit_:
            files = ["--task", str(folders / "task.yaml"), "--data", str(folders / "data.jsonl")]
            main(["benchmark", "task", *in_place_of([*files, "--dtype", "float32"], words)])
        return exit_.value.code, *capsys.readouterr()

    return command


def test_two_models_are_held_beside_each_other(run, folders, tmp_path):
    models = ["--model", str(folders / "tuned"), "--shared", str(folders / "shared")]
    code, out, err = run(*models, "--nodes", "5", "--output", str(tmp_path / "record.json"))
    assert (code, err) == (0, "")
    for words in (
        "fine-tuned",
        "shared",
        "plain",
        "streams, 5 nodes",
        "streams, controller",
        "shared minus fine-tuned",
    ):
        assert words in out
    assert "failed:" in out

    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    tuned, shared = record["runs"]
    assert [each["side"] for each in tuned["figures"]] == ["plain"]
    assert [each["side"] for each in shared["figures"]] == ["plain", "streams, 5 nodes", "streams, controller"]
    for each in (*tuned["figures"], *shared["figures"]):
        assert each["equal"] == each["answers"] == 4
        assert set(each["quality"]) == {"exact_match", "rougeL", "bleu"}
    plain, fixed, _ = shared["figures"]
    assert (plain["call_reduction"], plain["speedup"], plain["parameters"]) == (1, 1, 0)
    assert fixed["parameters"] == 3 * 48 + 2 * (2 * 96 + 2 * 72 + 3 * 144)
    answers = [each for each in shared["answers"] if each["side"] == "streams, 5 nodes"]
    passes = sum(each["passes"] for each in answers)
    assert fixed["call_reduction"] == sum(each["tokens"] for each in answers) / passes
    assert fixed["quality"] == plain["quality"], "the same answers"
    for each in (tuned, shared):
        (failure,) = each["failures"]
        assert failure["where"].endswith("data.jsonl:3")
        assert "the prompt has" in failure["error"]
    assert set(record["difference"]) == {"exact_match", "rougeL", "bleu"}
    assert record["difference"]["bleu"]["low"] <= record["difference"]["bleu"]["high"]
    assert tuned["provenance"]["runtime"]


def test_one_model_alone_and_fewer_examples(run, folders):
    code, out, _ = run("--model", str(folders / "tuned"), "--limit", "2", "--json")
    record = json.loads(out)
    assert code == 0
    assert [each.rpartition(":")[2] for each in record["examples"]] == ["1", "3"]
    assert record["difference"] == {}
    (only,) = record["runs"]
    assert (len(only["figures"]), only["figures"][0]["answers"], len(only["failures"])) == (1, 1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shared", "nowhere"], "shared is 'nowhere', which is no folder; give the folder best"),
        (["--output", "/nowhere/record.json"], "give the name of a file in a folder that exists"),
        (["--task", "chess"], "--task 'chess' is no task"),
        (["--data", "data.csv"], "--data 'data.csv' is no file; give one that ends in .jsonl"),
        (["--data", __file__], "test_bench_task.py' does not end in .jsonl, which this task reads; give such a file"),
    ],
)
def test_it_is_refused_before_a_model_is_loaded(run, words, message):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
