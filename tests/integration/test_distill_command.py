"""From a target to a distilled draft of its own layers, as people type it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from specstream import SpeculativeEngine
from specstream.cli import main
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A target with its own answers and the draft that ``make-draft`` made of one of its two layers."""
    root = tmp_path_factory.mktemp("made")
    tiny_model().save_pretrained(root / "target")
    tiny_tokenizer().save_pretrained(root / "target")
    prompts = [{"prompt": f"{first} {second}"} for first in WORDS for second in WORDS[:4]]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    target, answers = str(root / "target"), str(root / "answers.jsonl")
    given = ("--prompts", str(root / "prompts.jsonl"), "-m", target, "--dtype", "float32", "-n", "16", "-b", "20")
    assert _exit(["distill-data", *given, "-o", answers]) == 0
    part = ("--vocab", "260", "--texts", answers, "--dtype", "float32")
    assert _exit(["make-draft", "--target", target, "--layers", "1", *part, "-o", str(root / "draft")]) == 0
    return root


def _exit(words):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return exit_.value.code


@pytest.fixture
def config(made, tmp_path):
    values = {
        "recipe": "draft",
        "model": {
            "target_model": str(made / "target"),
            "draft_model": str(made / "draft"),
            "dtype": "float32",
            "device": "cpu",
            "states_dir": str(tmp_path / "states"),
        },
        "draft": {"train": "all", "live_prompts": 2, "live_tokens": 8},
        "distillation": {"enabled": True, "loss": "tv", "cross_entropy_weight": 0.2, "top_k": 16},
        "data": {
            "domain": "code",
            "files": [str(made / "answers.jsonl")],
            "eval_files": [str(made / "answers.jsonl")],
            "eval_examples": 12,
            "max_length": 64,
        },
        "training": {
            "num_train_steps": 30,
            "per_device_batch_size": 4,
            "learning_rate": 0.01,
            "output_dir": str(tmp_path / "run"),
            "save_steps": 30,
            "eval_steps": 10,
            "logging_steps": 10,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_a_draft_is_distilled_and_drafts(made, config, tmp_path, capsys):
    assert _exit(["train", "--config", str(config)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    held_out = [row["eval/acceptance"] for row in rows if "eval/acceptance" in row]
    assert max(held_out[1:]) > held_out[0]
    assert f"({max(held_out):.4g})" in capsys.readouterr().out
    best = tmp_path / "run" / "best"
    assert "| acceptance |" in (best / "README.md").read_text()
    assert (best / "draft.json").is_file()
    if "matplotlib" in sys.modules:
        assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    engine = SpeculativeEngine(str(made / "target"), draft_model=str(best), dtype="float32", adaptive=False)
    plain = SpeculativeEngine(str(made / "target"), drafter="none", dtype="float32")
    prompt = [{"role": "user", "content": "two three"}]
    drafted = engine.generate(prompt, max_new_tokens=30)
    assert drafted["token_ids"] == plain.generate(prompt, max_new_tokens=30)["token_ids"]
    assert len(engine.parts.drafter.part) == 260


def test_accelerate_launch_trains_as_one_process_does(config, tmp_path):
    """Two processes side by side take the steps that one takes with two passes each."""
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch += " --dynamo_backend no --main_process_port 0 -m specstream.cli train --config"
    fixed = ["--set", "training.num_train_steps=4", "--set", "training.per_device_batch_size=2"]
    words = ["--set", f"training.output_dir={tmp_path / 'two'}"]
    command = [sys.executable, *launch.split(), str(config), *fixed, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = ["--set", "training.gradient_accumulation_steps=2", "--set", f"training.output_dir={tmp_path / 'one'}"]
    assert _exit(["train", "--config", str(config), *fixed, *alone]) == 0
    one, two = (load_file(tmp_path / run / "best" / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, each in one.items():
        torch.testing.assert_close(two[name], each, rtol=1e-3, atol=1e-4)


def test_out_of_memory_names_what_to_lower(config, capsys, monkeypatch):
    from specstream.training.recipes import draft

    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(draft, "distance", full)
    assert _exit(["train", "--config", str(config)]) == 1
    err = capsys.readouterr().err
    assert "lower training.per_device_batch_size" in err
    assert "data.max_length" in err
