"""`lm_eval --model specstream` on a tiny model and local tasks, beside the harness's own reading of the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from specstream.errors import MissingPackageError
from tests.tiny import tiny_model, tiny_tokenizer

GENERATE = """\
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {root}/data.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOOSE = """\
task: tiny_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {root}/data.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" the mat", " three", " b): return a"]
doc_to_target: "{{{{right}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
READ = """\
task: tiny_read
dataset_path: json
dataset_kwargs: {{data_files: {{test: {root}/data.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and three tasks of one file."""
    root = tmp_path_factory.mktemp("harness")
    tiny_model().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    lines = [
        {"question": question, "answer": "the mat", "right": at % 3, "text": f"{question} and the dog sat. " * 12}
        for at, question in enumerate(["the cat sat on", "one two three one two", "def add(a,", "the dog"])
    ]
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (root / "tasks").mkdir()
    for name, text in (("generate", GENERATE), ("choose", CHOOSE), ("read", READ)):
        (root / "tasks" / f"{name}.yaml").write_text(text.format(root=root), encoding="utf-8")
    return root


def harness(root: Path, out: str, model: str, arguments: str, *words: str) -> tuple[dict[str, dict[str, float]], dict]:
    """The results of a command, and what was said of each example, by task."""
    command = [sys.executable, "-m", "specstream.evaluation.lm_eval_model", "--model", model, "--model_args", arguments]
    command += ["--tasks", "tiny_generate,tiny_choose,tiny_read", "--include_path", str(root / "tasks")]
    command += ["--log_samples", "--output_path", str(root / out), *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(root / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (root / out).rglob("results_*.json")
    samples = {}
    for each in (root / out).rglob("samples_*.jsonl"):
        own = [json.loads(line) for line in each.read_text(encoding="utf-8").splitlines()]
        samples[own[0].get("task", each.name.split("_2")[0])] = [one["resps"] for one in own]
    return json.loads(file.read_text(encoding="utf-8"))["results"], samples


def test_tasks_have_the_harness_s_own_results(root: Path) -> None:
    pytest.importorskip("lm_eval")
    folder = root / "model"
    theirs, said = harness(root, "theirs", "hf", f"pretrained={folder},dtype=float32", "--device", "cpu")
    settings = f"pretrained={folder},dtype=float32,drafter=lookup,adaptive=False,max_speculation_depth=3"
    ours, written = harness(root, "ours", "specstream", settings, "--batch_size", "2")
    assert set(written) == set(said) and len(said) == 3
    for task in ("tiny_generate", "tiny_choose", "tiny_read"):
        figures = {key: value for key, value in theirs[task].items() if key.endswith(",none") and "stderr" not in key}
        assert figures
        for key, value in figures.items():
            assert ours[task][key] == pytest.approx(value, rel=1e-5), (task, key)
    (generated,) = [key for key in said if "generate" in key]
    assert written[generated] == said[generated]
    assert len({str(each) for each in said[generated]}) > 1


def test_without_the_harness_the_line_for_pip_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "specstream.evaluation.lm_eval_model", raising=False)
    with pytest.raises(MissingPackageError, match=r"the adapter of lm_eval needs .*pip install '.\[lm-eval\]'"):
        import specstream.evaluation.lm_eval_model  # noqa: F401
