from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.servers import (
    MemorySampler,
    Served,
    ServerError,
    ServerProcess,
    family,
    free_port,
    growth,
    llama_cpp,
    ours,
    vllm,
)
from benchmarks.serving import Checks, in_turn, metrics, opening, ratios, report, settled
from benchmarks.traffic import Crowd, Outcome, Question, Request, questions, requests
from specstream.serving.deployment import DeploymentConfig

ASKED = [Question(chat=None, text="go on", max_tokens=3), Question(chat=(("user", "hello"),), text="", max_tokens=5)]
EXPECTED = [("one two", "length", 3), ("hi", "stop", 2)]


class Fake(BaseHTTPRequestHandler):
    """Answers as it is told to: one behaviour for each request, in turn."""

    behaviours: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text, reason, tokens = EXPECTED["messages" in body]
        behaviour = self.behaviours.pop(0) if self.behaviours else "good"
        if behaviour == "full":
            self.say(429, {"error": {"code": "queue_full"}}, **{"retry-after": "1"})
        elif behaviour == "bare 429":
            self.say(429, {"error": {"code": None}})
        elif behaviour == "broken":
            self.say(500, {"error": {"message": "out of luck"}})
        elif body.get("stream"):
            whole = behaviour != "no end"
            self.stream("messages" in body, text, reason if whole else None, 0 if behaviour == "uncounted" else tokens)
        else:
            said = {"message": {"content": text}} if "messages" in body else {"text": text}
            self.say(200, {"choices": [{**said, "finish_reason": reason}], "usage": {"completion_tokens": tokens}})

    def stream(self, chat: bool, text: str, reason: str | None, tokens: int) -> None:
        pieces: list[Any] = [{"delta": {"content": part}} if chat else {"text": part} for part in text]
        chunks = [{"choices": [{**piece, "finish_reason": None}]} for piece in pieces]
        chunks.append({"choices": [{"delta": {}, "text": "", "finish_reason": reason}]})
        chunks.append({"choices": [], "usage": {"completion_tokens": tokens}})
        self.send_response(200)
        self.end_headers()
        ends = ["[DONE]"] if reason else []
        for data in [*map(json.dumps, chunks), *ends]:
            self.wfile.write(f"data: {data}\n\n".encode())

    def say(self, status: int, content: Any, **headers: str) -> None:
        sent = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(sent)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def fake(*behaviours: str) -> Iterator[str]:
    handler = type("Told", (Fake,), {"behaviours": list(behaviours)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def asked_of(url: str, *asking: Request, clients: int = 1) -> tuple[list[Outcome], Checks]:
    checks = Checks(ASKED, EXPECTED, 100)
    Crowd(url, "m", ASKED).ask(asking, clients, checks.take)
    return checks.outcomes, checks


FOUR = [Request(question=question, stream=stream) for question in (0, 1) for stream in (False, True)]


def test_every_kind_of_answer_is_read_and_compared() -> None:
    with fake() as url:
        outcomes, checks = asked_of(url, *FOUR * 3, clients=4)
    assert len(outcomes) == 12
    assert checks.problems == []
    assert {(each.text, each.reason, each.tokens) for each in outcomes} == set(EXPECTED)
    assert all(each.seconds >= each.first_seconds > 0 for each in outcomes if each.request.stream)
    assert checks.as_json()["tokens"] == 6 * 3 + 6 * 2


@pytest.mark.parametrize("field", [0, 1, 2])
def test_an_answer_that_differs_is_a_problem(field: int) -> None:
    wrong = [list(each) for each in EXPECTED]
    wrong[1][field] = "else"
    checks = Checks(ASKED, [tuple(each) for each in wrong], 100)  # type: ignore[misc]
    with fake() as url:
        Crowd(url, "m", ASKED).ask(FOUR, 1, checks.take)
    assert len(checks.problems) == 2
    assert all("question=1" in problem for problem in checks.problems)


def test_who_leaves_is_compared_as_far_as_it_came() -> None:
    leaving = Request(question=0, stream=True, leaves=3)
    with fake() as url:
        (outcome,), checks = asked_of(url, leaving)
    assert (outcome.text, outcome.left, checks.problems) == ("one", True, [])
    checks.take(replace(outcome, text="ono"))
    assert len(checks.problems) == 1


def test_a_full_queue_is_obeyed_and_counted() -> None:
    with fake("full", "full") as url:
        (outcome,), checks = asked_of(url, FOUR[0])
    assert (outcome.refusals, outcome.error, checks.problems) == (2, "", [])
    assert outcome.seconds >= 2
    assert checks.as_json()["refusals"] == 2


@pytest.mark.parametrize(
    ("behaviour", "request_", "words"),
    [
        ("bare 429", FOUR[0], "429 with '' and None"),
        ("broken", FOUR[0], "500: .*out of luck"),
        ("broken", FOUR[1], "500: .*out of luck"),
        ("no end", FOUR[1], "the stream ended without"),
    ],
)
def test_what_goes_wrong_is_a_problem(behaviour: str, request_: Request, words: str) -> None:
    with fake(behaviour) as url:
        (outcome,), checks = asked_of(url, request_)
    assert outcome.error
    (problem,) = checks.problems
    assert re.search(words, problem)
    assert "1 failed, 1 wrong" in report(checks, None, 1, 1.0)


def test_only_a_server_that_counts_has_to_count() -> None:
    with fake("uncounted", "uncounted") as url:
        (outcome,), _ = asked_of(url, FOUR[1])
        assert outcome.error == "the stream ended before the answer did"
        outcomes: list[Outcome] = []
        Crowd(url, "m", ASKED, usage=False).ask([FOUR[1]], 1, outcomes.append)
    assert (outcomes[0].text, outcomes[0].tokens, outcomes[0].error) == ("one two", 0, "")


def test_an_endless_load_ends_when_its_time_is_up() -> None:
    outcomes: list[Outcome] = []
    with fake() as url:
        seconds = Crowd(url, "m", ASKED).ask(itertools.cycle(FOUR), 3, outcomes.append, seconds=0.3)
    assert seconds >= 0.3
    assert outcomes
    assert not any(each.error for each in outcomes)


def test_a_server_that_is_not_there_is_a_problem() -> None:
    (outcome,), _ = asked_of(f"http://127.0.0.1:{free_port()}", FOUR[0])
    assert "ConnectError" in outcome.error


def test_the_load_is_the_same_for_the_same_seed_and_mixed() -> None:
    asked = questions(40, longest=100, seed=3)
    assert asked == questions(40, longest=100, seed=3)
    assert len({each.prompt if each.chat is None else each.chat[0][1] for each in asked}) == 40
    assert {each.max_tokens for each in asked} == {5, 10, 25, 50, 75, 100}
    assert {each.path for each in asked} == {"chat/completions", "completions"}
    asking = requests(200, 40, leaving=0.2, seed=1)
    assert {each.question for each in asking} == set(range(40))
    assert 20 < sum(each.leaves is not None for each in asking) < 60
    assert 60 < sum(each.stream for each in asking) < 140
    assert asking == requests(200, 40, leaving=0.2, seed=1) != requests(200, 40, leaving=0.2, seed=2)


def test_everybody_begins_with_the_longest_prompt() -> None:
    asked = questions(40, longest=100, seed=3)
    (first, *others) = opening(asked, 5)
    assert len(others) == 4
    assert all(each == first for each in others)
    assert first.leaves is None
    assert len(str(asked[first.question].prompt)) == max(len(str(each.prompt)) for each in asked)


def test_growth_is_the_slope_behind_the_beginning() -> None:
    chance = random.Random(0)
    samples = [(float(at), 500 + max(0, 50 - at) * 9 + at / 60 + chance.gauss(0, 3)) for at in range(1000)]
    grown = growth(samples)
    assert grown.mib_per_hour == pytest.approx(60, abs=5 * grown.error)
    assert grown.error < 5
    assert grown.end_mib - grown.start_mib == pytest.approx(10, abs=2)
    assert grown.peak_mib > 900
    assert grown.minutes == pytest.approx(799 / 60)
    flat = growth([(float(at), 500.0) for at in range(100)])
    assert (flat.mib_per_hour, flat.error) == (0, 0)
    with pytest.raises(ServerError, match="too few"):
        growth(samples[:3])


def test_memory_is_that_of_a_process_and_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            while len(family(process.pid)) < 2:
                assert process.poll() is None
            with MemorySampler(process.pid, 0.01) as sampler:
                while len(sampler.samples) < 3:
                    pass
            assert all(1 < mib < 1000 for _, mib in sampler.samples)
        finally:
            for pid in family(process.pid):
                os.kill(pid, 9)


def test_a_server_that_ends_is_quoted() -> None:
    with pytest.raises(ServerError, match="x ended with code 3: last words"):
        ServerProcess("x", [sys.executable, "-c", "print('last words'); raise SystemExit(3)"], {}, free_port())


def test_commands_of_servers() -> None:
    served = Served(target="/m", dtype="float32", rows=8, queue=4, most=96, context=2048)
    command, variables = ours(served, 7, ["drafter=none"])
    config = DeploymentConfig.read(environment=variables)
    assert command[-3:] == ["serve", "--port", "7"]
    assert (config.model_path, config.dtype, config.max_rows, config.max_queue) == ("/m", "float32", 8, 4)
    assert config.drafter == "none"
    command, _ = llama_cpp(replace(served, target="/m.gguf"), 7, "/l/bin/python")
    assert command[:5] == ["/l/bin/python", "-m", "llama_cpp.server", "--model", "/m.gguf"]
    said = dict(zip(command[3::2], command[4::2], strict=True))
    assert (said["--interrupt_requests"], said["--logits_all"], said["--n_threads"]) == ("false", "false", "-1")
    command, _ = vllm(served, 7, "/v/bin/python", ["--enforce-eager"])
    assert command[:3] == ["/v/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert command[command.index("--max-num-seqs") + 1] == "8"
    assert "--enforce-eager" in command


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    asked: list[str] = []

    def side(name: str, seconds: float) -> Any:
        def ask() -> tuple[float, int]:
            asked.append(name)
            return seconds, 100

        return ask

    speeds = in_turn({"one": side("one", 4.0), "many": side("many", 2.0)}, 2)
    assert asked == ["one", "many", "many", "one", "one", "many"]
    assert speeds == {"one": [25.0, 25.0], "many": [50.0, 50.0]}
    assert ratios(speeds, "many") == {"one": [2.0, 2.0]}


def test_a_server_that_tells_no_figures_has_not_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.SETTLING_SECONDS", 0.1)
    with fake() as url:
        (problem,) = settled(url)
        assert "501" in problem
        with pytest.raises(Exception, match="501"):
            metrics(url)
