from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specstream.serving.requests import ChatBody, CompletionBody
from tests.integration.served import NAME, Served, eventually, serving, tiny_engine

TEXT = "the cat sat on the mat and the dog sat on the"
CHAT = [{"role": "user", "content": "one two three one two"}]
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["animal", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(max_rows=3, max_tokens=200) as running:
        yield running


@pytest.fixture(scope="module")
def lone() -> Any:
    """The same model in an engine of its own, which decodes one request at a time and drafts nothing."""
    return tiny_engine(drafter="none")


class TestAnswers:
    def test_a_chat_is_that_of_a_lone_run(self, served: Served, lone: Any) -> None:
        answer = served.client().chat.completions.create(model=NAME, messages=CHAT, max_tokens=40)  # type: ignore[arg-type]
        expected = lone.generate(CHAT, max_new_tokens=40)
        (choice,) = answer.choices
        assert choice.message.content == expected.text
        assert choice.message.role == "assistant"
        assert choice.finish_reason == expected.finish_reason
        assert answer.usage is not None
        assert answer.usage.completion_tokens == expected.new_tokens
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + expected.new_tokens
        speculation = (answer.model_extra or {})["speculation"]
        assert speculation["target_passes"] + speculation["accepted_tokens"] == expected.new_tokens
        assert speculation["drafted_tokens"] >= speculation["accepted_tokens"] > 0
        assert speculation["lossless"] is True

    def test_a_stream_is_the_same(self, served: Served, lone: Any) -> None:
        chunks = list(
            served.client().chat.completions.create(
                model=NAME,
                messages=CHAT,  # type: ignore[arg-type]
                max_completion_tokens=40,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        expected = lone.generate(CHAT, max_new_tokens=40)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected.text
        assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == expected.new_tokens
        assert chunks[-2].choices[0].finish_reason == expected.finish_reason
        assert (chunks[-2].model_extra or {})["speculation"]["target_passes"] <= expected.new_tokens
        assert len({chunk.id for chunk in chunks}) == 1

    def test_a_completion_of_texts_and_of_tokens(self, served: Served, lone: Any) -> None:
        client, tokens = served.client(), lone.tokenizer(TEXT)["input_ids"]
        expected = lone.generate(TEXT, max_new_tokens=20).text
        for prompt, count in ((TEXT, 1), (tokens, 1), ([TEXT, TEXT], 2), ([tokens], 1)):
            answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=20)
            assert [choice.text for choice in answer.choices] == [expected] * count
            assert [choice.index for choice in answer.choices] == list(range(count))
        pieces = client.completions.create(model=NAME, prompt=TEXT, max_tokens=20, stream=True)
        assert "".join(chunk.choices[0].text for chunk in pieces) == expected

    def test_a_stop_is_left_out(self, served: Served, lone: Any) -> None:
        whole = lone.generate(TEXT, max_new_tokens=60).text
        stop = whole[10:13]
        expected = lone.generate(TEXT, max_new_tokens=60, stop=stop)
        for stream in (False, True):
            answer: Any = served.client().completions.create(
                model=NAME, prompt=TEXT, max_tokens=60, stop=[stop], stream=stream
            )
            chunks = list(answer) if stream else [answer]
            assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
            assert chunks[-1].choices[0].finish_reason == "stop"

    def test_a_stop_token_ends_the_answer_and_is_left_out(self, served: Served, lone: Any) -> None:
        token = lone.generate(TEXT, max_new_tokens=60).token_ids[7]
        expected = lone.generate(TEXT, max_new_tokens=60, stop_token_ids=[token])
        for stream in (False, True):
            answer: Any = served.client().completions.create(
                model=NAME, prompt=TEXT, max_tokens=60, stream=stream, extra_body={"stop_token_ids": [token]}
            )
            chunks = list(answer) if stream else [answer]
            assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
            assert chunks[-1].choices[0].finish_reason == "stop" == expected.finish_reason

    def test_a_seed_repeats_and_several_answers_differ(self, served: Served) -> None:
        def ask(seed: int) -> list[str | None]:
            answer = served.client().chat.completions.create(
                model=NAME,
                messages=CHAT,  # type: ignore[arg-type]
                n=3,
                seed=seed,
                temperature=1.0,
                top_p=0.95,
                max_tokens=30,
            )
            return [choice.message.content for choice in answer.choices]

        first = ask(7)
        assert len(set(first)) == 3
        assert ask(7) == first != ask(8)

    def test_chances_are_the_models(self, served: Served, lone: Any) -> None:
        answer = served.client().chat.completions.create(
            model=NAME,
            messages=CHAT,  # type: ignore[arg-type]
            max_tokens=12,
            logprobs=True,
            top_logprobs=3,
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert answer.usage is not None
        assert len(logprobs.content) == answer.usage.completion_tokens
        for token in logprobs.content:
            assert token.logprob == token.top_logprobs[0].logprob, "greedy takes the likeliest"
            assert len(token.top_logprobs) == 3
            assert 0 >= token.logprob >= token.top_logprobs[2].logprob
        old = served.client().completions.create(model=NAME, prompt=TEXT, max_tokens=5, logprobs=2).choices[0].logprobs
        assert old is not None
        assert old.tokens is not None
        assert old.token_logprobs is not None
        assert len(old.tokens) == len(old.token_logprobs) == 5

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_schema_is_followed(self, served: Served, temperature: float) -> None:
        form: Any = {"type": "json_schema", "json_schema": {"name": "animals", "schema": SCHEMA}}
        for seed in range(3):
            answer = served.client().chat.completions.create(
                model=NAME,
                messages=CHAT,  # type: ignore[arg-type]
                max_tokens=60,
                temperature=temperature,
                seed=seed,
                response_format=form,
            )
            found = json.loads(answer.choices[0].message.content or "")
            assert found["animal"] in ("cat", "dog")
            assert found["count"] in range(10)
            assert answer.choices[0].finish_reason == "stop"

    def test_under_a_schema_drafts_change_nothing(self, served: Served) -> None:
        form: Any = {"type": "json_schema", "json_schema": {"name": "animals", "schema": SCHEMA}}
        chat: Any = [{"role": "user", "content": '{"animal":"cat","count":3} {"animal":"dog","count":4} {"animal":'}]
        with serving(tiny_engine(drafter="none")) as plain:
            answers = [
                each.client().chat.completions.create(model=NAME, messages=chat, max_tokens=60, response_format=form)
                for each in (served, plain)
            ]
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
        assert (answers[0].model_extra or {})["speculation"]["drafted_tokens"] > 0

    def test_the_model_is_listed(self, served: Served) -> None:
        assert [model.id for model in served.client().models.list()] == [NAME]
        assert served.client().models.retrieve(NAME).owned_by == "specstream"


def test_many_at_once_say_what_each_would_say_alone(served: Served, lone: Any) -> None:
    """Of mixed lengths, on three rows; some streamed, some whose client goes away."""
    prompts = [TEXT[: 6 + 3 * at] for at in range(12)]
    lengths = [5 + 7 * (at % 5) for at in range(12)]

    def ask(at: int) -> str | None:
        client = served.client()
        if at % 4 == 3:
            stream = client.completions.create(model=NAME, prompt=prompts[at], max_tokens=150, stream=True)
            next(iter(stream))
            stream.close()
            return None
        answer: Any = client.completions.create(
            model=NAME, prompt=prompts[at], max_tokens=lengths[at], stream=at % 2 == 0
        )
        return "".join(chunk.choices[0].text for chunk in ([answer] if at % 2 else answer))

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))
    for prompt, length, text in zip(prompts, lengths, found, strict=True):
        assert text is None or text == lone.generate(prompt, max_new_tokens=length).text
    assert eventually(served.idle)


class TestLimits:
    def test_who_goes_away_frees_the_row(self) -> None:
        with serving(slow=0.02, max_rows=1) as slow:
            stream = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=400, stream=True)
            next(iter(stream))
            assert slow.scheduler.running == 1
            stream.close()
            assert eventually(slow.idle)
            with pytest.raises(openai.APITimeoutError):
                slow.client(timeout=0.3).completions.create(model=NAME, prompt=TEXT, max_tokens=400)
            assert eventually(slow.idle)
            assert slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=2).choices[0].text
            assert (
                'specstream_answers_total{model_name="tiny",outcome="cancelled"} 2.0'
                in httpx.get(f"{slow.url}/metrics").text
            )

    def test_a_full_queue_says_when_to_come_again(self) -> None:
        with serving(slow=0.02, max_rows=1, max_queue=1) as slow, ThreadPoolExecutor(2) as pool:

            def ask() -> Any:
                return slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=60)

            running = [pool.submit(ask) for _ in range(2)]
            assert eventually(lambda: slow.scheduler.running == 1 == slow.scheduler.waiting)
            with pytest.raises(openai.RateLimitError) as refused:
                ask()
            assert int(refused.value.response.headers["retry-after"]) >= 1
            assert refused.value.code == "queue_full"
            assert len({answer.result().choices[0].text for answer in running}) == 1

    def test_an_answer_that_takes_too_long_is_given_up(self) -> None:
        with serving(slow=0.05, request_seconds=0.3) as slow:
            with pytest.raises(openai.InternalServerError, match="took more than") as late:
                slow.client(max_retries=2).completions.create(model=NAME, prompt=TEXT, max_tokens=400)
            assert late.value.status_code == 504
            stream = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=400, stream=True)
            with pytest.raises(openai.APIError, match="took more than"):
                list(stream)
            assert eventually(slow.idle)

    def test_a_server_that_stops_finishes_what_runs(self, lone: Any) -> None:
        expected = lone.generate(TEXT, max_new_tokens=60).text
        found: list[str] = []
        with serving(slow=0.01) as slow:

            def ask() -> None:
                answer = slow.client().completions.create(model=NAME, prompt=TEXT, max_tokens=60)
                found.append(answer.choices[0].text)

            asking = threading.Thread(target=ask)
            asking.start()
            assert eventually(lambda: slow.scheduler.running == 1)
        asking.join()
        assert found == [expected]

    def test_the_key_is_asked_for(self) -> None:
        with serving(api_key="right") as guarded:
            with pytest.raises(openai.AuthenticationError):
                guarded.client(api_key="wrong").models.list()
            assert httpx.get(f"{guarded.url}/v1/models").status_code == 401
            assert [model.id for model in guarded.client(api_key="right").models.list()] == [NAME]
            assert httpx.get(f"{guarded.url}/health").json() == {"status": "ok"}

    def test_a_body_has_a_limit(self) -> None:
        with serving(max_body_bytes=1000) as small:
            with pytest.raises(openai.APIStatusError, match="more than 1000 bytes") as refused:
                small.client().completions.create(model=NAME, prompt="a" * 2000)
            assert refused.value.status_code == 413


OWN = f'model_name="{NAME}"'


def test_what_is_counted(served: Served) -> None:
    served.client().completions.create(model=NAME, prompt=TEXT, max_tokens=40)
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    figures = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    drafted, accepted = (
        figures[f'specstream_{kind}_tokens_total{{{OWN},position="1"}}'] for kind in ("drafted", "accepted")
    )
    assert drafted >= accepted > 0
    assert figures[f"specstream_queue_length{{{OWN}}}"] == 0
    assert figures[f"specstream_answer_seconds_count{{{OWN}}}"] >= 1
    assert httpx.get(f"{served.url}/ready").json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", b"{", "JSON decode error"),
        ("completions", b"\xff", "send JSON in UTF-8"),
        ("completions", b"[" * 100_000, ""),
        ("completions", b'{"model": "tiny", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}", ""),
        ("completions", {"model": NAME}, "prompt is missing; give it"),
        ("completions", {"model": NAME, "prompt": ""}, "prompt: the prompt is empty"),
        ("completions", {"model": NAME, "prompt": [1, 2, 99999]}, "the vocabulary is 0 to 299"),
        ("completions", {"model": NAME, "prompt": "a", "stop_token_ids": [300]}, "the vocabulary is 0 to 299"),
        ("completions", {"model": NAME, "prompt": "a", "n": 99}, "ask for 8 at most"),
        ("completions", {"model": NAME, "prompt": "a " * 600}, "shorten it"),
        ("completions", {"model": NAME, "prompt": "a", "temperature": -1}, "temperature is -1; give"),
        ("completions", {"model": NAME, "prompt": "a", "frequency_penalty": 3}, "frequency_penalty is 3; give"),
        ("completions", {"model": NAME, "prompt": "a", "\ud800": 1}, "is a text"),
        ("completions", {"model": NAME, "prompt": "a", "gama": 1}, "the field is not known"),
        ("completions", {"model": NAME, "prompt": "\ud800"}, "half a character"),
        ("chat/completions", {"model": NAME, "messages": [{"role": "user", "content": "\ud800"}]}, "half a character"),
        ("completions", {"model": "other", "prompt": "a"}, "is not served here"),
        ("chat/completions", {"model": NAME, "messages": []}, "messages is []; give"),
        ("chat/completions", {"model": NAME, "messages": [{"role": "nobody", "content": "a"}]}, "messages.0.role"),
        ("chat/completions", {"model": NAME, "messages": CHAT, "tools": [{}]}, "tools.0.type is missing; give it"),
        ("chat/completions", {"model": NAME, "messages": CHAT, "top_logprobs": 2}, "logprobs: true"),
        (
            "chat/completions",
            {"model": NAME, "messages": CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema is missing or has no schema",
        ),
        (
            "chat/completions",
            {
                "model": NAME,
                "messages": CHAT,
                "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}},
            },
            "the JSON schema cannot be followed",
        ),
        ("nothing", {}, "nothing is served at /v1/nothing"),
        ("completions/", {}, "nothing is served at /v1/completions/: send to /v1/completions"),
        ("chat/completions", {"model": NAME, "messages": CHAT, "guided_choice": ["a"]}, 'the schema {"enum": [..]}'),
        ("chat/completions", {"model": NAME, "messages": CHAT, "think": False}, 'give reasoning_effort: "none" for no'),
        (
            "chat/completions",
            {"model": NAME, "messages": CHAT, "allowed_token_ids": [1]},
            "give logit_bias, from token",
        ),
        ("chat/completions", {"model": NAME, "messages": CHAT, "chat_template": "a"}, "the model's own is used; leave"),
        (
            "embeddings",
            {"model": NAME, "input": "a"},
            "/v1/embeddings: the model writes text; send to /v1/chat/completions",
        ),
        ("tokenize", {"prompt": "a"}, "nothing is served at /v1/tokenize: send to /tokenize"),
        ("v1/chat/completions", {}, "served at /v1/v1/chat/completions: send to /v1/chat/completions"),
        ("audio/speech", {"model": NAME, "input": "a"}, "nothing is served at /v1/audio/speech"),
        ("images/generations", {"prompt": "a"}, "nothing is served at /v1/images/generations"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(served: Served, path: str, body: Any, words: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{served.url}/v1/{path}", content=content, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_no_body_kills_it(served: Served, data: st.DataObject) -> None:
    """Right bodies with wrong values in some of their fields, and bodies of anything."""
    path, kind = data.draw(st.sampled_from([("chat/completions", ChatBody), ("completions", CompletionBody)]))
    names = st.sampled_from([field.alias or name for name, field in kind.model_fields.items()])
    start: dict[str, Any] = {"model": NAME, "messages": CHAT} if kind is ChatBody else {"model": NAME, "prompt": "a"}
    wrong = data.draw(st.dictionaries(names, anything, max_size=3))
    body = data.draw(st.just({**start, "max_tokens": 2, **wrong}) | anything)
    answer = httpx.post(
        f"{served.url}/v1/{path}",
        content=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert answer.status_code in (200, 400, 404)
    assert answer.status_code == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"{served.url}/health").status_code == 200
