from __future__ import annotations

import logging
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
    monkeypatch.setattr(run, "listen", lambda engine, config: None)
    return loaded


def test_options_go_over_the_file(tmp_path: Path, nothing_is_loaded: list[Any]) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("model_name: a\nport: 1\nmax_rows: 5\n")
    assert fails("--config", str(file), "--model", "b", "--port", "2") == 0
    (config,) = nothing_is_loaded
    assert (config.model_name, config.port, config.max_rows) == ("b", 2, 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "-tp", "2"], "vllm_args are '-tp 2' and the engine is local; give engine: vllm"),
        (["--engine", "other"], "engine is 'other'; give a value that is 'local' or 'vllm'"),
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
    with caplog.at_level(logging.INFO):
        assert fails("--host", "0.0.0.0", "--port", "3") == 0
    assert "0.0.0.0 is open to others and there is no api_key" in caplog.text
    assert "serving smollm2-135m on http://0.0.0.0:3/v1" in caplog.text
