"""The load command on a tiny model: a real server in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks.server_peers import server_peers
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


def test_servers_beside_each_other_take_turns_for_their_time(folder: str, tmp_path: Path) -> None:
    output, command = tmp_path / "peers.json", Typer()
    command.command()(server_peers)
    asked = ["--minutes", "0.02", "--rounds", "2", "--clients", "4", "--distinct", "6", "-n", "12", "--rows", "3"]
    result = CliRunner().invoke(command, ["--target", folder, *asked, "--json", str(output)])
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())["servers"]["specstream"]
    assert (found["errors"], len(found["speeds"]), found["requests"] >= 8) == ({}, 2, True)
    assert 0 < found["tokens"] <= 12 * found["requests"]
    assert found["runs"].startswith("float32 on cpu")
    assert found["first_seconds"]["p95"] >= found["first_seconds"]["p50"] > 0
    assert result.stdout.splitlines()[1].startswith("specstream  float32 on cpu")
