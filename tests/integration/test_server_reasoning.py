"""Reasoning models over HTTP: thoughts told from answers, their budget, and what holds behind them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from specstream.engine.engine import SpeculativeEngine
from tests.integration.served import NAME, PATIENCE, Served, serving
from tests.tiny import tiny_model, tiny_tokenizer

CHAT: list[dict[str, Any]] = [{"role": "user", "content": "one two three"}]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% endfor %}{{ reasoning_effort }}<assistant>"
    "{% if enable_thinking is not false %}<think>\n{% endif %}"
)
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["cat", "dog"]}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


def engine(**settings: Any) -> SpeculativeEngine:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = TEMPLATE
    options: dict[str, Any] = {"drafter": "lookup", "adaptive": False, "gamma": 3, **settings}
    return SpeculativeEngine(tiny_model(vocab_size=302, context=2048), tokenizer, **options)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine(), max_tokens=200) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with serving(engine(drafter="none"), max_tokens=200) as running:
        yield running


def ask(served: Served, **more: Any) -> httpx.Response:
    body = {"model": NAME, "messages": CHAT, "max_tokens": 24, **more}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_budget_ends_the_thought_and_the_answer_goes_on(served: Served, temperature: float) -> None:
    answer = ask(served, thinking_token_budget=5, temperature=temperature, seed=1, logprobs=True).json()
    message, logprobs = answer["choices"][0]["message"], answer["choices"][0]["logprobs"]["content"]
    end = [each["token"] for each in logprobs].index("</think>")
    assert 5 <= end <= 8  # in the middle of a character it is completed first

    def text(part: list[Any]) -> str:
        return bytes(byte for each in part for byte in each["bytes"]).decode(errors="replace")

    assert message["reasoning_content"] == text(logprobs[:end]).strip("\n")
    assert message["content"] == text(logprobs[end + 1 :]).lstrip("\n")
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == end + 1


def test_a_thought_that_does_not_end_is_no_answer(served: Served) -> None:
    answer = ask(served, logit_bias={"301": -100}).json()  # the end tag
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"]
    assert message["content"] is None
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 24
    told = ask(served, chat_template_kwargs={"enable_thinking": False}).json()
    assert "reasoning_content" not in told["choices"][0]["message"]
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize(
    "more", [{}, {"tools": TOOLS, "tool_choice": "required"}, {"response_format": SCHEMA}], ids=str
)
def test_a_stream_says_the_same_in_parts(served: Served, more: Any) -> None:
    given = {"model": NAME, "messages": CHAT, "extra_body": {"thinking_token_budget": 9}, **more}
    (whole,) = served.client().chat.completions.create(**given).choices
    said = {"reasoning_content": "", "content": "", "arguments": ""}
    for chunk in served.client().chat.completions.create(stream=True, **given):
        delta = chunk.choices[0].delta
        said["content"] += delta.content or ""
        said["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
        said["arguments"] += "".join(call.function.arguments for call in delta.tool_calls or ())
    calls = whole.message.tool_calls or []
    assert said == {
        "reasoning_content": whole.message.reasoning_content,
        "content": whole.message.content or "",
        "arguments": "".join(call.function.arguments for call in calls),
    }
    assert len(calls) == ("tools" in more)
    assert "think" not in "".join(said.values())


@pytest.mark.parametrize(
    "more", [{}, {"tools": TOOLS, "tool_choice": "required"}, {"response_format": SCHEMA}], ids=str
)
def test_a_held_thought_and_what_follows_are_those_of_the_masked_model_alone(
    served: Served, plain: Served, more: Any
) -> None:
    held = {"thinking_token_budget": 7, "max_tokens": 160, "parallel_tool_calls": False, **more}
    drafted, alone = (ask(each, **held).json() for each in (served, plain))
    messages = [each["choices"][0]["message"] for each in (drafted, alone)]
    for message in messages:
        for call in message.get("tool_calls", ()):
            assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
            call.pop("id")
    assert messages[0] == messages[1]
    assert drafted["speculation"]["drafts"].get("rule", 0) >= bool(more)
    assert "rule" not in alone["speculation"]["drafts"]
    if "response_format" in more:
        assert json.loads(messages[0]["content"]) in ("cat", "dog")
        assert messages[0]["reasoning_content"]


def test_a_stop_string_ends_an_answer_behind_its_thought(served: Served) -> None:
    more: dict[str, Any] = {"thinking_token_budget": 4, "response_format": SCHEMA}
    whole = ask(served, **more).json()["choices"][0]["message"]["content"]
    cut = ask(served, **more, stop=[whole[2:]]).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (whole[:2], "stop")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_that_comes_back_is_the_templates_to_read(served: Served, name: str) -> None:
    turns = [*CHAT, {"role": "assistant", "content": "cat", name: "dog dog"}, *CHAT]
    without = [*CHAT, {"role": "assistant", "content": "cat"}, *CHAT]
    read = [ask(served, messages=each, max_tokens=1).json()["usage"]["prompt_tokens"] for each in (turns, without)]
    assert read[0] - read[1] == 2 + len(tiny_tokenizer()("dog dog")["input_ids"])


def test_where_thoughts_are_not_told_they_are_text_and_a_budget_is_refused() -> None:
    with serving(engine(), reasoning_parser="none") as untold:
        message = ask(untold).json()["choices"][0]["message"]
        assert message["content"]
        assert "reasoning_content" not in message
        refused = ask(untold, thinking_token_budget=1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "thinking_token_budget")


def test_an_effort_is_the_templates_to_read_and_none_is_no_thought(served: Served) -> None:
    def read(**more: Any) -> int:
        return int(ask(served, max_tokens=1, **more).json()["usage"]["prompt_tokens"])

    bare = read()
    for effort in ("minimal", "low", "medium", "high", "xhigh"):
        assert read(reasoning_effort=effort) == bare + len(tiny_tokenizer()(effort)["input_ids"])
    given = {"chat_template_kwargs": {"reasoning_effort": "a"}, "reasoning_effort": "high"}
    assert read(**given) == bare + 1  # what is said to the template itself goes over it
    none = ask(served, reasoning_effort="none").json()
    assert "reasoning_content" not in none["choices"][0]["message"]
    forced = ask(served, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}).json()
    assert forced["usage"]["completion_tokens_details"]["reasoning_tokens"] == 1  # the end tag alone
    assert not forced["choices"][0]["message"].get("reasoning_content")
    assert ask(served, reasoning_effort="none", thinking_token_budget=0).status_code == 200
    refused = [
        ask(served, reasoning_effort="none", thinking_token_budget=5),
        ask(served, reasoning_effort="much"),
    ]
    assert [answer.json()["error"]["message"] for answer in refused] == [
        "thinking_token_budget is 5 and the effort none; leave one of both out",
        "reasoning_effort is 'much'; give a value that is 'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'",
    ]
