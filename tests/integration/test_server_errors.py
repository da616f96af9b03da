"""Refusals name fields that exist, in words that are for whoever asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from specstream.serving import description
from tests.integration.served import NAME, PATIENCE, Served, serving, tiny_engine

TEXT: dict[str, Any] = {"model": NAME, "prompt": "the cat", "max_tokens": 1}
CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "one two"}], "max_tokens": 1}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


def send(served: Served, body: Any, path: str = "completions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(f"{served.url}/v1/{path}", content=content, headers=sent, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({**TEXT, "stop": 5}, "stop", "stop is 5; give a value that is a text or a list"),
        ({**TEXT, "stop": ["a", 5]}, "stop.1", "stop.1 is 5; give a value that is a text"),
        ({**TEXT, "stop": {"str": 1}}, "stop", "stop is {'str': 1}; give a value that is a text or a list"),
        ({**TEXT, "prompt": 5}, "prompt", "prompt is 5; give a value that is a text or a list"),
        ({**TEXT, "prompt": [["a"]]}, "prompt.0.0", "prompt.0.0 is 'a'; give a value that is a whole number"),
        ({**TEXT, "prompt": None}, "prompt", "prompt is missing; give it"),
        ({**TEXT, "seed": "a"}, "seed", "seed is 'a'; give a value that is a whole number"),
        ({**TEXT, "gamma": 1}, "gamma", "gamma: the field is not known; leave it out"),
        ({**TEXT, "n_predict": 1}, "n_predict", "n_predict: the field is not known; did you mean 'max_tokens'?"),
        (
            {**TEXT, "response_format": {}},
            "response_format",
            "response_format: the field is one of /v1/chat/",
        ),
        (
            {**TEXT, "top_logprobs": 2},
            "top_logprobs",
            "top_logprobs: the field is not known; did you mean 'logprobs'?",
        ),
        ({**TEXT, "max_completion_tokens": 2}, "max_completion_tokens", "max_completion_tokens: the field is one of"),
        ({**CHAT, "prompt": "x"}, "prompt", "prompt: the field is one of /v1/completions; send it there, or leave"),
        ({**TEXT, "prompt_logprobs": 21}, "prompt_logprobs", "prompt_logprobs is 21; give a value that is less than"),
        ({**CHAT, "use_beam_search": True}, "use_beam_search", "use_beam_search: the field is not known; leave it out"),
        ({**CHAT, "extra_body": {}}, "extra_body", "extra_body: the field is not known; give what is in it at the top"),
        ({**CHAT, "guided_json": {}}, "guided_json", 'guided_json: the field is not known; give response_format: {"'),
        (
            {**CHAT, "structured_outputs": {}},
            "structured_outputs",
            "structured_outputs: the field is not known; give",
        ),
        (
            {**CHAT, "messages": [{"role": "user", "text": "x"}]},
            "messages.0.text",
            "messages.0.text: the field is not known; did you mean 'content'?",
        ),
        (
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"type": "object", "properties": {}}}},
            "response_format.json_schema.schema",
            "response_format.json_schema.schema is missing, and what is given is a schema itself; give {name, schema}",
        ),
        ({**CHAT, "format": "json"}, "format", "format: the field is not known; did you mean 'response_format'?"),
        (
            {**CHAT, "response_format": {"type": "json_object", "schema": {}}},
            "response_format.schema",
            'response_format.schema: the field is not known; give response_format: {"type": "json_schema", "json_sch',
        ),
        ({**CHAT, "stop": [None]}, "stop.0", "stop.0 is null; give a value that is a text"),
        ({**CHAT, "max_tokens": True}, "max_tokens", "max_tokens is true; give a value that is a whole number"),
        ({**TEXT, "prompt": [True, False]}, "prompt.0", "prompt.0 is true; give"),
        ({**CHAT, "temperature": 1e-9}, "temperature", "temperature: 1e-09 is too near to 0; give 0 for greedy"),
        (b'{"messages": []}', "prompt", "prompt is missing; what is sent goes to /v1/chat/"),
        ({**TEXT, "tools": [1]}, "tools", "tools: the field is one of /v1/chat/completions; send it there, or leave"),
        ({**CHAT, "tools": [1]}, "tools.0", "tools.0 is 1; give"),
        ({**TEXT, "stream_options": {}}, "stream_options", "stream_options is only for streams; give stream: true"),
        ({**CHAT, "top_logprobs": 2}, "top_logprobs", "top_logprobs is given without logprobs; give logprobs: true"),
        (
            {**CHAT, "response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "response_format.json_schema is missing or has no schema, and the type is json_schema; give {name, schema}",
        ),
        (
            {**CHAT, "messages": [{"role": "user", "content": 5}]},
            "messages.0.content",
            "messages.0.content is 5; give a value that is a text or a list",
        ),
        (
            {**CHAT, "messages": [{"role": "user"}]},
            "messages.0.content",
            "messages.0.content is missing, and the role is user; give a text",
        ),
        ({**CHAT, "messages": [*CHAT["messages"], 5]}, "messages.1", "messages.1 is 5; give a value that is an object"),
        (
            {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}]},
            "messages.0.content.1.type",
            "messages.0.content.1.type: only parts of type text are supported; leave out 'image_url'",
        ),
        (
            {**CHAT, "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
            "messages.0.content.0.text is missing; give it",
        ),
        (
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}},
            "response_format.json_schema.schema",
            "response_format.json_schema.schema is 5; give a value that is an object or true or false",
        ),
        (
            {**CHAT, "stream_options": {"b": 1}, "stream": True},
            "stream_options.b",
            "stream_options.b: the field is not",
        ),
        ({**TEXT, "prompt": [5, 300]}, "prompt.1", "the prompt has the token 300; the vocabulary is 0 to 299"),
        ({**TEXT, "prompt": [[5], [6, -1]]}, "prompt.1.1", "the prompt has the token -1; the vocabulary is 0 to 299"),
        ({**TEXT, "stop_token_ids": [1, 300]}, "stop_token_ids.1", "stop_token_ids has the token 300; the vocabulary"),
        ({**CHAT, "stop_token_ids": [300]}, "stop_token_ids.0", "stop_token_ids has the token 300; the vocabulary"),
        ({**CHAT, "logit_bias": {"x": 1}}, "logit_bias.x", "logit_bias.x is 'x'; give a token id"),
        ({**TEXT, "prompt": [1, 2.5]}, "prompt.1", "prompt.1 is 2.5; give a value that is a text or a whole number"),
        ({**TEXT, "stop": ["a"] * 17}, "stop", f"stop is {str(['a'] * 17)[:80]}...; give a value that has at most 16"),
        (
            {**TEXT, "min_tokens": 5, "max_tokens": 4},
            "min_tokens",
            "min_tokens is 5 and the answer has 4 at most; give",
        ),
        (
            {**CHAT, "min_tokens": 5, "max_tokens": None, "max_completion_tokens": 4},
            "min_tokens",
            "min_tokens is 5 and the answer has 4 at most; give less",
        ),
        (
            {**CHAT, "tools": [{"type": "function", "name": "f", "parameters": {}}]},
            "tools.0.function",
            'tools.0.function is missing; give {"type": "function", "function": {"name": ..}}',
        ),
        *(
            (
                {**CHAT, "chat_template_kwargs": {name: "x"}},
                "chat_template_kwargs",
                f"chat_template_kwargs: {name} is no setting of the template; ",
            )
            for name in ("messages", "conversation", "tools", "chat_template")
        ),
        ({**TEXT, "n": 9}, "n", "the request asks for 9 answers; ask for 8 at most"),
        ({**CHAT, "n": 9}, "n", "the request asks for 9 answers; ask for 8 at most"),
        ({**TEXT, "prompt": ["a"] * 9}, "prompt", "the request asks for 9 answers; ask for 8 at most"),
        ({**TEXT, "prompt": "one " * 900}, "prompt", "the prompt has"),
        ({**CHAT, "messages": [{"role": "user", "content": "one " * 900}]}, "messages", "the prompt has"),
        ({**TEXT, "prompt": "a\ud800"}, "prompt", "the prompt"),
        (
            {**CHAT, "max_tokens": 4, "max_completion_tokens": 8},
            "max_tokens",
            "max_tokens is 4 and max_completion_tokens 8; give one",
        ),
        ({**TEXT, "top_p": -0.1}, "top_p", "top_p is -0.1; give a value that is greater than or equal to 0"),
        (b'{"model": 1,, "prompt"}', None, "JSON decode error at character 12: "),
        (b"", None, "the body is empty or null; send a JSON object"),
        (b"[]", None, "the body is []; give a value that is an object"),
        ({**TEXT, "stop": "a" * 300}, "stop", f"stop is '{'a' * 79}...; give a value that has at most 256"),
        ({**TEXT, "n": 0}, "n", "n is 0; give a value that is greater than or equal to 1"),
        ({**CHAT, "messages": ["Hello"]}, "messages.0", "messages.0 is 'Hello'; give a value that is an object"),
        ({**TEXT, "a" * 10_000: 1}, "a" * 100 + "..", "a" * 100 + "..: the field is not known; leave it out"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_refusal_names_a_field_that_is_there(served: Served, body: Any, param: str | None, message: str) -> None:
    answer = send(served, body, "chat/completions" if isinstance(body, dict) and "messages" in body else "completions")
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param
    assert error["message"].startswith(message)
    assert "[" not in re.split(": | is ", error["message"])[0]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("tokenize", {"text": "a"}, "text: the field is not known; did you mean 'prompt'?"),
        ("tokenize", {"content": "a"}, "content: the field is not known; did you mean 'prompt'?"),
        (
            "tokenize",
            {"prompt": "a", "tokens": [1]},
            "tokens: the field is one of /detokenize; send it there, or leave",
        ),
        ("detokenize", {"prompt": "a"}, "tokens is missing; what is sent goes to /tokenize"),
        (
            "v1/responses",
            {"input": "a", "tools": [{"type": "function", "function": {"name": "f"}}]},
            "tools.0.name is missing; give name, description and parameters beside type, without function",
        ),
    ],
)
def test_what_another_path_takes_is_named_there(served: Served, path: str, body: Any, message: str) -> None:
    answer = httpx.post(f"{served.url}/{path}", json=body, timeout=PATIENCE)
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(message)


def test_a_schema_within_the_grammar_of_a_call_is_refused_in_words_of_the_schema(served: Served) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}
    error = send(served, {**CHAT, "tools": [tool], "tool_choice": "required"}, "chat/completions").json()["error"]
    assert error["message"] == "the JSON schema cannot be followed: Invalid type: objekt; give another"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_content_type_that_is_not_json_is_what_is_said(served: Served, kind: str) -> None:
    error = send(served, TEXT, content_type=kind).json()["error"]
    assert "Content-Type" in error["message"]
    assert "application/json" in error["message"]
    without = httpx.Request("POST", f"{served.url}/v1/completions", content=json.dumps(TEXT).encode())
    with httpx.Client() as client:
        answer = client.send(without)
    assert answer.status_code == 200 or "Content-Type" in answer.json()["error"]["message"]
    for accepted in ("application/json; charset=utf-8", "Application/JSON"):
        assert send(served, TEXT, content_type=accepted).status_code == 200


def test_a_method_that_is_not_served_says_which_one_is(served: Served) -> None:
    answer = httpx.get(f"{served.url}/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["message"] == "the method is not one of this path's; send POST"


def test_a_missing_key_says_how_to_authenticate() -> None:
    with serving(api_key="right") as guarded:
        answer = send(guarded, TEXT)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


class TestAdviceIsForClients:
    def test_of_a_model_without_a_chat_template(self) -> None:
        engine = tiny_engine()
        engine.tokenizer.chat_template = None
        with serving(engine) as served:
            message = send(served, CHAT, "chat/completions").json()["error"]["message"]
        assert message == "the model has no chat template; send the text to /v1/completions"

    def test_of_a_package_that_the_server_lacks(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(*arguments: Any) -> Any:
            from specstream.environment import require

            require("no_such_package", "serve", "response_format")

        with serving() as served:
            monkeypatch.setattr(served.gateway, "jobs", fails)
            answer = send(served, TEXT)
        assert answer.status_code == 501
        assert "pip" not in answer.text
        assert "pip install" in caplog.text

    def test_no_stop_is_none_and_an_empty_one_is_refused_as_openai_does(self, served: Served) -> None:
        assert send(served, {**TEXT, "stop": []}).status_code == 200
        for stop in ("", [""], ["end", ""]):
            assert send(served, {**TEXT, "stop": stop}).status_code == 400


class TestOversizedPrompts:
    def test_one_of_too_many_bytes_is_refused_before_it_is_encoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(max_context=50) as small:
            gateway = small.gateway
            longest = max(len(token.encode()) for token in gateway.tokenizer.get_vocab())
            monkeypatch.setattr("specstream.serving.gateway.encode", lambda *given: pytest.fail("it was encoded"))
            huge = "a" * (50 * longest + 1)
            for body, path in (
                ({**TEXT, "prompt": huge}, "completions"),
                ({**TEXT, "prompt": ["a", huge]}, "completions"),
                ({**CHAT, "messages": [{"role": "user", "content": huge}]}, "chat/completions"),
                ({**CHAT, "messages": [{"role": "user", "content": huge[: len(huge) // 3]}] * 4}, "chat/completions"),
            ):
                answer = send(small, body, path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
                assert "bytes" in answer.json()["error"]["message"]

    def test_one_that_may_fit_is_encoded(self) -> None:
        with serving(max_context=50) as small:
            longest = max(small.gateway.tokenizer.get_vocab(), key=len)
            answer = send(small, {**TEXT, "prompt": longest * 40})
            assert answer.status_code == 200 or "tokens" in answer.json()["error"]["message"]


class TestDescription:
    def test_it_tells_the_answers_that_there_are(self, served: Served) -> None:
        document = httpx.get(f"{served.url}/openapi.json").json()
        for path in ("/v1/completions", "/v1/chat/completions"):
            answers = document["paths"][path]["post"]["responses"]
            assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= set(answers)
            assert "422" not in answers, "a malformed body gets 400"
        assert "503" in document["paths"]["/ready"]["get"]["responses"]
        assert "404" in document["paths"]["/v1/models/{name}"]["get"]["responses"]

    def test_what_is_answered_is_as_described(self, served: Served) -> None:
        document = httpx.get(f"{served.url}/openapi.json").json()

        def check(answer: httpx.Response, method: str, path: str) -> None:
            content = document["paths"][path][method]["responses"][str(answer.status_code)]["content"]
            name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
            getattr(description, name).model_validate_json(answer.content)  # it forbids other fields

        for more in ({}, {"logprobs": 2}, {"n": 2, "max_tokens": 10**6}, {"temperature": 9}, {"model": "other"}):
            check(send(served, {**TEXT, **more}), "post", "/v1/completions")
        for more in ({}, {"logprobs": True, "top_logprobs": 2}, {"tools": [1]}):
            check(send(served, {**CHAT, **more}, "chat/completions"), "post", "/v1/chat/completions")
        for path in ("/v1/models", "/health", "/ready"):
            check(httpx.get(f"{served.url}{path}"), "get", path)

    def test_it_forbids_what_is_never_sent(self, served: Served) -> None:
        """A description that allows anything describes nothing."""
        document = httpx.get(f"{served.url}/openapi.json").json()
        for name in ("Completion", "ChatCompletion", "Failure"):
            schema = document["components"]["schemas"][name]
            assert schema["required"]
            assert schema["additionalProperties"] is False
