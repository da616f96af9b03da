"""Connections: they stay usable or say that they close, and neither many nor slow ones keep the others out."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from specstream.serving import guard
from tests.integration.served import NAME, PATIENCE, Served, eventually, serving

BODY = {"model": NAME, "prompt": "the cat sat on the mat", "max_tokens": 2}


class Panic(BaseException):
    """As libraries in Rust raise it: no ``Exception``."""


@contextmanager
def connected(served: Served) -> Iterator[http.client.HTTPConnection]:
    """One connection, which is not opened anew when it is lost."""
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE)
    connection.connect()
    connection.auto_open = 0
    try:
        yield connection
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPConnection, body: Any, **headers: str
) -> tuple[http.client.HTTPResponse, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("POST", "/v1/completions", content, sent)
    answer = connection.getresponse()
    return answer, json.loads(answer.read())


class TestAfterAnError:
    @pytest.mark.parametrize("error", [ZeroDivisionError("zero"), MemoryError(), Panic("panic")], ids=type)
    @pytest.mark.parametrize("step", ["prompts", "jobs", "answers"])
    def test_the_connection_serves_the_next_request(
        self, step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*arguments: Any) -> Any:
            raise error

        with serving() as served, connected(served) as connection:
            for _ in range(3):
                with monkeypatch.context() as patched:
                    patched.setattr(served.server.gateway, step, fails)
                    answer, said = ask(connection, BODY)
                assert (answer.status, said["error"]["type"]) == (500, "server_error")
                assert type(error).__name__ in said["error"]["message"]
                time.sleep(0.05)  # a server that closes has closed by now
                answer, said = ask(connection, BODY)
                assert (answer.status, len(said["choices"])) == (200, 1)

    def test_a_failure_is_logged_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def fails(*arguments: Any) -> Any:
            raise ZeroDivisionError("zero")

        with serving() as served, connected(served) as connection:
            monkeypatch.setattr(served.server.gateway, "prompts", fails)
            assert ask(connection, BODY)[0].status == 500
        assert "zero" not in capfd.readouterr().err, "uvicorn tells it too"
        assert sum("zero" in record.getMessage() or bool(record.exc_info) for record in caplog.records) == 1

    def test_a_refused_key_and_a_refused_body_leave_the_connection_as_it_was(self) -> None:
        with serving(api_key="right", max_body_bytes=10_000) as served, connected(served) as connection:
            for size in (10, 200_000):
                large = {**BODY, "prompt": "a" * size}
                answer, said = ask(connection, large, authorization="Bearer wrong")
                assert (answer.status, said["error"]["code"]) == (401, "invalid_api_key")
                answer, said = ask(connection, large, authorization="Bearer right")
                assert answer.status == (200 if size == 10 else 413)
            assert ask(connection, BODY, authorization="Bearer right")[0].status == 200

    def test_a_body_that_does_not_arrive_closes_and_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
        with serving() as served, connected(served) as connection:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("content-length", "500")
            connection.endheaders(b'{"model"')
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection")) == (408, "close")
            answer.read()

    def test_who_goes_away_in_the_middle_of_a_body_is_not_answered(self) -> None:
        with serving() as served:
            with connected(served) as connection:
                connection.putrequest("POST", "/v1/completions")
                connection.putheader("content-length", "500")
                connection.endheaders(b'{"model"')
            with connected(served) as connection:
                assert ask(connection, BODY)[0].status == 200
                assert eventually(lambda: len(served.web.server_state.tasks) == 0)
                connection.request("GET", "/metrics")
                assert b'refused_requests_total{status="400"}' not in connection.getresponse().read()
