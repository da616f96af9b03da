"""What goes wrong around a server: it says so clearly, serves the next one, and harms nobody else."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import torch

from specstream.engine.engine import SpeculativeEngine
from specstream.serving.responses import Shape
from specstream.serving.scheduler import Scheduler
from tests.integration.served import NAME, PATIENCE, Served, eventually, serving, tiny_engine
from tests.tiny import tiny_model, tiny_tokenizer

TEXT = "the cat sat on the mat and the dog sat on the"


@pytest.fixture(scope="module")
def lone() -> Any:
    """The same model in an engine of its own, which decodes one request at a time and drafts nothing."""
    return tiny_engine(drafter="none")


def body(**more: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": TEXT, **more}


def post(served: Served, **more: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/completions", json=body(**more), timeout=PATIENCE)


class Panic(BaseException):
    """As libraries in Rust raise it: no ``Exception``."""


@contextmanager
def failing(served: Served, error: BaseException) -> Iterator[None]:
    """The next pass of the model raises, and no other."""
    target, errors = served.engine.target, [error]
    forward = target.forward

    def once(*arguments: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop()
        return forward(*arguments, **named)

    target.forward = once  # type: ignore[method-assign]
    try:
        yield
    finally:
        assert not errors
        target.forward = forward  # type: ignore[method-assign]


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("out of memory"), MemoryError(), Panic("out of memory")], ids=type
    )
    def test_in_a_round_fails_those_in_it_and_the_next_is_served(self, error: BaseException, lone: Any) -> None:
        with serving(slow=0.01) as slow, ThreadPoolExecutor(2) as pool:
            whole = pool.submit(post, slow, max_tokens=400)
            stream = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=400, stream=True)
            chunks = iter(stream)
            next(chunks)
            assert eventually(lambda: in_one_batch(slow) == 2)
            with failing(slow, error):
                with pytest.raises(openai.APIError, match="the answer failed"):
                    list(chunks)
                refused = whole.result()
            assert refused.status_code == 500
            assert refused.json()["error"]["type"] == "server_error"
            assert post(slow, max_tokens=20).json()["choices"][0]["text"] == lone.generate(TEXT, max_new_tokens=20).text
            assert httpx.get(f"{slow.url}/health").status_code == 200

    def test_in_a_prompt_fails_that_request_only(self, lone: Any) -> None:
        with serving(slow=0.02) as slow:
            stream = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=60, stream=True)
            text = next(iter(stream)).choices[0].text
            begin = slow.engine.target.begin_reading

            def full(prefixes: Any) -> Any:
                raise torch.OutOfMemoryError("out of memory")

            slow.engine.target.begin_reading = full  # type: ignore[method-assign]
            assert post(slow, max_tokens=5).status_code == 500
            slow.engine.target.begin_reading = begin  # type: ignore[method-assign]
            text += "".join(chunk.choices[0].text for chunk in stream)
            assert text == lone.generate(TEXT, max_new_tokens=60).text


class TestClientsThatVanish:
    def test_in_the_middle_of_a_stream_and_its_neighbour_does_not_notice(self, lone: Any) -> None:
        with serving(slow=0.02, max_rows=2) as slow:
            staying = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=150, stream=True)
            vanishing = reset_in_the_middle(slow, body(max_tokens=400, stream=True))
            assert vanishing
            assert eventually(lambda: outcomes(slow).get("cancelled") == 1)
            assert "".join(c.choices[0].text for c in staying) == lone.generate(TEXT, max_new_tokens=150).text
            assert eventually(slow.idle)

    def test_before_the_stream_begins(self) -> None:
        """As when the client's patience ends while its prompt is encoded."""
        with serving(slow=0.02, max_rows=1) as slow:
            messages = [{"type": "http.request", "body": json.dumps(body(max_tokens=400, stream=True)).encode()}]

            async def receive() -> Any:
                return messages.pop() if messages else {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                await asyncio.sleep(0)  # as where nobody reads and the connection is full

            asyncio.run(slow.server.app(post_scope("/v1/completions"), receive, send))
            assert eventually(slow.idle)
            assert outcomes(slow) == {"cancelled": 1}

    def test_while_they_wait(self) -> None:
        with serving(slow=0.02, max_rows=1) as slow:
            running = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=400, stream=True)
            next(iter(running))
            for stream in (False, True):
                with pytest.raises(httpx.TimeoutException):
                    httpx.post(f"{slow.url}/v1/completions", json=body(stream=stream), timeout=0.3)
            assert eventually(lambda: slow.scheduler.waiting == 0)
            running.close()
            assert eventually(slow.idle)

    def test_in_the_middle_of_a_body(self, lone: Any) -> None:
        with serving() as served:
            address = urlsplit(served.url)
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{")
            assert post(served, max_tokens=5).json()["choices"][0]["text"] == lone.generate(TEXT, max_new_tokens=5).text


def in_one_batch(served: Served) -> int:
    """Answers in the next round: whose prompt is still being read is not in it."""
    batch = served.scheduler._batch
    return len(batch.rows) if batch else 0


def reset_in_the_middle(served: Served, content: dict[str, Any]) -> bytes:
    """Read the beginning of an answer, then reset the connection, as a crash of the client would."""
    address, sent = urlsplit(served.url), json.dumps(content).encode()
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(sent)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + sent)
        read = b""
        while b"data: " not in read:
            read += connection.recv(4096)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return read


def post_scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


def outcomes(served: Served) -> dict[str, int]:
    """How many answers ended how."""
    marker = 'specstream_answers_total{model_name="tiny",outcome="'
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    found = [line.removeprefix(marker).split('"} ') for line in lines if line.startswith(marker)]
    return {name: int(float(count)) for name, count in found}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "string", "pattern": "^(([a-z]{1,50}){1,50}){1,50}$"},
    ],
    ids=["endless", "exploding"],
)
def test_a_tool_whose_schema_has_no_end_harms_nobody(schema: dict[str, Any], lone: Any) -> None:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    asked = {"messages": [{"role": "user", "content": TEXT}], "tools": tools, "tool_choice": "required"}
    with serving(max_tokens=300) as served:
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=asked, timeout=PATIENCE)
        if "$ref" in str(schema) or answer.status_code != 200:  # a short answer has few states
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
            assert "the JSON schema cannot be followed" in answer.json()["error"]["message"]
        assert post(served, max_tokens=9).json()["choices"][0]["text"] == lone.generate(TEXT, max_new_tokens=9).text


def test_ten_thousand_stop_strings_are_refused(lone: Any) -> None:
    with serving() as served:
        refused = post(served, stop=[f"stop {at}" for at in range(10_000)])
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop")
        assert post(served, max_tokens=9).json()["choices"][0]["text"] == lone.generate(TEXT, max_new_tokens=9).text


def test_who_goes_away_while_a_prompt_is_read_frees_its_place() -> None:
    with serving(slow=0.1, prefill_chunk_tokens=16, max_rows=1) as served:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.url}/v1/completions", json=body(prompt=[5] * 400, max_tokens=9), timeout=0.7)
        assert eventually(served.idle)
        counted = httpx.get(f"{served.url}/metrics").text
        assert 'specstream_answers_total{model_name="tiny",outcome="cancelled"} 1.0' in counted
        assert 'specstream_first_token_seconds_count{model_name="tiny"} 0.0' in counted
        assert post(served, max_tokens=3).status_code == 200


def test_a_conversation_that_has_outgrown_the_context_is_told_so_and_can_go_on_shorter() -> None:
    turns = [{"role": role, "content": TEXT} for _ in range(30) for role in ("user", "assistant")]
    with serving() as served:
        client = served.client()
        with pytest.raises(openai.BadRequestError, match="shorten it") as refused:
            client.chat.completions.create(model=NAME, messages=[*turns, turns[0]])  # type: ignore[list-item]
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
        short: Any = turns[-4:-1]
        assert client.chat.completions.create(model=NAME, messages=short, max_tokens=3).usage.completion_tokens == 3


def test_a_prefix_cache_that_is_full_changes_no_answer() -> None:
    texts = [f"{word} {TEXT}" for word in ("one", "two", "six", "ten", "one", "two")]
    said = []
    for size in (0.0, 2e-5):
        engine = SpeculativeEngine(tiny_model(hidden_size=64), tiny_tokenizer(), prefix_cache_gb=size)
        with serving(engine, prefix_cache_gb=size) as served:
            said.append([post(served, prompt=text, max_tokens=20).json()["choices"] for text in texts])
    assert said[0] == said[1]
    cache = engine.parts.prefixes
    assert cache is not None
    assert 0 < cache.nbytes <= 2e4


def test_a_slow_reader_takes_nothing_from_a_fast_one(lone: Any) -> None:
    expected = lone.generate(TEXT, max_new_tokens=300).text
    with serving(max_rows=2, max_tokens=300) as served, socket.socket() as slow:
        address = urlsplit(served.url)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.settimeout(PATIENCE)
        slow.connect((address.hostname, address.port))
        content = json.dumps(body(stream=True, max_tokens=300, logprobs=20)).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
        slow.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        assert eventually(lambda: served.scheduler.running == 1)
        assert post(served, max_tokens=300).json()["choices"][0]["text"] == expected
        told = b"".join(iter(partial(slow.recv, 1 << 16), b""))
    lines = [line.strip() for line in told.decode().splitlines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in json.loads(line.removeprefix("data: "))["choices"]]
    assert "".join(choice["text"] for choice in choices) == expected


def test_values_that_overflow_are_refused_and_harm_nobody(lone: Any) -> None:
    """A temperature near 0 makes the draft's numbers overflow, in the pass of all rows."""
    with serving(slow=0.02) as slow:
        neighbour = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=60, stream=True)
        text = next(iter(neighbour)).choices[0].text
        for extreme in ({"temperature": 1e-40}, {"repetition_penalty": 1e-40}):
            assert post(slow, max_tokens=5, **extreme).status_code == 400
        text += "".join(chunk.choices[0].text for chunk in neighbour)
        assert text == lone.generate(TEXT, max_new_tokens=60).text
        for low in ({"temperature": 1e-6, "top_p": 1e-9}, {"repetition_penalty": 0.01}, {"repetition_penalty": 100}):
            assert post(slow, max_tokens=5, **low).status_code == 200


def test_a_full_queue_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who are sent away cost nothing: their prompts are not even encoded."""
    with serving(slow=0.02, max_rows=1, max_queue=0) as slow:
        stream = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=400, stream=True)
        next(iter(stream))
        monkeypatch.setattr(slow.gateway, "prompts", lambda body: pytest.fail("the prompt was encoded"))
        refused = post(slow)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        stream.close()


def test_more_answers_than_there_is_ever_room_for_are_refused_for_good() -> None:
    with serving(max_rows=1, max_queue=2) as served:
        refused = post(served, n=4)
        assert refused.status_code == 400
        assert "ask for 3 at most" in refused.json()["error"]["message"]


def test_who_is_not_served_within_the_grace_hears_so() -> None:
    found: list[Any] = []
    with serving(slow=0.05, grace_seconds=0.2) as slow:

        def ask(stream: bool) -> None:
            try:
                answer: Any = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=400, stream=stream)
                found.append("".join(chunk.choices[0].text for chunk in answer) if stream else answer)
            except openai.APIError as error:
                found.append(error)

        asking = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in asking:
            thread.start()
        assert eventually(lambda: slow.scheduler.running == 2)
    for thread in asking:
        thread.join()
    assert all("the server has stopped; try another one" in str(error) for error in found)
    assert {getattr(error, "status_code", None) for error in found} == {503, None}


def test_a_panic_in_a_pass_is_logged_by_its_kind_and_place(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as served:
        served.engine.target.prepare()
        with failing(served, Panic("xyzzy")):
            assert post(served, max_tokens=3).status_code == 500
    (line,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert "Panic in " in line
    assert "test_server_faults.py" in line
    assert "xyzzy" not in line


def test_a_panic_beside_the_passes_is_told_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def panics(*arguments: Any, **named: Any) -> Any:
        raise Panic

    monkeypatch.setattr(Shape, "chunk", panics)
    with serving() as served:
        assert "the answer failed (Panic)" in post(served, max_tokens=3, stream=True).text


def test_prompts_and_answers_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    secret = "xyzzy plugh"
    with caplog.at_level(logging.DEBUG), serving(slow=0.01, max_tokens=200) as slow:
        answer = post(slow, prompt=secret, max_tokens=20)
        assert answer.status_code == 200
        assert post(slow, prompt=secret, max_tokens=-1).status_code == 400
        assert post(slow, prompt=secret, stop=secret * 40).status_code == 400
        assert post(slow, prompt=secret, **{secret: secret}).status_code == 400
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(post, slow, prompt=secret)
            assert eventually(lambda: slow.scheduler.running == 1)
            with failing(slow, torch.OutOfMemoryError("out of memory")):
                assert asking.result().status_code == 500
        reset_in_the_middle(slow, body(prompt=secret, stream=True))
        assert eventually(slow.idle)
    assert "tokens of a prompt" in caplog.text
    assert "OutOfMemoryError" in caplog.text
    assert secret not in caplog.text
    assert answer.json()["choices"][0]["text"] not in caplog.text


def test_where_a_token_stands_is_told_in_a_stream_too() -> None:
    with serving() as served:
        whole = post(served, max_tokens=30, logprobs=0).json()["choices"][0]["logprobs"]
        stream = served.client().completions.create(model=NAME, prompt=TEXT, max_tokens=30, logprobs=0, stream=True)
        offsets = [at for chunk in stream if (parts := chunk.choices[0].logprobs) for at in parts.text_offset or []]
        assert offsets == whole["text_offset"] == sorted(offsets)
        assert len(offsets) == 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


class TestProcess:
    """The command itself, in a process of its own."""

    def start(self, folder: Path, port: int, log: Any) -> subprocess.Popen[bytes]:
        code = "from specstream.cli import main; main()"
        model = ["--model", str(folder), "--drafter", "lookup", "--port", str(port)]
        process = subprocess.Popen([sys.executable, "-c", code, "serve", *model], stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}/health"

        def listens() -> bool:
            assert process.poll() is None
            try:
                return httpx.get(url).status_code == 200
            except httpx.TransportError:
                return False

        for _ in range(5):  # a machine that does other work starts slowly
            if eventually(listens):
                return process
        raise AssertionError("it does not listen")

    def test_after_kill_9_it_starts_on_the_same_port_and_a_full_disk_is_no_matter(
        self, folder: Path, lone: Any
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        asked = {"model": str(folder), "prompt": TEXT, "max_tokens": 40}
        url, expected = f"http://127.0.0.1:{port}/v1/completions", lone.generate(TEXT, max_new_tokens=40).text
        first = self.start(folder, port, subprocess.DEVNULL)
        try:
            long = {**asked, "max_tokens": 400, "stream": True}
            with httpx.stream("POST", url, json=long, timeout=PATIENCE) as stream:
                lines = stream.iter_lines()
                next(lines)
                first.kill()
                with pytest.raises(httpx.TransportError):
                    list(lines)
        finally:
            first.kill()
            assert first.wait() == -signal.SIGKILL
        with open("/dev/full", "wb") as full_disk:  # every write to the log fails
            second = self.start(folder, port, full_disk)
        try:
            for _ in range(3):
                assert httpx.post(url, json=asked, timeout=PATIENCE).json()["choices"][0]["text"] == expected
            assert httpx.post(url, json={**asked, "max_tokens": -1}, timeout=PATIENCE).status_code == 400
        finally:
            second.terminate()
            assert second.wait(PATIENCE) == -signal.SIGTERM


def test_a_second_interrupt_ends_it_without_a_traceback(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    command = [sys.executable, "-m", "specstream.cli", "serve", "--model", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in what runs in the background
    )
    assert process.stderr is not None
    with process.stderr as log:
        next(line for line in log if " then: " in line)
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)  # two signals of one moment are one
        process.send_signal(signal.SIGINT)
        assert log.read() == ""
    assert process.wait(PATIENCE) == 0


def test_the_scheduler_of_a_pass_that_never_ends_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("specstream.serving.scheduler.LAST_PASS_SECONDS", 0.1)
    with serving() as served:
        forward, go_on = served.engine.target.forward, threading.Event()

        def stuck(*arguments: Any, **named: Any) -> Any:
            go_on.wait(PATIENCE)
            return forward(*arguments, **named)

        served.engine.target.forward = stuck  # type: ignore[method-assign]
        scheduler: Scheduler = served.scheduler
        stream = served.client().completions.create(model=NAME, prompt=TEXT, max_tokens=400, stream=True)
        assert eventually(lambda: scheduler.running == 1)
        scheduler.stop(0.0)
        assert scheduler.alive
        assert "it is left behind" in caplog.text
        go_on.set()
        served.engine.target.forward = forward  # type: ignore[method-assign]
        with pytest.raises(openai.APIError, match="the server has stopped"):
            list(stream)
