"""What a command line or a call gets wrong is said before a model is loaded, or fetched, for nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from specstream import SpeculativeEngine
from specstream.cli import main
from specstream.errors import SpecStreamError
from specstream.models.hub import load
from specstream.training.config import train_config
from specstream.training.run import train
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def no_model_is_loaded(monkeypatch):
    def resolve(name):
        raise AssertionError(f"{name} was asked for")

    monkeypatch.setattr(load, "resolve", resolve)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a target and prompts."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(tmp_path / "target")
    tiny_tokenizer().save_pretrained(tmp_path / "target")
    questions = [{"category": "a", "turns": [text]} for text in ("one two", "three four")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "generate x --model target --draft nope",
        "generate x --model qwen2.5-coder-1.5b --draft qwen2.5-coder-0.5",
        "generate x --model target --draft runs/nope",
        "generate x --model target --drafter router --router nope",
        "generate x --model target --heads nope",
        "compare --target-model target --draft-model nope --input-str x",
        "audit x --model target --draft nope",
        "tune --prompts q.jsonl --output a.yaml --model target --draft nope",
        "tune --prompts q.jsonl --output a.yaml --model target --heads nope",
        "benchmark heads --prompts q.jsonl --model target --draft nope",
        "benchmark heads --prompts q.jsonl --model target --medusa nope",
        "benchmark heads --prompts q.jsonl --model target --streams nope",
        "make-draft --target target --layers 1 --output out --prompts nope.jsonl",
        "make-draft --target target --layers 1 --output out --texts nope.jsonl",
    ],
)
def test_a_name_that_is_mistyped_is_found_first(capsys, here, command):
    capsys.readouterr()  # the progress bar of saving
    with pytest.raises(SystemExit) as exit_:
        main(command.split())
    captured = capsys.readouterr()
    assert exit_.value.code == 2, captured.err
    assert "nope" in captured.err or "qwen2.5-coder-0.5'" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("settings", [{"draft_model": "nope"}, {"drafter": "router", "router": "nope"}])
def test_an_engine_checks_its_names_first(here, settings):
    with pytest.raises(SpecStreamError, match="nope"):
        SpeculativeEngine("target", **settings)


@pytest.mark.parametrize(
    "values",
    [
        {"recipe": "draft", "model": {"target_model": "target", "draft_model": "nope"}},
        {"recipe": "lora", "model": {"target_model": "target"}, "data": {"files": ["nope.jsonl"]}},
        {"recipe": "lora", "model": {"target_model": "target"}, "data": {"exclude": ["nope.jsonl"]}},
    ],
)
def test_training_checks_its_names_first(here, values):
    with pytest.raises(SpecStreamError, match="nope"):
        train(train_config(values), quiet=True)


def test_a_model_that_is_not_there_is_refused_before_transformers_is_imported():
    code = """
import sys
from specstream.cli.loading import load_engine
from specstream.errors import ModelNotFoundError
try:
    load_engine("./nowhere", None, {})
except ModelNotFoundError:
    sys.exit("transformers" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
