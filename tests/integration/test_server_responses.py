"""The Responses API, with OpenAI's client and its types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.integration.served import NAME, PATIENCE, Served, serving
from tests.integration.test_server_reasoning import SCHEMA, TOOLS, engine

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: Any = {"type": "function", "strict": True, **TOOLS[0]["function"]}
FORMAT: Any = {"format": {"type": "json_schema", **SCHEMA["json_schema"]}}
CALL: Any = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 150}
CASES: dict[str, Any] = {
    "text": {"input": "one two three", "max_output_tokens": 24},
    "schema": {"input": "one two", "text": FORMAT},
    "call": {"input": [{"role": "user", "content": "one two"}], **CALL},
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    told = engine()
    told.tokenizer.chat_template = told.tokenizer.chat_template.replace("is not false", "is true")
    with serving(told, max_tokens=150, reasoning_parser="none") as running:
        yield running


@pytest.fixture(scope="module")
def thinking() -> Iterator[Served]:
    with serving(engine(), max_tokens=150) as running:
        yield running


def post(served: Served, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/responses", json={"model": NAME, **body}, timeout=PATIENCE)


def streamed(served: Served, **body: Any) -> list[Any]:
    """The events of a stream, each checked against OpenAI's types and numbered in order."""
    lines = post(served, stream=True, **body).text.splitlines()
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [line.removeprefix("event: ") for line in lines if line.startswith("event: ")] == [
        each["type"] for each in told
    ]
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    for each in told:
        EVENTS.validate_python(each)
    return told


def output(response: Any) -> list[Any]:
    """Without the names, which are new each time."""
    items = json.loads(json.dumps(response["output"]))
    return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in items]


@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_the_chats(served: Served, case: str) -> None:
    asked = dict(CASES[case])
    response = post(served, **asked).json()
    Response.model_validate(response)
    more: dict[str, Any] = {"text": {}, "schema": {"response_format": SCHEMA}, "call": {**CALL, "tools": TOOLS}}[case]
    most = more.pop("max_output_tokens", None) or asked.get("max_output_tokens")
    said = asked["input"] if isinstance(asked["input"], str) else asked["input"][0]["content"]
    body = {"model": NAME, "messages": [{"role": "user", "content": said}], "max_completion_tokens": most, **more}
    chat = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    message = chat["choices"][0]["message"]
    (item,) = response["output"]
    if case == "call":
        function = message["tool_calls"][0]["function"]
        assert {"name": item["name"], "arguments": item["arguments"]} == function
        assert item["call_id"].startswith("call_")
    else:
        assert item["content"][0]["text"] == message["content"]
    whole = case != "text"
    assert (response["status"], item["status"]) == (("completed", "completed") if whole else ("incomplete",) * 2)
    assert response["incomplete_details"] == (None if whole else {"reason": "max_output_tokens"})
    assert response["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert (response["store"], response["speculation"]["lossless"]) == (False, True)


@pytest.mark.parametrize("case", CASES)
def test_a_stream_has_its_events_in_order_and_ends_with_the_whole(served: Served, case: str) -> None:
    events = streamed(served, **CASES[case])
    kinds = list(dict.fromkeys(each["type"].removeprefix("response.") for each in events))
    part = (
        ["function_call_arguments.delta", "function_call_arguments.done"]
        if case == "call"
        else ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    )
    last = "incomplete" if case == "text" else "completed"
    assert kinds == ["created", "in_progress", "output_item.added", *part, "output_item.done", last]
    final = events[-1]["response"]
    assert output(final) == output(post(served, **CASES[case]).json())
    told = "".join(each["delta"] for each in events if each["type"].endswith(".delta"))
    (item,) = final["output"]
    assert told == (item["arguments"] if case == "call" else item["content"][0]["text"])
    assert events[0]["response"]["output"] == []


def test_a_thought_is_an_item_of_its_own_that_may_come_back(thinking: Served) -> None:
    events = streamed(thinking, input="one two", text=FORMAT)
    final = events[-1]["response"]
    thought, message = final["output"]
    assert [thought["type"], message["type"]] == ["reasoning", "message"]
    assert thought["content"][0]["text"]
    assert json.loads(message["content"][0]["text"]) in ("cat", "dog")
    deltas = [each["delta"] for each in events if each["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == thought["content"][0]["text"]
    assert final["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    turns = [{"role": "user", "content": "one"}, *final["output"], {"role": "user", "content": "two"}]
    read = [
        post(thinking, input=each, max_output_tokens=1).json()["usage"]["input_tokens"]
        for each in (turns, [turns[0], *turns[2:]])
    ]
    assert read[0] > read[1] + 2


def test_what_the_assistant_thought_said_and_called_is_one_turn(served: Served) -> None:
    turns = [
        {"role": "developer", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "message", "role": "user", "content": "two"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "dog"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "cat", "annotations": []}]},
        *({"type": "function_call", "call_id": each, "name": "weather", "arguments": "{}"} for each in "ab"),
        *({"type": "function_call_output", "call_id": each, "output": "ten"} for each in "ab"),
        {"role": "assistant", "content": "six"},
    ]
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    chat = [
        {"role": "system", "content": "one two"},
        {"role": "system", "content": "one"},
        {"role": "user", "content": "two"},
        {
            "role": "assistant",
            "content": "cat",
            "reasoning_content": "dog",
            "tool_calls": [{"id": each, **call} for each in "ab"],
        },
        *({"role": "tool", "tool_call_id": each, "content": "ten"} for each in "ab"),
        {"role": "assistant", "content": "six"},
    ]
    read = post(served, input=turns, instructions="one two", tools=[WEATHER], max_output_tokens=1).json()
    body = {"messages": chat, "tools": TOOLS, "max_tokens": 1}
    same = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    assert read["usage"]["input_tokens"] == same["usage"]["prompt_tokens"]
    assert read["instructions"] == "one two"


def test_openais_client_asks_whole_streamed_and_at_once(served: Served) -> None:
    client, asked = served.client(), {"model": NAME, **CASES["schema"]}
    whole = client.responses.create(**asked, metadata={"a": "b"}, store=True, reasoning={"effort": "low"})
    assert json.loads(whole.output_text) in ("cat", "dog")
    assert whole.metadata == {"a": "b"}
    with client.responses.stream(model=NAME, input="one two", text=FORMAT) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    called = client.responses.create(model=NAME, **CASES["call"])
    (call,) = called.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")

    async def several() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=PATIENCE) as other:
            found = await asyncio.gather(*(other.responses.create(**asked) for _ in range(3)))
            events = [event async for event in await other.responses.create(**asked, stream=True)]
        return [*(each.output_text for each in found), events[-1].response.output_text]

    assert asyncio.run(several()) == [whole.output_text] * 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "one", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "one", "background": True}, "background"),
        ({"input": "one", "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": "one", "tools": [WEATHER, WEATHER]}, "tools"),
        ({"input": "one", "tool_choice": "required"}, "tool_choice"),
        ({"input": "one", "tools": [WEATHER], "tool_choice": "required", "text": FORMAT}, "text"),
        ({"input": "one", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text"),
        ({"input": "one", "text": {"format": {"type": "json_schema", "schema": {"$ref": "#"}}}}, "text"),
        ({"input": "one " * 3000}, "input"),
        ({"input": "one", "max_tokens": 3}, "max_tokens"),
        ({"input": "one", "temperature": 1e-9}, "temperature"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "no"}]}, "input.0.arguments"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input.0.type"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_its_name_here(served: Served, body: Any, param: str) -> None:
    refused = post(served, **body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


@pytest.mark.parametrize(
    ("include", "told"),
    [
        (["nope"], "include.0 is 'nope'; give a value that is 'reasoning.encrypted_content', 'message.input_image"),
        (["reasoning.encrypted_content", 1], "include.1 is 1; give a value that is 'reasoning.encrypted_content'"),
        (["message.output_text.logprobs"], "log probabilities are not supported here; ask /v1/chat/completions"),
        ("reasoning.encrypted_content", "include is 'reasoning.encrypted_content'; give a value that is a list"),
    ],
)
def test_what_cannot_be_included_is_refused_in_openais_form(served: Served, include: Any, told: str) -> None:
    body = {"input": "one two", "max_output_tokens": 4, "include": include}
    answer = httpx.post(f"{served.url}/v1/responses", json=body, timeout=PATIENCE)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert told in error["message"] and error["type"] == "invalid_request_error"
    assert error["param"].startswith("include") and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("include", [[], ["reasoning.encrypted_content", "web_search_call.action.sources"], None])
def test_what_nothing_here_would_add_may_be_included(served: Served, include: Any) -> None:
    body = {"input": "one two", "max_output_tokens": 4, "include": include}
    answer = httpx.post(f"{served.url}/v1/responses", json=body, timeout=PATIENCE)
    assert answer.status_code == 200
    assert "include" not in answer.json()


def test_a_failure_within_a_stream_is_its_last_event(served: Served) -> None:
    endless = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
    form = {"format": {"type": "json_schema", "name": "a", "schema": endless}}
    last = streamed(served, input="one", text=form)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "the JSON schema cannot be followed beyond token" in last["response"]["error"]["message"]


def test_a_budget_and_an_effort_are_those_of_a_chat(thinking: Served) -> None:
    chat = {"model": NAME, "messages": [{"role": "user", "content": "one two"}], "max_tokens": 30}
    for more, same in (
        ({"thinking_token_budget": 5}, {"thinking_token_budget": 5}),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ({"reasoning": {"effort": "none"}}, {"reasoning_effort": "none"}),
        ({"reasoning": {}}, {}),
    ):
        response = post(thinking, input="one two", max_output_tokens=30, **more).json()
        Response.model_validate(response)
        answer = httpx.post(f"{thinking.url}/v1/chat/completions", json={**chat, **same}, timeout=PATIENCE).json()
        message = answer["choices"][0]["message"]
        told = {item["type"]: item["content"][0]["text"] for item in response["output"]}
        assert told.get("reasoning", "") == message.get("reasoning_content", "")
        assert told.get("message", "") == (message["content"] or "")
        assert response["usage"]["input_tokens"] == answer["usage"]["prompt_tokens"]
        effort = more.get("reasoning", {}).get("effort")  # type: ignore[attr-defined]
        assert response["reasoning"] == {"effort": effort, "summary": None}
    refused = post(thinking, input="a", thinking_token_budget=5, reasoning={"effort": "none"}).json()["error"]
    assert refused["message"] == "thinking_token_budget is 5 and the effort none; leave one of both out"
    refused = post(thinking, input="a", reasoning={"effort": "much"}).json()["error"]
    assert (refused["param"], refused["code"]) == ("reasoning.effort", "invalid_body")
