"""What official clients send: null is not given, harmless fields are taken, limits are kept and said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from specstream.serving.requests import ChatBody, CompletionBody, JsonSchema, Message, ResponseFormat, StreamOptions
from tests.integration.served import NAME, PATIENCE, Served, serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"prompt": "the cat sat on the mat", "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(max_tokens=20) as running:
        yield running


def chat(served: Served, **more: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/chat/completions", json={**CHAT, **more}, timeout=PATIENCE)


def complete(served: Served, **more: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/completions", json={**TEXT, **more}, timeout=PATIENCE)


OFFICIAL: list[dict[str, Any]] = [
    {"parallel_tool_calls": True},
    {"parallel_tool_calls": False},
    {"prompt_cache_key": "a"},
    {"prompt_cache_retention": "24h"},
    {"safety_identifier": "a"},
    {"verbosity": "low"},
    {"reasoning_effort": "high"},
    {"service_tier": "auto"},
    {"store": False, "metadata": {"a": "b"}},
    {"stream": True, "stream_options": {"include_obfuscation": False}},
    {"stream": True, "stream_options": {"include_obfuscation": True, "include_usage": True}},
    {"tool_choice": "auto"},
    {"tool_choice": "auto", "tools": []},
    {"tool_choice": "none", "tools": [TOOL]},
    {"function_call": "none", "functions": [{"name": "a"}]},
    {"function_call": "auto"},
    {"logprobs": False, "top_logprobs": 0},
]
HELD_BY_NO_CLIENT = {"messages", "prompt"}


class TestNullIsNotGiven:
    @pytest.mark.parametrize("body", [ChatBody, CompletionBody])
    def test_of_every_field(self, served: Served, body: Any) -> None:
        ask = chat if body is ChatBody else complete
        for name in [*body.model_fields, *(name for each in OFFICIAL for name in each), "logit_bias", "audio", "echo"]:
            answer = ask(served, **{name: None})
            if name in HELD_BY_NO_CLIENT:
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
            else:
                assert answer.status_code == 200, (name, answer.text)

    def test_of_every_field_inside(self, served: Served) -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
        for kind, whole, put in (
            (StreamOptions, {}, lambda value: {"stream": True, "stream_options": value}),
            (ResponseFormat, {"type": "text"}, lambda value: {"response_format": value}),
            (JsonSchema, schema["json_schema"], lambda value: {"response_format": {**schema, "json_schema": value}}),
            (Message, {"role": "user", "content": "a"}, lambda value: {"messages": [value]}),
        ):
            fields = [field.alias or name for name, field in kind.model_fields.items()]  # type: ignore[attr-defined]
            for name in {*fields, *(("tool_calls", "function_call", "audio") if kind is Message else ())}:
                answer = chat(served, **put({**whole, name: None}))  # type: ignore[operator]
                if name in ("type", "role") or (kind, name) in ((JsonSchema, "schema"), (Message, "content")):
                    assert answer.status_code == 400
                else:
                    assert answer.status_code == 200, (name, answer.text)


class TestOfficialFields:
    @pytest.mark.parametrize("more", OFFICIAL, ids=str)
    def test_one_without_an_effect_here_is_taken(self, served: Served, more: dict[str, Any]) -> None:
        answer = chat(served, **more)
        assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize(
        ("more", "name"),
        [
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "tool_choice"),
            ({"functions": [{"name": "a"}]}, "functions"),
            ({"tools": [TOOL], "tool_choice": "none", "function_call": {"name": "a"}}, "function_call"),
            ({"web_search_options": {}}, "web_search_options"),
        ],
        ids=str,
    )
    def test_one_that_asks_for_what_is_not_done_is_refused(self, served: Served, more: Any, name: str) -> None:
        answer = chat(served, **more)
        assert answer.status_code == 400
        assert name in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            ({"messages": "hi"}, """messages is 'hi'; give a list, such as [{"role": "user", "content": "Name"""),
            ({"messages": [{"role": "human", "content": "x"}]}, "did you mean 'user'?"),
            ({"messages": [{"role": "user", "text": "x"}]}, "did you mean 'content'?"),
            ({"tools": "now"}, 'give a list, such as [{"type": "function"'),
            ({"response_format": {"type": "json"}}, "did you mean 'json_object'?"),
            ({"temperature": "70%"}, "temperature is '70%'; give 0.7"),
        ],
        ids=str,
    )
    def test_one_of_another_form_is_told_the_form(self, served: Served, more: Any, told: str) -> None:
        answer = chat(served, **more)
        assert answer.status_code == 400 and told in answer.json()["error"]["message"]

    def test_one_of_the_wrong_kind_is_refused_by_name(self, served: Served) -> None:
        for more in ({"parallel_tool_calls": "yes"}, {"verbosity": 3}, {"prompt_cache_key": []}):
            answer = chat(served, **more)  # type: ignore[arg-type]
            (name,) = more
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)

    def test_a_message_that_a_server_sent_can_be_sent_back(self, served: Served) -> None:
        echoed = {
            "role": "assistant",
            "content": "four",
            "refusal": None,
            "annotations": [{"type": "url_citation"}],
            "audio": {"id": "a"},
            "function_call": None,
            "tool_calls": None,
        }
        first = chat(served).json()["choices"][0]["message"]
        for message in (echoed, first, {**echoed, "audio": None, "annotations": [], "tool_calls": []}):
            answer = chat(served, messages=[*CHAT["messages"], message, *CHAT["messages"]])
            assert answer.status_code == 200, answer.text
        answer = chat(served, messages=[{**echoed, "tool_calls": [{"id": "a"}]}])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages.0.tool_calls.0.function")

    @pytest.mark.parametrize(("stop", "param"), [("", "stop"), ([""], "stop.0"), (["a", ""], "stop.1")])
    def test_an_empty_stop_string_is_refused(self, served: Served, stop: Any, param: str) -> None:
        for ask in (chat, complete):
            error = ask(served, stop=stop).json()["error"]
            assert (error["param"], error["code"]) == (param, "invalid_body"), error
            assert "is ''; give" in error["message"]

    def test_the_model_may_be_left_out(self, served: Served) -> None:
        assert chat(served).json()["model"] == NAME
        assert complete(served, model="other").status_code == 404

    def test_a_top_k_below_0_is_off(self, served: Served) -> None:
        wanted = {"temperature": 1.0, "seed": 3, "max_tokens": 12}
        texts = [complete(served, **wanted, top_k=k).json()["choices"][0]["text"] for k in (-1, 0, 1)]
        assert texts[0] == texts[1] != texts[2]
        assert complete(served, top_k=-2).status_code == 400

    def test_a_top_p_of_0_is_off_as_on_the_command_line(self, served: Served) -> None:
        wanted = {"temperature": 1.0, "seed": 3, "max_tokens": 12}
        for ask in (chat, complete):
            answers = [ask(served, **wanted, top_p=p).json()["choices"][0] for p in (0, 1, 0.01)]
            texts = [each.get("text", each.get("message")) for each in answers]
            assert texts[0] == texts[1] != texts[2]


def said(answer: httpx.Response) -> str:
    """The text of the first answer, whole or in a stream."""
    if not answer.text.startswith("data:"):
        choice = answer.json()["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])
    parts = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [choice for part in parts for choice in part["choices"] if choice["index"] == 0]
    return "".join(each["text"] if "text" in each else each["delta"].get("content", "") for each in choices)


class TestBestOf:
    @pytest.mark.parametrize("ask", [chat, complete])
    def test_the_likeliest_answers_are_told(self, served: Served, ask: Any) -> None:
        wanted = {"temperature": 1.5, "seed": 5, "max_tokens": 6}
        drawn = ask(served, **wanted, n=4, logprobs=True if ask is chat else 0).json()["choices"]
        means = []
        for choice in drawn:
            each = choice["logprobs"].get("token_logprobs") or [one["logprob"] for one in choice["logprobs"]["content"]]
            means.append(sum(each) / len(each))
        best = sorted(range(4), key=lambda at: -means[at])[:2]
        answer = ask(served, **wanted, n=2, best_of=4).json()
        kept = [choice.get("text", choice.get("message")) for choice in answer["choices"]]
        assert kept == [drawn[at].get("text", drawn[at].get("message")) for at in best]
        assert best != [0, 1], "a case in which the first two are the best shows nothing"
        assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
        assert answer["usage"]["completion_tokens"] == 24, "all that were drawn are counted"

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"n": 3, "best_of": 2}, "best_of is 2 and n 3; give at least n"),
            ({"best_of": 2, "stream": True}, "leave one out"),
            ({"best_of": 99}, "the request asks for 99 answers"),
        ],
    )
    def test_what_cannot_be_is_refused(self, served: Served, more: Any, words: str) -> None:
        answer = complete(served, **more)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "best_of")
        assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", [chat, complete])
class TestWhatIsLeftInATextsEnd:
    def test_the_stop_string(self, served: Served, ask: Any, stream: bool) -> None:
        plain = said(ask(served, max_tokens=12))
        stop = plain[4:6]
        end = plain.index(stop)
        for include in (False, True):
            answer = ask(served, max_tokens=12, stop=stop, stream=stream, include_stop_str_in_output=include)
            assert said(answer) == plain[: end + 2 * include]

    def test_special_tokens(self, served: Served, ask: Any, stream: bool) -> None:
        """Token 1 is padding, and token 0 ends a text."""
        for bias, skip, include, expected in (
            ("1", False, False, "<pad><pad>"),
            ("1", True, False, ""),
            ("0", False, False, ""),
            ("0", False, True, "<eos>"),
            ("0", True, True, ""),
        ):
            more = {"skip_special_tokens": skip, "include_stop_str_in_output": include, "stream": stream}
            assert said(ask(served, logit_bias={bias: 100}, max_tokens=2, **more)) == expected
        marked = {"stop": "<pad>", "skip_special_tokens": False, "logit_bias": {"1": 100}, "stream": stream}
        assert said(ask(served, **marked, include_stop_str_in_output=True)) == "<pad>"
        assert said(ask(served, **marked)) == ""


@pytest.mark.parametrize("ask", [chat, complete])
@pytest.mark.parametrize("reason", [None, "gamma is 9 and there are 4 streams"])
def test_what_does_not_draft_is_said_in_every_answer(served: Served, monkeypatch: Any, ask: Any, reason: Any) -> None:
    monkeypatch.setattr(served.server.models.named(None), "left_out", reason)
    assert ask(served).json()["speculation"]["left_out"] == reason
    chunks = [json.loads(line[6:]) for line in ask(served, stream=True).text.splitlines() if line.startswith("data: {")]
    assert [each["speculation"]["left_out"] for each in chunks if "speculation" in each] == [reason]


class TestMostTokens:
    def test_more_than_the_limit_is_lowered_to_it_and_said(self, served: Served) -> None:
        for ask, more in (
            (complete, {"max_tokens": 9999}),
            (chat, {"max_tokens": None, "max_completion_tokens": 9999}),
        ):
            answer = ask(served, **more).json()
            assert answer["clamped"] == {"max_tokens": 20}
            assert answer["usage"]["completion_tokens"] == 20
            assert answer["choices"][0]["finish_reason"] == "length"
        lines = complete(served, max_tokens=9999, stream=True).text.splitlines()
        assert sum('"clamped":{"max_tokens":20}' in line for line in lines) == 1
        assert "clamped" not in complete(served, max_tokens=20).json()
        assert "clamped" not in complete(served, max_tokens=None).json()

    def test_so_is_more_than_the_context_has_room_for(self) -> None:
        with serving(max_tokens=200, max_context=30) as small:
            answer = complete(small, max_tokens=100).json()
            assert answer["clamped"] == {"max_tokens": 30 - answer["usage"]["prompt_tokens"]}
            assert answer["usage"]["total_tokens"] == 30

    def test_the_models_card_tells_how_much_fits(self) -> None:
        with serving(max_context=30) as small:
            (card,) = httpx.get(f"{small.url}/v1/models").json()["data"]
            assert card["max_model_len"] == 30
            assert httpx.get(f"{small.url}/v1/models/{NAME}").json() == card
