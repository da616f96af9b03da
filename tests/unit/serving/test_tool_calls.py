"""How calls of tools are written, held to and read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specstream.serving.tool_calls import FORMATS, Delta, ToolReader, format_of, grammar, rendered
from tests.tiny import tiny_tokenizer

NAMES = ["weather", "add"]
ROME = '{"name": "weather", "arguments": {"city": "Rome {\\"x\\"} ]"}}'
SUM = '{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}'


def read(text: str, size: int) -> tuple[str, list[tuple[str, Any]]]:
    """Content and calls of an answer that comes in pieces of so many characters."""
    reader = ToolReader(NAMES)
    deltas: list[Delta] = []
    for at in range(0, len(text), size):
        deltas += reader.feed(text[at : at + size])
    deltas += reader.finish()
    calls = []
    for index in range(reader.calls):
        own = [delta for delta in deltas if delta.index == index]
        assert [delta.name is not None for delta in own] == [True] + [False] * (len(own) - 1)
        calls.append((own[0].name or "", json.loads("".join(delta.arguments for delta in own))))
    return "".join(delta.content for delta in deltas), calls


WEATHER, ADDED = ("weather", {"city": 'Rome {"x"} ]'}), ("add", {"a": 1, "b": [2, 3]})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"<tool_call>\n{ROME}\n</tool_call>", "", [WEATHER]),
        (
            f"Let me see.\n<tool_call>\n{ROME}\n</tool_call>\n<tool_call>\n{SUM}\n</tool_call>",
            "Let me see.\n",
            [WEATHER, ADDED],
        ),
        (f"<tool_call>[{ROME}, {SUM}]</tool_call>", "", [WEATHER, ADDED]),
        (f"<tool_call>{SUM}</tool_call> done", " done", [ADDED]),
        (ROME.replace("arguments", "parameters"), "", [WEATHER]),
        (f"{ROME}; {SUM}", "", [WEATHER, ADDED]),
        (f"[{ROME}, {SUM}]", "", [WEATHER, ADDED]),
        ('weather{"city": "Rome {\\"x\\"} ]"}add[ARGS]{"a": 1, "b": [2, 3]}', "", [WEATHER, ADDED]),
        ('<tool_call>{"arguments": {"a": 1, "b": [2, 3]}, "name": "add"}</tool_call>', "", [ADDED]),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": [2, 3]}"}</tool_call>', "", [ADDED]),
        ('<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
        (f"So:\n```json\n{SUM}\n```\nand\n```json\n{ROME}\n```", "So:\n\nand\n", [ADDED, WEATHER]),
        (f"<tools>\n{ROME}\n</tools>", "", [WEATHER]),
    ],
)
def test_every_format_is_read_however_it_is_cut(text: str, content: str, calls: list[Any], size: int) -> None:
    said, found = read(text, size)
    assert (said.strip(), found) == (content.strip(), calls)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words < 3 and <tool_",
        '{"answer": [1, {"name": "weather"}]}',
        "[1, 2, 3]",
        "[see] there",
        "weather is fine",
        "add",
        '{"name": "other", "arguments": {}} and more',
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        "<tool_call> nothing </tool_call> at all",
        '<tool_call>\n{"name": "wea',
        "{ not json }",
        "```json\n[1, 2]\n``` and ```json\n{}\n``` and ```py",
        "<tool_call></tool_call>",
        '<tools>\n{"type": "function", "function": {"name": "add"}}\n</tools>',
        '<tool_call>{"name": "a\\x", "arguments": {}}',
    ],
)
def test_what_is_no_call_stays_as_it_was_written(text: str, size: int) -> None:
    assert read(text, size) == (text, [])


def test_arguments_are_told_while_they_are_written() -> None:
    reader = ToolReader(NAMES)
    assert [delta.name for delta in reader.feed('<tool_call>{"name": "weather", "arguments": {"ci')] == [
        "weather",
        None,
    ]
    assert [delta.arguments for delta in reader.feed('ty": "Ro')] == ['ty": "Ro']
    assert [delta.arguments for delta in reader.feed('me"}}</tool')] == ['me"}']
    assert reader.feed("_call>") == reader.finish() == []


def test_an_answer_that_ends_within_arguments_has_given_them_as_far_as_it_went() -> None:
    reader = ToolReader(NAMES)
    told = reader.feed('<tool_call>{"name": "weather", "arguments": {"city": "Ro') + reader.finish()
    assert "".join(delta.arguments for delta in told) == '{"city": "Ro'
    assert not any(delta.content for delta in told)


def test_the_format_is_told_by_the_template_or_by_name() -> None:
    assert format_of("{% if tools %}<tool_call>", "auto") is FORMATS["hermes"]
    assert format_of("{% if tools %}[TOOL_CALLS]", "auto") is FORMATS["mistral"]
    assert format_of("{% if tools %}", "auto") is FORMATS["llama3_json"]
    assert format_of("{{ messages }}", "auto") is format_of(None, "auto") is FORMATS["smollm2"]
    assert format_of("{% if tools %}<tool_call>", "llama3_json") is FORMATS["llama3_json"]


@pytest.mark.parametrize("tags", [[], ["<tool_call>", "</tool_call>"]])
@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_is_held_to_calls_whether_the_tags_are_tokens_or_not(name: str, tags: list[str]) -> None:
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    tokenizer, form = tiny_tokenizer(), FORMATS[name]
    tokenizer.add_tokens(tags)  # as Qwen has them
    held = grammar(tokenizer, form, [{"name": "add", "parameters": {"enum": [1]}}], several=False)
    matcher = LLMatcher(from_tokenizer(tokenizer, eos_token=[0]), held)
    call = f'{form.opening}{{"name": "add", "{form.arguments}": 1}}{form.closing}'
    tokens = tokenizer(call)["input_ids"]
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    assert matcher.is_accepting()


def test_a_template_that_knows_no_tools_gets_them_in_the_system_message() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "a"},
    ]
    system, said, result = rendered(turns, tools, FORMATS["smollm2"])
    assert system["content"].startswith("Be brief.\n\n")
    assert '<tools>[{"name": "add"}]</tools>' in system["content"]
    assert read(said["content"], 1000) == ("", [("add", {"a": 1})])
    assert result["content"] == "2"
    assert rendered(turns[:1], [], FORMATS["smollm2"]) == turns[:1]
