"""Answers under a schema, over HTTP: the first of them, and those whose schema is given up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from specstream.engine.engine import SpeculativeEngine
from tests.integration.served import NAME, PATIENCE, Served, serving
from tests.tiny import tiny_model, tiny_tokenizer

HOPELESS: tuple[dict[str, Any], ...] = ({"type": "integer", "multipleOf": 829348951}, {"$ref": "#"})
ENDLESS = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(max_tokens=400) as running:
        yield running


def ask(served: Served, schema: Any, **more: Any) -> httpx.Response:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"model": NAME, "messages": [{"role": "user", "content": "one two"}], "response_format": form, **more}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE)


def test_the_first_requests_at_once_are_all_answered() -> None:
    with serving(max_rows=4) as fresh, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda at: ask(fresh, {"enum": [f"cat {at}"]}), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    said = [json.loads(answer.json()["choices"][0]["message"]["content"]) for answer in answers]
    assert said == [f"cat {at}" for at in range(8)]


def test_one_schema_is_read_once_for_all_its_answers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    schemas, read = served.gateway._schemas, []
    mask = schemas.mask

    def noted(*arguments: Any) -> Any:
        read.append(arguments)
        return mask(*arguments)

    monkeypatch.setattr(schemas, "mask", noted)
    answer = ask(served, {"enum": ["cat", "dog"]}, n=4, temperature=1.0, seed=1).json()
    assert {json.loads(choice["message"]["content"]) for choice in answer["choices"]} <= {"cat", "dog"}
    assert len(read) == 1


@pytest.mark.parametrize("schema", HOPELESS, ids=["divisor", "loop"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_followed_is_refused_before_the_answer(served: Served, schema: Any, stream: bool) -> None:
    refused = ask(served, schema, stream=stream)
    assert refused.status_code == 400
    assert "the JSON schema cannot be followed" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "response_format"


def test_what_is_given_up_in_the_middle_is_an_error_and_not_a_stop(served: Served) -> None:
    whole = ask(served, ENDLESS)
    assert whole.status_code == 400, whole.text
    assert "the JSON schema cannot be followed beyond token" in whole.json()["error"]["message"]
    assert whole.json()["error"]["param"] == "response_format"
    lines = [line for line in ask(served, ENDLESS, stream=True).text.splitlines() if line]
    assert "the JSON schema cannot be followed beyond token" in lines[-1]
    assert '"param":"response_format"' in lines[-1]
    assert '"finish_reason":"stop"' not in "".join(lines)
    assert ask(served, {"enum": ["cat"]}).json()["choices"][0]["finish_reason"] == "stop"


FIELDS = {f"field_number_{at}": {"enum": ["one", "two"]} for at in range(6)}
WIDE = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", ["lookup", "mixed", "lookahead", "recycling"])
def test_what_a_schema_leaves_no_choice_of_is_drafted_for_nothing(drafter: Any, temperature: float) -> None:
    model, tokenizer = tiny_model(context=2048), tiny_tokenizer()
    draft = tiny_model(noise=0.02, context=2048) if drafter == "mixed" else None
    engines = (
        SpeculativeEngine(model, tokenizer, drafter="none"),
        SpeculativeEngine(model, tokenizer, draft, drafter=drafter, gamma=3),
    )
    said = []
    for engine in engines:
        with serving(engine, max_tokens=400) as running:
            answers = [ask(running, WIDE, temperature=temperature, seed=seed).json() for seed in range(3)]
            said.append([json.loads(each["choices"][0]["message"]["content"]) for each in answers])
    assert all(set(each) == set(FIELDS) for own in said for each in own)
    speculation = answers[0]["speculation"]
    assert speculation["drafts"]["rule"] > 5
    assert speculation["mean_accepted_length"] > 1.5
    if temperature == 0:
        assert said[0] == said[1]


def test_beside_a_free_answer_it_drafts_for_its_own_row_alone() -> None:
    engine = SpeculativeEngine(tiny_model(context=2048), tiny_tokenizer(), drafter="lookup", gamma=3)
    with serving(engine, max_tokens=400, max_rows=4) as running, ThreadPoolExecutor(4) as pool:
        free = {"model": NAME, "messages": [{"role": "user", "content": "one two"}], "max_tokens": 40}

        def plain(_: int) -> Any:
            return httpx.post(f"{running.url}/v1/chat/completions", json=free, timeout=PATIENCE).json()["choices"]

        alone, held = plain(0), ask(running, WIDE).json()["choices"]
        together = list(pool.map(lambda at: ask(running, WIDE).json()["choices"] if at % 2 else plain(at), range(4)))
    assert together == [alone, held, alone, held]
