from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specstream.cli import main
from specstream.serving import run, web


def fails(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    loaded: list[Any] = []
    level = logging.getLogger("specstream").level
    monkeypatch.setattr(run, "load", lambda config: loaded.append(config))
    monkeypatch.setattr(web, "listen", lambda engine, config, sockets: None)
    yield loaded
    logging.getLogger("specstream").setLevel(level)


def test_options_go_over_the_file(tmp_path: Path, nothing_is_loaded: list[Any]) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("model_name: a\nport: 1\nmax_rows: 5\n")
    assert fails("--config", str(file), "--model", "b", "--port", "0") == 0
    (config,) = nothing_is_loaded
    assert (config.model_name, config.port, config.max_rows) == ("b", 0, 5)


def test_every_setting_that_is_often_changed_has_an_option(tmp_path: Path, nothing_is_loaded: list[Any]) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    options = "--dtype float32 --device cpu --runtime eager --max-tokens 7 --max-context 99 --max-queue 0 --port 0"
    words = [*options.split(), "--model", "a/b", "--served-model-name", "mine", "--api-key-file", str(key)]
    assert fails(*words, "--log-level", "warning") == 0
    (config,) = nothing_is_loaded
    assert (config.dtype, config.device, config.runtime) == ("float32", "cpu", "eager")
    assert (config.max_tokens, config.max_context, config.max_queue) == (7, 99, 0)
    assert (config.model_name, config.source, config.log_level) == ("mine", "a/b", "warning")
    assert config.api_key.get_secret_value() == "secret"


def test_typical_acceptance_is_an_option_and_never_of_vllm(
    nothing_is_loaded: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails("--acceptance-threshold", "0.3", "--port", "0") == 0
    assert nothing_is_loaded[0].acceptance_threshold == 0.3
    assert fails("--acceptance-threshold", "2") == 2
    assert capsys.readouterr().err.startswith("error: --acceptance-threshold is 2.0; give a value that is less than 1")
    assert fails("--acceptance-threshold", "0.3", "--engine", "vllm") == 2
    said = "error: --acceptance-threshold is 0.3 and the engine is vllm, which has no such rule; leave it out\n"
    assert capsys.readouterr().err == said


def test_the_model_that_is_given_is_the_one_that_is_loaded(tmp_path: Path, nothing_is_loaded: list[Any]) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("model_name: a\nmodel_path: /there\nport: 0\n")
    assert fails("--config", str(file), "--model", "b") == 0
    assert fails("--config", str(file), "--served-model-name", "c") == 0
    assert nothing_is_loaded[1].model_fields_set == {"model_name", "model_path", "port"}
    assert [(each.model_name, each.source) for each in nothing_is_loaded] == [("b", "b"), ("c", "/there")]


def test_several_models_and_adapters_have_names(tmp_path: Path, nothing_is_loaded: list[Any]) -> None:
    words = ["--model", "a=org/a", "--model", "b", "--model=./lr=3/c", "--lora-modules", "sql=/sql", "fun=/f=un"]
    names = {"sql": "/sql", "fun": "/f=un", "more": "/more"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "check", lambda config: None)
        assert fails(*words, "--lora-modules", "more=/more", "--port", "0") == 0
    (config,) = nothing_is_loaded
    assert [(each.model_name, each.source) for each in config.targets] == [
        ("a", "org/a"),
        ("b", "b"),
        ("./lr=3/c", "./lr=3/c"),
    ]
    assert (config.lora_modules, config.targets[1].lora_modules) == (names, {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "--api-key-file '{file}' cannot be read (No such file or directory); give a file with the key in it"),
        (b"", "--api-key-file '{file}' is empty; write the key into it, or leave it out"),
        (b"a b\n", "--api-key-file '{file}' has white space"),
        (b"\xff", "--api-key-file '{file}' cannot be read (it is no text); give a file with the key in it"),
    ],
)
def test_a_file_without_a_key_is_refused(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_is_loaded: list[Any]
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    assert fails("--api-key-file", str(file)) == 2
    assert capsys.readouterr().err.startswith("error: " + words.format(file=file))
    assert nothing_is_loaded == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "-tp", "2"], "-- -tp 2 is for vLLM and the engine is local; give --engine vllm before it"),
        (["--served-model-name", ""], "--served-model-name is ''; give a value that is not empty, or leave it out"),
        (["--log-level", "loud"], "--log-level is 'loud'; give a value that is 'debug', 'info', 'warning' or 'error'"),
        (
            ["--model", "a", "--model", "b", "--served-model-name", "c"],
            "--served-model-name is 'c' and there are 2 models; give --model NAME=PATH",
        ),
        (["--lora-modules", "/sql"], "--lora-modules is '/sql', which has no name; give NAME=PATH"),
        (["--lora-modules", "a=/sql", "b=/nowhere", "a=/c"], "--lora-modules is 'a' twice; give each another name"),
        (["--model", "a", "--model", "a=/b"], "--model is 'a', which another model is called; give another name"),
        (
            ["--lora-modules", "a=/nowhere"],
            "--lora-modules is 'a=/nowhere', whose adapter_config.json cannot be read (No such file or directory);",
        ),
        (["b=/sql"], "'b=/sql' stands alone; give --model b=/sql"),
        (["--engine", "other"], "--engine is 'other'; give a value that is 'local' or 'vllm'"),
        (["--host", "no.such.host.invalid"], "--host is 'no.such.host.invalid', which has no address"),
        (["--config", "nowhere.yaml"], "--config 'nowhere.yaml' cannot be read"),
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
    assert "run: pip install '.[serve]'" in capsys.readouterr().err


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
    assert error.startswith(f"error: --port is {port} on {host}, which cannot be taken (Address already in use)")
    assert error.count("\n") == 1
    assert nothing_is_loaded == []


def test_while_the_model_loads_the_port_is_held_and_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []

    def load(config: Any) -> None:
        with socket.socket() as other:
            for ask in (other.bind, other.connect):
                try:
                    ask(("127.0.0.1", port))
                except OSError as error:
                    found.append(errno.errorcode[error.errno or 0])

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(run, "load", load)
    assert fails("--port", str(port)) == 0
    assert found == ["EADDRINUSE", "ECONNREFUSED"]
