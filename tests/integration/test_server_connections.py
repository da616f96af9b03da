"""Connections: they stay usable or say that they close, and neither many nor slow ones keep the others out."""

from __future__ import annotations

import http.client
import json
import logging
import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from specstream.errors import UsageError
from specstream.serving import connections, middleware
from specstream.serving.deployment import DeploymentConfig, most_connections, open_files
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
                    patched.setattr(served.gateway, step, fails)
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
            monkeypatch.setattr(served.gateway, "prompts", fails)
            assert ask(connection, BODY)[0].status == 500
        assert "zero" not in capfd.readouterr().err, "uvicorn tells it too"
        told = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.exc_info for record in told] == [None]
        assert "ZeroDivisionError in " in told[0].getMessage()

    def test_a_refused_key_and_a_refused_body_leave_the_connection_as_it_was(self) -> None:
        with serving(api_key="right", max_body_bytes=10_000) as served, connected(served) as connection:
            for size in (10, 200_000):
                large = {**BODY, "prompt": "a" * size}
                answer, said = ask(connection, large, authorization="Bearer wrong")
                assert (answer.status, said["error"]["code"]) == (401, "invalid_api_key")
                answer, said = ask(connection, large, authorization="Bearer right")
                assert answer.status == (200 if size == 10 else 413)
            assert ask(connection, BODY, authorization="Bearer right")[0].status == 200

    def test_a_refused_key_ends_the_connection_of_who_waits_with_the_body(self) -> None:
        """It does not send the body now, and what it sends next would be taken for that."""
        with serving(api_key="right") as served, connected(served) as connection:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("content-length", "40")
            connection.putheader("expect", "100-continue")
            connection.endheaders()
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection")) == (401, "close")

    def test_a_body_that_does_not_arrive_closes_and_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(middleware, "BODY_SECONDS", 0.2)
        with serving() as served, connected(served) as connection:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("content-length", "500")
            connection.endheaders(b'{"model"')
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection")) == (408, "close")
            answer.read()

    @pytest.mark.parametrize("size", [10, 2000], ids=["of a body that is read", "of one that was refused"])
    def test_a_body_that_is_no_http_is_one_line_of_the_log(self, size: int, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO), serving(max_body_bytes=1000) as served, connected(served) as connection:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("transfer-encoding", "chunked")
            connection.endheaders(b"%x\r\n%s\r\n" % (size, b"a" * size))
            if size == 2000:
                answer = connection.getresponse()
                assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "body_too_large")
            assert connection.sock is not None
            connection.sock.sendall(b"ZZZ\r\n")
            if size == 10:
                answer = http.client.HTTPResponse(connection.sock)
                answer.begin()
                assert (answer.status, answer.getheader("connection")) == (400, "close")
                assert json.loads(answer.read())["error"]["code"] == "invalid_http"
            assert ended(connection.sock)
            assert eventually(lambda: len(served.web.server_state.tasks) == 0)
        assert caplog.text.count("127.0.0.1 sent what is not HTTP") == 1
        assert "Traceback" not in caplog.text

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


def half_sent(served: Served) -> socket.socket:
    """A connection whose request has begun."""
    address = urlsplit(served.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=PATIENCE)
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-")
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the server closes it."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def count(served: Served) -> int:
    return len(served.web.server_state.connections)


class TestManyConnections:
    def test_those_beyond_the_limit_are_refused_in_words_and_the_others_served(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with serving(max_connections=4) as served, connected(served) as old:
            assert ask(old, BODY)[0].status == 200
            idle = [half_sent(served) for _ in range(3)]
            assert eventually(lambda: count(served) == 4)
            for _ in range(3):
                refused = httpx.post(f"{served.url}/v1/completions", json=BODY)
                assert (refused.status_code, refused.headers["connection"]) == (503, "close")
                assert refused.json()["error"]["code"] == "too_many_connections"
                assert int(refused.headers["retry-after"]) >= 1
            assert httpx.get(f"{served.url}/health").status_code == 200, "a probe would have it restarted"
            assert ask(old, BODY)[0].status == 200
            for connection in idle:
                connection.close()
            assert eventually(lambda: count(served) == 1)
            assert httpx.post(f"{served.url}/v1/completions", json=BODY).status_code == 200
        assert sum("max_connections is 4" in record.getMessage() for record in caplog.records) == 1

    def test_a_flood_of_them_is_closed_at_once(self) -> None:
        with serving(max_connections=2) as served:
            flood = [half_sent(served) for _ in range(2 + connections.SPARE_CONNECTIONS + 30)]
            assert eventually(lambda: count(served) == 2 + connections.SPARE_CONNECTIONS)
            assert sum(ended(connection) for connection in flood[-10:]) == 10
            for connection in flood:
                connection.close()

    def test_files_that_run_out_are_one_line_in_the_log(
        self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with serving() as served, caplog.at_level(logging.DEBUG):
            address = urlsplit(served.url)
            clients = [socket.socket() for _ in range(40)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 3, hard))
            try:
                for client in clients:
                    client.connect((address.hostname, address.port))
                assert eventually(lambda: "raise `ulimit -n`" in caplog.text)
                time.sleep(1.2)  # asyncio tries again after a second
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for client in clients:
                    client.close()
            assert eventually(lambda: httpx.get(f"{served.url}/health").status_code == 200)
        assert caplog.text.count("cannot be accepted") == 1
        assert "Traceback" not in caplog.text + capfd.readouterr().err

    def test_the_default_is_below_what_may_be_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert most_connections(DeploymentConfig()) < open_files()
        for files, most in ((64, 1), (256, 108), (1024, 512), (2**20, 1000)):
            monkeypatch.setattr("specstream.serving.deployment.open_files", lambda files=files: files)
            assert most_connections(DeploymentConfig()) == most
        assert most_connections(DeploymentConfig(max_connections=5000)) == 5000
        monkeypatch.setattr("specstream.serving.deployment.open_files", lambda: 1024)
        with pytest.raises(
            UsageError, match=r"max_connections is 5000 and 1024 files may be open, .* for 780; give less"
        ):
            most_connections(DeploymentConfig(max_connections=5000))


class TestSlowConnections:
    @pytest.mark.parametrize("beginning", [b"", b"POST", b"GET /health HTTP/1.1\r\nHost: a\r\nX-"])
    def test_a_head_that_does_not_arrive_in_time_ends_the_connection(
        self, beginning: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
        with serving() as served:
            address = urlsplit(served.url)
            with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as connection:
                connection.sendall(beginning)
                assert ended(connection)
            with connected(served) as after, pytest.raises(OSError):
                assert ask(after, BODY)[0].status == 200
                for byte in b"GET /health HTTP/1.1\r\nX-" + b"a" * 10_000:  # a byte now and then is not in time
                    after.sock.sendall(bytes([byte]))
                    time.sleep(0.05)

    def test_an_answer_and_a_body_may_take_longer_than_a_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
        with serving(slow=0.05) as served, connected(served) as connection:
            assert ask(connection, {**BODY, "max_tokens": 40})[0].status == 200
            content = json.dumps(BODY).encode()
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("content-length", str(len(content)))
            connection.putheader("content-type", "application/json")
            connection.endheaders(content[:5])
            time.sleep(0.5)
            connection.send(content[5:])
            assert connection.getresponse().status == 200

    def test_who_reads_nothing_is_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "STUCK_SECONDS", 0.3)
        with serving() as served:
            address = urlsplit(served.url)
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(PATIENCE)
                connection.connect((address.hostname, address.port))
                with suppress(OSError):
                    for _ in range(3000):
                        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
                assert eventually(lambda: count(served) == 0)


def test_a_connection_outlasts_the_time_in_which_clients_use_it_again() -> None:
    """Closed at the same moment by both sides, it would take a request with it."""
    with serving() as served:
        assert served.web.config.timeout_keep_alive > httpx.Limits().keepalive_expiry * 2  # type: ignore[operator]


def test_it_says_that_it_serves_once_it_listens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), serving() as served:
        assert f"serving {NAME} on {served.url}/v1" in caplog.text
        lines = [record.message for record in caplog.records]
        (command,) = (line.removeprefix("try: ") for line in lines if line.startswith("try: curl"))
        if shutil.which("curl"):
            done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True, timeout=PATIENCE)
            assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
        assert f"for clients: export OPENAI_BASE_URL={served.url}/v1 OPENAI_API_KEY=none" in lines
        (program,) = (shlex.split(line.removeprefix("then: "))[-1] for line in lines if line.startswith("then: python"))
        variables = {"OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": "none"}
        subprocess.run([sys.executable, "-c", program], env={**os.environ, **variables}, check=True, timeout=PATIENCE)
