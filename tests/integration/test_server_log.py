"""What a server writes about a failure: one line, and nothing of what a client sent or was told."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from tests.integration.served import NAME, PATIENCE, Served, serving

SECRET = "xyzzy plugh"


def ask(served: Served, **more: Any) -> httpx.Response:
    body = {"model": NAME, "messages": [{"role": "user", "content": SECRET}], **more}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE)


def break_pass(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass fails with an error that quotes the prompt, as those of libraries do."""

    def failing(*arguments: Any, **named: Any) -> Any:
        raise KeyError(SECRET)

    served.engine.target.prepare()
    monkeypatch.setattr(served.engine.target, "forward", failing)


def break_text(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of answers cannot be made."""

    def failing(tokens: Any, **named: Any) -> str:
        raise ValueError(f"{SECRET}: {tokens}")

    monkeypatch.setattr(served.engine.tokenizer, "decode", failing)


@pytest.mark.parametrize("breaking", [break_pass, break_text])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_one_line_without_what_a_client_sent(
    breaking: Any,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.INFO, "specstream"), serving() as served:
        breaking(served, monkeypatch)
        answer = ask(served, stream=stream, max_tokens=5)
        assert "the answer failed" in answer.text
        assert SECRET not in answer.text
        monkeypatch.undo()
    assert "Traceback" not in "".join(capfd.readouterr())
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, [line.getMessage() for line in lines]
    assert lines[0].exc_info is None
    assert "a request failed: " in lines[0].getMessage()
    assert "Error in " in lines[0].getMessage()
    assert SECRET not in lines[0].getMessage()


def test_a_schema_that_fails_stands_nowhere(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    endless = {"type": "array", "items": {"$ref": "#"}, "minItems": 1, "description": SECRET}
    exploding = {"type": "string", "pattern": f"^{SECRET}(([a-z]{{1,50}}){{1,50}}){{1,50}}$"}
    loop = {"anyOf": [{"$ref": "#"}], "description": SECRET}
    with caplog.at_level(logging.DEBUG, "specstream"), serving(max_tokens=400) as served:
        for schema in (endless, exploding, loop):
            form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            for stream in (False, True):
                assert "cannot be followed" in ask(served, response_format=form, stream=stream).text
    written = "".join(capfd.readouterr()) + caplog.text
    assert SECRET not in written
    assert "Warning" not in written
    assert "[[[" not in written
    assert "Traceback" not in written
