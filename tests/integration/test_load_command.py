"""The load command on a tiny model: a real server in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.serving import app
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_model(context=2048).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def test_a_crowd_gets_what_each_would_get_alone(folder: str, tmp_path: Path) -> None:
    output = tmp_path / "load.json"
    asked = ["--requests", "24", "--clients", "8", "--distinct", "8", "-n", "20", "--rows", "3", "--queue", "1"]
    result = CliRunner().invoke(app, ["load", "--target", folder, *asked, "--json", str(output)])
    assert output.exists(), result.output
    found = json.loads(output.read_text())
    assert found["problems"] == []
    assert result.exit_code == 0
    assert found["requests"] == 24 + 8 == found["finished"] + found["left"], "the 8 of the opening are counted too"
    assert found["provenance"]["dtype"] == "float32"
    assert found["arguments"]["clients"] == 8
    assert min(mib for _, mib in found["memory"]["samples"]) > 100
    assert "32 requests in 1 rounds" in result.stdout
