from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.backends import until_end
from benchmarks.prompts import Item
from benchmarks.serve import Worker, memory, serve
from benchmarks.systems import parse_system
from benchmarks.workers import Models, NotInstalledError, WorkerError, WorkerProcess

FAKE = Path(__file__).with_name("fake_worker.py")
MODELS = Models(target="T", draft="D", dtype="float32", eos=(2,), pad=0, context=99)
ITEM = Item(name="two", prompts=[[1, 2, 3], [4]])


def started(behaviour: str, system: str = "vllm:draft_model@3") -> WorkerProcess:
    return WorkerProcess(parse_system(system), MODELS, command=[sys.executable, str(FAKE), behaviour])


def test_a_worker_is_loaded_asked_and_closed() -> None:
    with started("good") as worker:
        request = worker.loaded["request"]
        assert (request["engine"], request["mode"], request["k"], request["draft"]) == ("vllm", "draft_model", 3, "D")
        assert (request["target"], request["eos"], request["context"]) == ("T", [2], 99)
        reply = worker.generate(ITEM, 5)
        assert (reply.tokens, reply.speed, reply.peak_mib) == ([[3], [1]], 4.0, 7.0)
        process = worker._process
    assert process.poll() == 0
    worker.close()  # a second time does no harm


def test_a_system_that_does_not_draft_is_given_no_draft() -> None:
    with started("good", "vllm:ngram") as worker:
        assert worker.loaded["request"]["draft"] is None


def test_a_package_that_is_missing_is_named_with_its_remedy() -> None:
    with pytest.raises(NotInstalledError, match=r"vllm:draft_model@3: not installed \(No module .*pip install"):
        started("missing")


def test_a_failure_is_one_line_and_the_worker_goes_on() -> None:
    with started("failing") as worker:
        for _ in range(2):
            with pytest.raises(WorkerError, match="out of luck"):
                worker.generate(ITEM, 5)


def test_a_worker_that_dies_is_quoted() -> None:
    with started("dying") as worker, pytest.raises(WorkerError, match="code 3: last words"):
        worker.generate(ITEM, 5)


class Backend:
    def __init__(self, request: dict[str, Any]) -> None:
        self.versions = {"fake": "2"}
        if request["engine"] == "absent":
            raise ModuleNotFoundError("No module named 'absent'", name="absent")

    def generate(
        self, prompts: list[list[int]], limit: int, ignore_eos: bool
    ) -> tuple[list[list[int]], dict[str, Any]]:
        if limit > 8:
            raise ValueError("too\nmany")
        return [prompt[:limit] for prompt in prompts], {"passes": 1}


def asked(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    replies = io.StringIO()
    serve([json.dumps(request) + "\n" for request in requests], replies, Worker(Backend))
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def test_the_other_side_answers_line_by_line_until_it_is_told_to_close() -> None:
    load, close = {"op": "load", "engine": "fake"}, {"op": "close"}
    generate = {"op": "generate", "prompts": [[5, 6, 7]], "limit": 2, "ignore_eos": False}
    loaded, generated = asked(load, generate, close, generate)
    assert loaded["versions"]["fake"] == "2"
    assert (generated["tokens"], generated["counts"]) == ([[5, 6]], {"passes": 1})
    assert generated["seconds"] > 0
    assert generated["memory"]["peak_mib"] >= generated["memory"]["now_mib"] > 1


def test_the_other_side_survives_failures() -> None:
    generate = {"op": "generate", "prompts": [[5]], "limit": 9, "ignore_eos": False}
    unloaded, absent, _, failed = asked(
        generate, {"op": "load", "engine": "absent"}, {"op": "load", "engine": "fake"}, generate
    )
    assert "nothing is loaded" in unloaded["error"]
    assert absent["missing"] == "absent"
    assert failed["error"] == "ValueError: too many"


def test_memory_is_in_mebibytes() -> None:
    assert 1 < memory()["now_mib"] < 1_000_000


def test_padding_behind_the_end_is_cut() -> None:
    assert until_end([5, 6, 2, 2, 2], [2]) == [5, 6, 2]
    assert until_end([5, 6], [2]) == [5, 6]
    assert until_end([5, 2, 6], []) == [5, 2, 6]
