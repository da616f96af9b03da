"""Every example runs as it stands, on a tiny model in place of the default one."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.integration.served import serving

FOLDER = Path(__file__).parents[2] / "examples"
CLIENT = FOLDER / "serving_client.py"
EXAMPLES = sorted(set(FOLDER.glob("*.py")) - {CLIENT})


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


def test_the_client_of_a_server_runs_and_says_what_it_got(monkeypatch, capsys):
    with serving() as running:
        monkeypatch.setattr(sys, "argv", [str(CLIENT), f"{running.url}/v1"])
        client = runpy.run_path(str(CLIENT), run_name="__main__")["client"]
        client.close()
    said = capsys.readouterr().out
    assert re.search(r"^\d\.\d\d tokens a pass, \d+% of drafts accepted$", said, re.MULTILINE)
    city = json.loads(said.splitlines()[-1])
    assert city["city"] in ("Cairo", "Lagos", "Nairobi")
    assert city["rivers"] <= 9


def test_the_client_without_its_package_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SystemExit, match="OpenAI's client is not installed: pip install openai"):
        runpy.run_path(str(CLIENT), run_name="__main__")


def test_drafters_agree_and_training_lowers_the_loss(folder, tmp_path, monkeypatch, capsys):
    for name in ("basic_usage", "lora_finetuning"):
        monkeypatch.setattr(sys, "argv", [name, str(folder), str(tmp_path / "out")])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "equal: True" in said
    first, last = (
        next(line for line in said.splitlines() if line.startswith("loss")).removeprefix("loss ").split(" -> ")
    )
    assert float(last) < float(first)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
