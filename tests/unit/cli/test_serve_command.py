from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from specstream.cli import main
from specstream.serving import run


def fails(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    loaded: list[Any] = []
    monkeypatch.setattr(run, "load", lambda config: loaded.append(config))
    monkeypatch.setattr(run, "listen", lambda engine, config, sockets: None)
    return loaded


def test_options_go_over_the_file(tmp_path: Path, nothing_is_loaded: list[Any]) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("model_name: a\nport: 1\nmax_rows: 5\n")
    assert fails("--config", str(file), "--model", "b", "--port", "0") == 0
    (config,) = nothing_is_loaded
    assert (config.model_name, config.port, config.max_rows) == ("b", 0, 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "-tp", "2"], "vllm_args are '-tp 2' and the engine is local; give engine: vllm"),
        (["--engine", "other"], "engine is 'other'; give a value that is 'local' or 'vllm'"),
        (["--host", "no.such.host.invalid"], "host is 'no.such.host.invalid', which has no address"),
        (["--config", "nowhere.yaml"], "config 'nowhere.yaml' cannot be read"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], nothing_is_loaded: list[Any]
) -> None:
    assert fails(*arguments) == 2
    captured = capsys.readouterr().err
    assert captured.startswith(f"error: {words}")
    assert captured.count("\n") == 1
    assert nothing_is_loaded == []


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert fails() == 1
    assert "run: pip install 'specstream[serve]'" in capsys.readouterr().err


def test_a_host_that_is_open_to_others_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert fails("--host", "0.0.0.0", "--port", "0") == 0
    assert "0.0.0.0 is open to others and there is no api_key" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_found_before_the_model_is_loaded(
    host: str, capsys: pytest.CaptureFixture[str], nothing_is_loaded: list[Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert fails("--host", host, "--port", port) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: port is {port} on {host}, which cannot be taken (Address already in use)")
    assert error.count("\n") == 1
    assert nothing_is_loaded == []


def test_while_the_model_loads_the_port_is_held_and_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []

    def load(config: Any) -> None:
        for ask in (socket.create_server, socket.create_connection):
            try:
                ask(("127.0.0.1", port)).close()  # type: ignore[operator]
            except OSError as error:
                found.append(type(error).__name__)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(run, "load", load)
    assert fails("--port", str(port)) == 0
    assert found == ["ConnectionRefusedError"] or found == ["OSError", "ConnectionRefusedError"]
