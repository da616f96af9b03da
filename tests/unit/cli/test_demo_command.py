from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from specstream.cli import main
from specstream.config import GenerationConfig
from specstream.demo import page, run

pytest.importorskip("gradio")


def ends_with(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What pages were built of; nothing is loaded and nothing listens."""
    found: list[Any] = []
    monkeypatch.setattr(page, "build_page", lambda offered, settings: found.append((offered, settings)))
    monkeypatch.setattr(run, "listen", lambda page, host, port: found.append((host, port)))
    return found


def test_options_reach_the_page(built: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    models = ["smollm2-135m", "qwen2.5-coder-0.5b"]
    arguments = [
        "-m",
        models[0],
        "-m",
        models[1],
        "--drafter",
        "lookup",
        "-n",
        "7",
        "-t",
        "0.5",
        "--seed",
        "3",
        "--port",
        "0",
    ]
    assert ends_with(*arguments) == 0
    (offered, settings), (host, port) = built
    assert offered.models == models
    assert offered.drafter == "lookup"
    assert settings == GenerationConfig(max_new_tokens=7, temperature=0.5, seed=3)
    assert host == "127.0.0.1"
    assert port > 0
    assert f"the demo is on http://127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--drafter", "nothing"], "--drafter is 'nothing'; give one of auto, "),
        (["--drafter", "draft_model"], "--drafter is 'draft_model' and there is no --draft"),
        (["--drafter", "router"], "--drafter is 'router' and there is none"),
        (["-n", "0"], "-n is 0; give a value"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1:7860"),
        (["--port", "70000"], "--port is '70000'; give a value"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_loaded(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], built: list[Any]
) -> None:
    assert ends_with(*arguments) != 0
    captured = capsys.readouterr().err
    assert captured.startswith(f"error: {words}")
    assert captured.count("\n") == 1
    assert built == []


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str], built: list[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert ends_with("--port", str(port)) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot listen on 127.0.0.1:{port} (")
    assert built == []


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert ends_with() == 1
    assert "run: pip install '.[demo]'" in capsys.readouterr().err


def test_a_host_that_is_open_to_others_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("--host", "0.0.0.0", "--port", "0") == 0
    assert "is open to others" in capsys.readouterr().err
