"""An agent with three tools over five turns in a scripted world, through the clients that agents use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from specstream.engine.engine import SpeculativeEngine
from tests.integration.served import NAME, PATIENCE, Served, serving
from tests.tiny import tiny_model, tiny_tokenizer

Call = tuple[str, str, str]
Ask = Callable[[Served, list[dict[str, Any]], str], Call]

ITEM = {"enum": ["pear", "fig"]}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "of the store", "parameters": schema}}


TOOLS = [
    tool("count", item=ITEM),
    tool("put", item=ITEM, number={"enum": [1, 2, 3]}),
    tool("report", empty={"type": "boolean"}),
]
SCRIPT = ["count", "put", "count", "put", "report"]


class World:
    """A store of two kinds of fruit, and what was done in it."""

    def __init__(self) -> None:
        self.store, self.done = {"pear": 0, "fig": 0}, list[tuple[str, Any]]()

    def call(self, name: str, arguments: Any) -> str:
        """What a tool answers."""
        self.done.append((name, arguments))
        if name == "count":
            return f"there are {self.store[arguments['item']]}"
        if name == "put":
            self.store[arguments["item"]] += arguments["number"]
            return "done"
        assert name == "report"
        return "right" if arguments["empty"] == (not any(self.store.values())) else "wrong"


def with_chats(served: Served, turns: list[dict[str, Any]], name: str) -> Call:
    chosen: Any = {"type": "function", "function": {"name": name}}
    asked: Any = {"messages": turns, "tools": TOOLS, "tool_choice": chosen, "parallel_tool_calls": False}
    answer = served.client().chat.completions.create(model=NAME, **asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    return call.id, call.function.name, call.function.arguments


def with_litellm(served: Served, turns: list[dict[str, Any]], name: str) -> Call:
    litellm = pytest.importorskip("litellm")
    where = {"model": f"openai/{NAME}", "api_base": f"{served.url}/v1", "api_key": "none", "timeout": PATIENCE}
    chosen = {"type": "function", "function": {"name": name}}
    held = {"tools": TOOLS, "tool_choice": chosen, "parallel_tool_calls": False}
    answer = litellm.completion(**where, messages=turns, stream=True, **held)
    whole = litellm.stream_chunk_builder(list(answer))
    assert whole.choices[0].finish_reason == "tool_calls"
    (call,) = whole.choices[0].message.tool_calls
    return call.id, call.function.name, call.function.arguments


def with_responses(served: Served, turns: list[dict[str, Any]], name: str) -> Call:
    items: list[Any] = []
    for turn in turns:
        if turn["role"] == "tool":
            items.append({"type": "function_call_output", "call_id": turn["tool_call_id"], "output": turn["content"]})
        for call in turn.get("tool_calls", ()):
            items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
        if turn["role"] == "user":
            items.append(turn)
    flat: list[Any] = [{"type": "function", **each["function"]} for each in TOOLS]
    asked: Any = {"tools": flat, "tool_choice": {"type": "function", "name": name}, "parallel_tool_calls": False}
    (found,) = served.client().responses.create(model=NAME, input=items, **asked).output
    assert found.type == "function_call"
    return found.call_id, found.name, found.arguments


def told(served: Served, ask: Ask) -> World:
    """The world after five turns."""
    world = World()
    turns: list[dict[str, Any]] = [{"role": "user", "content": "count the cat and add one"}]
    for name in SCRIPT:
        at, called, arguments = ask(served, turns, name)
        function = {"name": called, "arguments": arguments}
        turns.append({"role": "assistant", "tool_calls": [{"id": at, "type": "function", "function": function}]})
        turns.append({"role": "tool", "tool_call_id": at, "content": world.call(called, json.loads(arguments))})
    return world


def agent_server(**settings: Any) -> SpeculativeEngine:
    return SpeculativeEngine(tiny_model(hidden_size=64, context=4096), tiny_tokenizer(), **settings)


@pytest.fixture(scope="module")
def alone() -> Iterator[World]:
    with serving(agent_server(drafter="none"), prefix_cache_gb=0) as plain:
        yield told(plain, with_chats)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(agent_server(drafter="lookup", adaptive=False, gamma=3)) as running:
        yield running


@pytest.mark.filterwarnings("ignore")  # of the clients' own packages
@pytest.mark.parametrize("ask", [with_chats, with_responses, with_litellm])
def test_an_agent_does_what_it_does_with_the_model_alone(
    served: Served, alone: World, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it asks the network otherwise
    world = told(served, ask)
    assert [name for name, _ in world.done] == SCRIPT
    assert (world.done, world.store) == (alone.done, alone.store)


def test_what_an_agent_said_before_is_not_read_again(served: Served) -> None:
    turns = [{"role": "user", "content": "one two three four five six seven eight nine ten"}]
    chosen = {"type": "function", "function": {"name": "count"}}
    asked: Any = {"model": NAME, "tools": TOOLS, "tool_choice": chosen}
    first = served.client().chat.completions.create(messages=turns, **asked)
    message = first.choices[0].message.model_dump(exclude_none=True)
    calls = [{"role": "tool", "tool_call_id": call["id"], "content": "ten"} for call in message["tool_calls"]]
    again = served.client().chat.completions.create(messages=[*turns, message, *calls], **asked)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached >= first.usage.prompt_tokens - 1
