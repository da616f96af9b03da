"""What ``/openapi.json`` says of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

_STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "With stream: true."}}}

_FAILURES = {
    400: "A body, a value or a prompt that cannot be used.",
    401: "The key is missing or wrong.",
    404: "The model is not served here.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    429: "The queue is full; Retry-After says when to come again.",
    500: "The answer failed; the log says why.",
    501: "The server lacks a package for this.",
    503: "The server is stopping, or has too many connections.",
    504: "The answer took too long.",
}


class Said(BaseModel):
    """A part of an answer; there are no other fields."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Problem(Said):
    """What is wrong; ``param`` is a field of the body."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(Said):
    """Any answer but 200."""

    error: Problem


class PromptTokens(Said):
    """What of the prompts was not read: a part of ``prompt_tokens``."""

    cached_tokens: int


class OutputTokens(Said):
    """What of an answer is thought, tags included."""

    reasoning_tokens: int


class AnswerTokens(Said):
    """Of answers: thought, tags included, and tokens that were drafted from a prediction, and were accepted or not."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Said):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: AnswerTokens


class Speculation(Said):
    """How it was decoded: docs/serving.md."""

    target_passes: int
    drafted_tokens: int
    accepted_tokens: int
    acceptance_rate: float
    mean_accepted_length: float
    drafts: dict[str, int]
    exact: Literal["bits", "rounding"]
    lossless: bool
    left_out: str | None


class Clamped(Said):
    """What was lowered to the limit."""

    max_tokens: int


class Likely(Said):
    """A token and its probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class Chosen(Likely):
    """The token that was taken."""

    top_logprobs: list[Likely]


class ChatLogprobs(Said):
    """Of each token."""

    content: list[Chosen] | None
    refusal: None


class CalledFunction(Said):
    """A function and, as JSON, its arguments."""

    name: str
    arguments: str


class Call(Said):
    """What the client is asked to call."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Reply(Said):
    """The assistant's message; it has no content where it says nothing beside its thought and its calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class ChatChoice(Said):
    """One answer to a chat."""

    index: int
    message: Reply
    finish_reason: str
    logprobs: ChatLogprobs | None


class TextLogprobs(Said):
    """Of each token; the first of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Ranked(Said):
    """A token of a prompt, or one in its place; ``rank`` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, Ranked] | None]


class TextChoice(Said):
    """One text that goes on."""

    index: int
    text: str
    finish_reason: str
    logprobs: TextLogprobs | None
    prompt_logprobs: PromptLogprobs | None = None


class Answered(Said):
    """What both kinds of answers have; ``clamped`` is there where something was."""

    id: str
    created: int
    model: str
    usage: Usage
    speculation: Speculation
    clamped: Clamped | None = None


class ChatCompletion(Answered):
    """Of ``/v1/chat/completions``."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | None = None


class Completion(Answered):
    """Of ``/v1/completions``."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class InputTokens(PromptTokens):
    """Likewise; nothing is billed for what is kept."""

    cache_write_tokens: int


class ResponseUsage(Said):
    """Tokens, by other names."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens
    output_tokens_details: OutputTokens


class Responded(Said):
    """Of ``/v1/responses``; what it says of its request is as it was given."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    reasoning: dict[str, str | None]
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float | None
    top_p: float | None
    tool_choice: str | dict[str, str]
    tools: list[dict[str, Any]]
    text: dict[str, Any]
    store: Literal[False]
    speculation: Speculation
    clamped: Clamped | None = None


class Tokens(Said):
    """Of ``/tokenize``; ``max_model_len`` is of tokens, null for no limit."""

    tokens: list[int]
    count: int
    max_model_len: int | None


class Text(Said):
    """Of ``/detokenize``."""

    prompt: str


class Version(Said):
    """Of ``/version``."""

    version: str


class Card(Said):
    """A model; ``max_model_len`` is of tokens, null for no limit, and ``parent`` the base of an adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None


class Cards(Said):
    """The models."""

    object: Literal["list"]
    data: list[Card]


class Health(Said):
    """Whether the server is well."""

    status: str


def generated(kind: type[Said]) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that generates."""
    answers = answered(kind, list(_FAILURES))
    answers[200]["content"] = _STREAM
    return answers


def answered(kind: type[Said], failures: Sequence[int] = ()) -> dict[int | str, dict[str, Any]]:
    """The answers of a route; ``default`` is there for what every route may say, and in place of FastAPI's own 422."""
    answers: dict[int | str, dict[str, Any]] = {200: {"model": kind, "description": "The answer."}}
    answers |= {status: {"model": Failure, "description": _FAILURES[status]} for status in failures}
    return {**answers, "default": {"model": Failure, "description": "Anything else."}}


def well() -> dict[int | str, dict[str, Any]]:
    """The answers of a probe."""
    return {
        200: {"model": Health, "description": "It is well."},
        503: {"model": Health, "description": "It is not."},
    }
