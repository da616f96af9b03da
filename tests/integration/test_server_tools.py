"""Tools over HTTP, and what else a request may change of an answer's scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import specstream
from specstream.engine.engine import SpeculativeEngine
from tests.integration.served import NAME, PATIENCE, Served, serving
from tests.tiny import tiny_model, tiny_tokenizer

CHAT: list[dict[str, Any]] = [{"role": "user", "content": "one two three"}]
HERMES = (
    "{% for t in tools or [] %}<tool_call>{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments.city }}{% endfor %}{% endfor %}<assistant>{{ more or '' }}"
)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "a tool", "parameters": schema}}


TOOLS = [tool("weather", city={"enum": ["Rome", "Oslo"]}), tool("add", a={"enum": [1, 2]}, b={"enum": [3, 4]})]


def engine(template: str | None = None, **settings: Any) -> SpeculativeEngine:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    options = {"drafter": "lookup", "adaptive": False, "gamma": 3, **settings}
    return SpeculativeEngine(tiny_model(context=4096), tokenizer, **options)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine(), max_tokens=120) as running:
        yield running


@pytest.fixture(scope="module")
def hermes() -> Iterator[Served]:
    with serving(engine(HERMES), max_tokens=120) as running:
        yield running


def ask(served: Served, **more: Any) -> httpx.Response:
    body = {"model": NAME, "messages": CHAT, **more}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE)


def valid(call: Any) -> bool:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        return arguments["city"] in ("Rome", "Oslo") and len(arguments) == 1
    return call.function.name == "add" and arguments["a"] in (1, 2) and arguments["b"] in (3, 4)


@pytest.mark.parametrize("template", ["served", "hermes"])
@pytest.mark.parametrize("choice", ["required", "weather", "add"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_choice_holds_the_answer_to_the_tools(
    template: str, choice: str, temperature: float, request: pytest.FixtureRequest
) -> None:
    client = request.getfixturevalue(template).client()
    chosen: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    more: Any = {"tools": TOOLS, "tool_choice": chosen, "parallel_tool_calls": False}
    answer = client.chat.completions.create(model=NAME, messages=CHAT, temperature=temperature, seed=3, **more)
    (call,) = answer.choices[0].message.tool_calls
    assert valid(call)
    assert choice in ("required", call.function.name)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (None, "tool_calls")


def test_a_stream_says_the_same_calls_in_parts(served: Served) -> None:
    client = served.client()
    more: Any = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "n": 2, "seed": 1}
    whole = client.chat.completions.create(model=NAME, messages=CHAT, temperature=1.0, **more)
    found: dict[int, list[str]] = {0: ["", ""], 1: ["", ""]}
    reasons, parts = {}, 0
    for chunk in client.chat.completions.create(model=NAME, messages=CHAT, temperature=1.0, stream=True, **more):
        for choice in chunk.choices:
            assert not choice.delta.content
            for call in choice.delta.tool_calls or ():
                parts += 1
                found[choice.index][0] += call.function.name or ""
                found[choice.index][1] += call.function.arguments or ""
            reasons[choice.index] = choice.finish_reason
    assert [tuple(found[choice.index]) for choice in whole.choices] == [
        (choice.message.tool_calls[0].function.name, choice.message.tool_calls[0].function.arguments)
        for choice in whole.choices
    ]
    assert set(reasons.values()) == {"tool_calls"}
    assert parts > 4


def test_calls_and_their_results_go_back_through_the_template(hermes: Served) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turns = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "warm"},
    ]
    asked = ask(hermes, messages=turns, tools=TOOLS, max_tokens=1, chat_template_kwargs={"more": "so"})
    text = "<tool_call>weather<tool_call>add<user>one two three<assistant>weatherRome<tool>warm<assistant>so"
    assert asked.status_code == 200, asked.text
    assert asked.json()["usage"]["prompt_tokens"] == len(tiny_tokenizer()(text)["input_ids"])


def test_an_answer_without_calls_is_what_it_is_without_tools(hermes: Served) -> None:
    kept = {"tools": TOOLS, "tool_choice": "none"}
    plain, given = ask(hermes, max_tokens=9).json(), ask(hermes, max_tokens=9, **kept).json()
    assert given["choices"] == plain["choices"]
    free = ask(hermes, max_tokens=9, tools=TOOLS).json()["choices"][0]
    assert isinstance(free["message"]["content"], str)
    assert "tool_calls" not in free["message"]
    assert free["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "search"}]}, "tools.0.type"),
        ({"tools": [tool("f", a={"$ref": "#/nowhere"})], "tool_choice": "required"}, "tools"),
        ({"tools": [tool("f", a={"$ref": "#"})], "tool_choice": "required"}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "no"}}]}
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
        ({"logit_bias": {"abc": 1}}, "logit_bias.abc"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "logit_bias.3"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"min_tokens": -1}, "min_tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(served: Served, more: dict[str, Any], param: str) -> None:
    refused = ask(served, max_tokens=2, **more)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_a_bias_and_penalties_decide_which_tokens_come(served: Served) -> None:
    def tokens(**more: Any) -> list[str]:
        answer = ask(served, max_tokens=12, logprobs=True, **more).json()
        return [each["token"] for each in answer["choices"][0]["logprobs"]["content"]]

    cat = tiny_tokenizer()("cat")["input_ids"][-1]
    assert set(tokens(logit_bias={str(cat): 100})) == {"cat"}
    free = tokens()
    assert len(set(free)) < len(free)
    assert tokens(presence_penalty=0, frequency_penalty=0.0, logit_bias={}) == free
    assert tokens(presence_penalty=2, frequency_penalty=2) != free


def test_an_answer_has_its_least_tokens_and_may_ignore_its_end(served: Served) -> None:
    end = {"logit_bias": {"0": 100}, "max_tokens": 9}
    assert ask(served, **end).json()["usage"]["completion_tokens"] == 1
    assert ask(served, **end, min_tokens=5).json()["usage"]["completion_tokens"] == 6
    assert ask(served, **end, ignore_eos=True).json()["usage"]["completion_tokens"] == 9


def test_texts_chats_and_tokens_are_turned_into_each_other(served: Served) -> None:
    def post(path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{served.url}/{path}", json=body, timeout=PATIENCE)

    text = "one two ünï"
    tokens = post("tokenize", prompt=text, model=NAME).json()
    assert tokens == {
        "tokens": tiny_tokenizer()(text)["input_ids"],
        "count": len(tokens["tokens"]),
        "max_model_len": 4096,
    }
    assert post("detokenize", tokens=tokens["tokens"]).json() == {"prompt": text}
    chat = post("tokenize", messages=CHAT).json()
    assert chat["count"] == ask(served, max_tokens=1).json()["usage"]["prompt_tokens"]
    assert post("tokenize", messages=CHAT, add_generation_prompt=False).json()["count"] < chat["count"]
    assert post("tokenize", messages=CHAT, tools=TOOLS).json()["count"] > chat["count"]
    for path, body, param in (
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
        ("tokenize", {"prompt": "\ud800"}, "prompt"),
        ("tokenize", {"prompt": "a" * 900_000}, "prompt"),
        ("detokenize", {"tokens": [300]}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens.0"),
        ("detokenize", {}, "tokens"),
        ("tokenize", {"prompt": "a", "model": "other"}, "model"),
    ):
        raw = json.dumps(body).encode()
        refused = httpx.post(f"{served.url}/{path}", content=raw, headers={"content-type": "application/json"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (404 if param == "model" else 400, param)
    assert httpx.get(f"{served.url}/version").json() == {"version": specstream.__version__}
