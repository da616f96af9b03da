"""A text that the answer may repeat: in Python, and over HTTP as OpenAI's API has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from specstream.engine.engine import SpeculativeEngine
from specstream.errors import UsageError
from tests.integration.served import PATIENCE, Served, serving
from tests.tiny import tiny_model, tiny_tokenizer

CHAT = [{"role": "user", "content": "the dog sat"}]
LENGTH = 40
WORDS = {
    str(token): 60 for token in tiny_tokenizer()(" cat sat on the mat and dog two three four five six ten")["input_ids"]
}
"""Biases that make answers of tokens which are read back as they were written."""


FIXED: Any = {"adaptive": False, "max_speculation_depth": 10}
"""The policy looks at the clock, and pauses where a machine is busy."""


def engine(drafter: Any = "auto") -> SpeculativeEngine:
    return SpeculativeEngine(
        tiny_model(), tiny_tokenizer(), drafter=drafter, memory=False, max_new_tokens=LENGTH, **FIXED
    )


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine()) as running:
        yield running


def test_what_is_predicted_is_copied_from_the_first_token_on() -> None:
    own = engine("lookup")
    plain = own.generate(CHAT)
    tokens = list(plain.token_ids)
    tokens[20] = tokens[20] + 1
    told = own.generate(CHAT, prediction=tokens)
    assert told.token_ids == plain.token_ids
    assert told.drafts["prediction"] > 1
    assert told.target_passes < LENGTH / 3 < plain.target_passes
    text = "one two three four five"
    as_text = own.generate(CHAT, prediction=text)
    assert as_text.token_ids == plain.token_ids
    for strange in (7, ["one"], True):
        with pytest.raises(UsageError, match="prediction is "):
            own.generate(CHAT, prediction=strange)  # type: ignore[arg-type]


def test_a_drafter_that_copies_nothing_goes_on_without() -> None:
    own = engine("none")
    assert own.generate(CHAT, prediction="the cat").token_ids == own.generate(CHAT).token_ids


@pytest.mark.parametrize("parts", [False, True])
def test_usage_tells_what_came_of_it(served: Served, parts: bool) -> None:
    def ask(**more: Any) -> Any:
        body = {"messages": CHAT, "max_tokens": LENGTH, "logit_bias": WORDS, **more}
        return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()

    plain = ask()
    text = plain["choices"][0]["message"]["content"]
    predicted = text[: len(text) // 2] + " one"
    content: Any = [{"type": "text", "text": predicted[:5]}, {"type": "text", "text": predicted[5:]}]
    answer = ask(prediction={"type": "content", "content": content if parts else predicted})
    assert answer["choices"] == plain["choices"]
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 3
    assert details["accepted_prediction_tokens"] <= answer["speculation"]["accepted_tokens"]
    assert answer["speculation"]["target_passes"] < plain["speculation"]["target_passes"]
    nothing = {"reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
    assert plain["usage"]["completion_tokens_details"] == nothing
    wrong = ask(prediction={"type": "content", "content": "ten nine eight"})
    assert wrong["choices"] == plain["choices"]
    refused = ask(prediction={"type": "other", "content": ""})
    assert refused["error"]["param"] == "prediction.type"
