"""Every example runs as it stands, on a tiny model in place of the default one."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_says_something(example, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example), str(folder), str(tmp_path / "out")])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_drafters_agree_and_training_lowers_the_loss(folder, tmp_path, monkeypatch, capsys):
    for name in ("basic_usage", "lora_finetuning"):
        monkeypatch.setattr(sys, "argv", [name, str(folder), str(tmp_path / "out")])
        runpy.run_path(str(EXAMPLES[0].parent / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "equal: True" in said
    first, last = (
        next(line for line in said.splitlines() if line.startswith("loss")).removeprefix("loss ").split(" -> ")
    )
    assert float(last) < float(first)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
