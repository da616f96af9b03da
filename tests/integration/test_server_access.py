"""One line of the log for each request, an id that goes in and out, and when to come again."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.served import NAME, PATIENCE, Served, eventually, serving, tiny_engine

BODY: dict[str, Any] = {"model": NAME, "prompt": "the cat sat on the mat", "max_tokens": 3}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key="right", max_body_bytes=1000, cors_origins=["https://a.example"]) as running:
        yield running


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield


def post(served: Served, path: str = "/v1/completions", key: str = "right", **headers: str) -> httpx.Response:
    sent = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(f"{served.url}{path}", json=BODY, headers=sent, timeout=PATIENCE)


def lines(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    """Those about a request; it may have been answered a moment ago."""

    def found() -> list[str]:
        return [
            each.getMessage()
            for each in caplog.records
            if each.name.startswith("specstream") and name in each.getMessage()
        ]

    eventually(lambda: bool(found()))
    return found()


@pytest.mark.parametrize("probe", ["health", "ready", "metrics"])
def test_a_probe_may_ask_without_wanting_the_body(probe: str, served: Served) -> None:
    answer = httpx.head(f"{served.url}/{probe}")
    assert (answer.status_code, answer.content) == (200, b"")


class TestIds:
    def test_the_clients_own_is_kept(self, served: Served) -> None:
        for name in ("a", "3f2a-4.b_c:d/e=", "x" * 128):
            assert post(served, x_request_id=name).headers["x-request-id"] == name

    @pytest.mark.parametrize("name", ["", "a b", "a\tb", "x" * 129, '"', "a,b", "(curl)"])
    def test_one_that_could_spoil_a_log_is_replaced(self, served: Served, name: str) -> None:
        found = post(served, x_request_id=name).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{16}", found)

    def test_each_request_has_another_in_refusals_and_streams_too(self, served: Served) -> None:
        answers = [
            post(served),
            post(served, key="wrong"),
            post(served, "/nothing"),
            httpx.post(
                f"{served.url}/v1/completions", json={**BODY, "stream": True}, headers={"authorization": "Bearer right"}
            ),
            httpx.post(f"{served.url}/v1/completions", content=b"a" * 2000, headers={"authorization": "Bearer right"}),
            httpx.get(f"{served.url}/health"),
        ]
        assert [answer.status_code for answer in answers] == [200, 401, 404, 200, 413, 200]
        assert len({answer.headers["x-request-id"] for answer in answers}) == 6


class TestLines:
    def test_there_is_one_for_an_answer_with_what_it_was(
        self, served: Served, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer = post(served, x_request_id="mine")
        (line,) = lines(caplog, "mine")
        identity = answer.json()["id"]
        assert re.fullmatch(
            r"127\.0\.0\.1 POST /v1/completions 200 \d+\.\d\d s mine "
            + re.escape(identity)
            + r": \d+ tokens of a prompt, 3 of answers, length",
            line,
        )
        assert len(lines(caplog, identity)) == 1

    def test_there_is_one_for_a_stream_and_one_for_a_broken_one(self, caplog: pytest.LogCaptureFixture) -> None:
        with serving(slow=0.02) as slow:
            url, body = f"{slow.url}/v1/completions", {**BODY, "stream": True}
            assert httpx.post(url, json=body, headers={"x-request-id": "whole"}, timeout=PATIENCE).status_code == 200
            long = {**body, "max_tokens": 400}
            with httpx.stream("POST", url, json=long, headers={"x-request-id": "broken"}, timeout=PATIENCE) as stream:
                next(stream.iter_lines())
            assert lines(caplog, "broken")
        (line,) = lines(caplog, "whole")
        assert "3 of answers, length" in line
        (line,) = lines(caplog, "broken")
        assert " 200 " in line
        assert line.endswith("the client left")

    @pytest.mark.parametrize(
        ("path", "key", "status"), [("/v1/completions", "wrong", 401), ("/v1/nothing", "right", 404), ("/x", "", 404)]
    )
    def test_there_is_one_for_a_refusal(
        self, path: str, key: str, status: int, served: Served, caplog: pytest.LogCaptureFixture
    ) -> None:
        post(served, path, key or "right", x_request_id="refused")
        (line,) = lines(caplog, "refused")
        assert f"POST {path} {status} " in line

    def test_a_path_cannot_forge_one_nor_fill_the_log(self, served: Served, caplog: pytest.LogCaptureFixture) -> None:
        post(served, "/v1/a%0aGET%20/forged?key=secret", x_request_id="one")
        post(served, "/" + "a" * 5000, x_request_id="two")
        (line,) = lines(caplog, "one")
        assert "\n" not in line
        assert "secret" not in line
        (line,) = lines(caplog, "two")
        assert len(line) < 400

    @pytest.mark.parametrize("host", ["10.0.0.1 POST /v1/forged 200", "a" * 5000])
    def test_a_host_that_a_proxy_names_cannot_either(
        self, host: str, served: Served, caplog: pytest.LogCaptureFixture
    ) -> None:
        post(served, x_request_id="proxied", x_forwarded_for=host)
        (line,) = lines(caplog, "proxied")
        assert line.split()[1:3] == ["POST", "/v1/completions"]
        assert len(line) < 400

    def test_a_failure_has_one(
        self, served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*arguments: Any) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(served.gateway, "prompts", fails)
        assert post(served, x_request_id="failed").headers["x-request-id"] == "failed"
        # The answer is sent before the line is written.
        assert eventually(lambda: sum(" 500 " in line for line in lines(caplog, "failed")) == 1)

    def test_probes_that_are_well_have_none(self, served: Served, caplog: pytest.LogCaptureFixture) -> None:
        for path in ("/health", "/ready", "/metrics"):
            httpx.get(f"{served.url}{path}", headers={"x-request-id": "probe"})
        post(served, x_request_id="after")
        assert lines(caplog, "after")
        assert "probe" not in [word for line in lines(caplog, "127.0.0.1") for word in line.split()]


class TestRetryAfter:
    def test_it_is_what_answers_really_take(self) -> None:
        with serving(tiny_engine(drafter="none"), slow=0.1, max_rows=1, max_queue=0) as slow:
            begun = time.monotonic()
            assert httpx.post(f"{slow.url}/v1/completions", json={**BODY, "max_tokens": 40}, timeout=60).is_success
            took = time.monotonic() - begun
            assert eventually(slow.idle)  # its row may leave a moment after its answer
            for _ in range(4):  # those that were let go say nothing of how long answers take
                with pytest.raises(httpx.TimeoutException):
                    httpx.post(f"{slow.url}/v1/completions", json={**BODY, "max_tokens": 400}, timeout=0.3)
                assert eventually(slow.idle)
            long = {**BODY, "max_tokens": 400, "stream": True}
            with httpx.stream("POST", f"{slow.url}/v1/completions", json=long, timeout=PATIENCE) as stream:
                events = stream.iter_lines()  # dropped, it would close the connection
                next(events)
                refused = httpx.post(f"{slow.url}/v1/completions", json=BODY)
            assert refused.status_code == 429
            assert took / 2 <= int(refused.headers["retry-after"]) <= took + 2


class TestCors:
    def test_a_page_of_a_named_origin_may_ask(self, served: Served) -> None:
        asking = {"origin": "https://a.example", "access-control-request-method": "POST"}
        asking["access-control-request-headers"] = "authorization,content-type"
        before = httpx.options(f"{served.url}/v1/completions", headers=asking)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://a.example"
        for key, status in (("right", 200), ("wrong", 401)):
            answer = post(served, key=key, origin="https://a.example")
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://a.example", "the page cannot read it"
            assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()

    def test_no_other_may(self, served: Served) -> None:
        asking = {"origin": "https://b.example", "access-control-request-method": "POST"}
        assert httpx.options(f"{served.url}/v1/completions", headers=asking).status_code == 400
        assert "access-control-allow-origin" not in post(served, origin="https://b.example").headers

    def test_without_the_setting_there_is_none(self) -> None:
        with serving() as plain:
            answer = post(plain, origin="https://a.example")
            assert not [name for name in answer.headers if name.startswith("access-control")]
