"""The bodies of requests, as in OpenAI's API; what is not supported is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

StopText = Annotated[str, Field(min_length=1, max_length=256)]

TOKEN_ID = r"^\d{1,9}$"
TokenName = Annotated[str, Field(pattern=TOKEN_ID)]
Bias = Annotated[float, Field(ge=-100, le=100)]

MOST_LOGPROBS = 20

MOST_TOOLS = 128

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

COLDEST = 1e-6
"""The lowest temperature above 0 that logits can be divided by."""

_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


_NEWER = {"functions": "give tools", "function_call": "give tool_choice"}
"""What took the place of fields that OpenAI does not name any more."""


class Given(BaseModel):
    """What clients send. Null means "not given", of every field.

    Attributes:
        without_effect: official fields that change nothing here, and what they hold.
        unsupported: official fields that are not done here, and the values of them that ask for nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    without_effect: ClassVar[Mapping[str, type]] = {}
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        """Refuse what is not supported, and forget what asks for nothing."""
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        if given.get("function_call") == "none":
            given.pop("functions", None)
        for name, value in given.items():
            if name in cls.unsupported and value not in cls.unsupported[name]:
                raise about(name, f"is not supported; {_NEWER.get(name, 'leave it out')}")
            kind = cls.without_effect.get(name)
            if kind is not None and not isinstance(value, kind):
                raise about(name, f"is not {_KINDS[kind]}; leave it out")
        dropped = {*cls.unsupported, *cls.without_effect}
        return {name: value for name, value in given.items() if name not in dropped}


def about(name: str, words: str) -> PydanticCustomError:
    """An error of a field that is no field of the model."""
    return PydanticCustomError("field", "{name} {words}", {"name": name, "words": words})


def _of_a_template(settings: dict[str, Any]) -> dict[str, Any]:
    """Refuse what the template gets from elsewhere, and another template, which would run on the server."""
    for name in ("messages", "conversation", "tools", "chat_template"):
        if name in settings:
            remedy = "leave it out" if name == "chat_template" else "give messages and tools at the top of the body"
            raise ValueError(f"{name} is no setting of the template; {remedy}")
    return settings


TemplateSettings = Annotated[dict[str, Any], AfterValidator(_of_a_template)]


class StreamOptions(Given):
    """What a stream tells besides."""

    without_effect = {"include_obfuscation": bool}

    include_usage: bool | None = None


class Body(Given):
    """What both completions take, in OpenAI's words and, for what it does not have, in vLLM's.

    Whatever these bounds let through can be computed: a temperature or a penalty so small that logits overflow would
    fail in the middle of a pass.
    """

    without_effect = {
        **dict.fromkeys(("metadata",), dict),
        **dict.fromkeys(("store",), bool),
        **dict.fromkeys(("service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"), str),
        **dict.fromkeys(("verbosity",), str),
    }
    unsupported = {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "audio": (),
        "web_search_options": (),
        "modalities": (["text"],),
    }

    model: str | None = Field(default=None, min_length=1, max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[TokenName, Bias] | None = Field(default=None, max_length=1024)
    min_tokens: int | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    n: int | None = Field(default=None, ge=1, le=1000)
    best_of: int | None = Field(default=None, ge=1, le=1000)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    user: str | None = Field(default=None, max_length=1000)

    @field_validator("top_k")
    @classmethod
    def _off(cls, top_k: int | None) -> int | None:
        """Take -1, as vLLM does, for none."""
        return None if top_k is None else max(0, top_k)

    @field_validator("temperature")
    @classmethod
    def _not_too_cold(cls, temperature: float | None) -> float | None:
        if temperature is not None and 0 < temperature < COLDEST:
            raise ValueError(f"{temperature} is too near to 0; give 0 for greedy decoding, or at least {COLDEST}")
        return temperature

    @model_validator(mode="after")
    def _streams(self) -> Body:
        if self.stream_options is not None and not self.stream:
            raise about("stream_options", "is only for streams; give stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise about(
                "prompt_logprobs", "is given and the answer is a stream, which has no place for it; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _keeps_some(self) -> Body:
        if self.best_of is not None and self.best_of < self.kept:
            raise about("best_of", f"is {self.best_of} and n {self.kept}; give at least n")
        if self.drawn > self.kept and self.stream:
            raise about("best_of", "is above n and the answer is a stream, which has no time to choose; leave one out")
        return self

    @model_validator(mode="after")
    def _can_be_so_long(self) -> Body:
        if self.min_tokens is not None and self.most_tokens is not None and self.min_tokens > self.most_tokens:
            raise about("min_tokens", f"is {self.min_tokens} and the answer has {self.most_tokens} at most; give less")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Most new tokens that were asked for."""
        return self.max_tokens

    @property
    def kept(self) -> int:
        """Answers to a prompt."""
        return self.n or 1

    @property
    def drawn(self) -> int:
        """Answers of which the best are kept."""
        return self.best_of or self.kept

    @property
    def schema_to_follow(self) -> dict[str, Any] | bool | None:
        """None for any text."""
        return None

    @property
    def tools_given(self) -> list[Tool]:
        """What may be called."""
        return []

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Function(Given):
    """What may be called; its parameters are a JSON schema."""

    without_effect = {"strict": bool}

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Given):
    """One of them."""

    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_chat(cls, values: Any) -> Any:
        if isinstance(values, dict) and "name" in values and "function" not in values:
            raise about("function", 'is missing; give {"type": "function", "function": {"name": ..}}')
        return values

    def to_dict(self) -> dict[str, Any]:
        """As chat templates read it."""
        return self.model_dump(exclude_none=True)


class FunctionName(Given):
    """Which."""

    name: str


class ToolChoice(Given):
    """The one that has to be called."""

    type: Literal["function"]
    function: FunctionName


class Called(Given):
    """A function that was called, with its arguments as JSON."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, arguments: str) -> str:
        try:
            found = json.loads(arguments or "{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"{arguments[:40]!r} is no JSON object; give the arguments as they were received")
        return arguments or "{}"


class ToolCall(Given):
    """A call that the assistant made, as it was received."""

    without_effect = {"index": int}

    id: str
    type: Literal["function"] = "function"
    function: Called


class TextPart(Given):
    """A piece of a message."""

    type: Literal["text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _is_text(cls, kind: Any) -> Any:
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"only parts of type text are supported; leave out {kind[:40]!r}")
        return kind


class Message(Given):
    """One turn of a chat."""

    without_effect = {"annotations": list, "audio": dict}  # as a server sends them
    unsupported = {"function_call": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise about("content", f"is missing, and the role is {self.role}; give a text")
        return self

    @property
    def text(self) -> str:
        return _text(self.content)

    def to_dict(self) -> dict[str, Any]:
        """As chat templates read it: the arguments of calls are objects."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        thought = self.reasoning_content or self.reasoning
        more = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": thought}
        turn |= {name: value for name, value in more.items() if value is not None}
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        return turn


class JsonSchema(Given):
    """A schema by name."""

    model_config = ConfigDict(populate_by_name=True)

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, values: Any) -> Any:
        """A schema where its name and it are wanted: its keys are no fields here, and ``type`` is none of both."""
        if isinstance(values, dict) and "schema" not in values and {"type", "properties", "$ref"} & set(values):
            raise about("schema", "is missing, and what is given is a schema itself; give {name, schema}")
        return values


class ResponseFormat(Given):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise about("json_schema", "is missing or has no schema, and the type is json_schema; give {name, schema}")
        return self

    @property
    def schema_to_follow(self) -> dict[str, Any] | bool | None:
        """None for any text."""
        if self.type == "json_object":
            return {"type": "object"}
        return self.json_schema.schema_ if self.type == "json_schema" and self.json_schema else None


class Prediction(Given):
    """A text that the answer may largely repeat."""

    type: Literal["content"]
    content: str | list[TextPart]


def _text(content: str | list[TextPart] | None) -> str:
    return "".join(part.text for part in content) if isinstance(content, list) else content or ""


class ChatBody(Body):
    """``/v1/chat/completions``."""

    unsupported = {**Body.unsupported, "suffix": ("",), "echo": (False,)}

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None
    chat_template_kwargs: TemplateSettings | None = None
    thinking_token_budget: int | None = Field(default=None, ge=0)
    reasoning_effort: Effort | None = None

    @model_validator(mode="after")
    def _thinks_or_not(self) -> ChatBody:
        if self.reasoning_effort == "none" and self.thinking_token_budget:
            raise about(
                "thinking_token_budget", f"is {self.thinking_token_budget} and the effort none; leave one of both out"
            )
        return self

    @property
    def template(self) -> dict[str, Any]:
        """What the chat template is told: by the names that those of gpt-oss and Qwen 3 read."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        thinks = {"enable_thinking": False} if self.reasoning_effort == "none" else {}
        return {**effort, **thinks, **(self.chat_template_kwargs or {})}

    @model_validator(mode="after")
    def _chooses_what_is_there(self) -> ChatBody:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise about("tools", f"name {max(names, key=names.count)!r} twice; give each another name")
        choice = self.tool_choice.function.name if isinstance(self.tool_choice, ToolChoice) else self.tool_choice
        if choice == "required" and not names:
            raise about("tool_choice", "is required and there are no tools; give some")
        if isinstance(self.tool_choice, ToolChoice) and choice not in names:
            raise about("tool_choice", f"is {choice!r}, which is not among the tools; give one of their names")
        if self.tools_to_call and self.schema_to_follow is not None:
            raise about("response_format", "is given and tools have to be called; leave one out")
        return self

    @model_validator(mode="after")
    def _asks_for_logprobs(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise about("top_logprobs", "is given without logprobs; give logprobs: true")
        return self

    @model_validator(mode="after")
    def _has_one_limit(self) -> ChatBody:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise about(
                "max_tokens", f"is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}; give one"
            )
        return self

    @property
    def schema_to_follow(self) -> dict[str, Any] | bool | None:
        return self.response_format.schema_to_follow if self.response_format else None

    @property
    def predicted(self) -> str | None:
        """What the answer may largely repeat."""
        return _text(self.prediction.content) if self.prediction else None

    @property
    def tools_given(self) -> list[Tool]:
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def tools_to_call(self) -> list[Tool]:
        """Those of which one has to be called; none where the model may choose."""
        if isinstance(self.tool_choice, ToolChoice):
            name = self.tool_choice.function.name
            return [tool for tool in self.tools_given if tool.function.name == name]
        return self.tools_given if self.tool_choice == "required" else []

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Body):
    """``/v1/completions``."""

    without_effect = {**Body.without_effect, "reasoning_effort": str}
    unsupported = {**Body.unsupported, "suffix": ("",)}

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: Any) -> Any:
        if not prompt or (isinstance(prompt, list) and not all(each or each == 0 for each in prompt)):
            raise ValueError("the prompt is empty; give at least one token")
        return prompt

    @model_validator(mode="after")
    def _asks_for_something(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise about("max_tokens", "is 0 without echo; give at least 1")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        one = isinstance(self.prompt[0], int)
        return cast("list[str | list[int]]", [self.prompt] if one else self.prompt)

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs


class TokenizeBody(Given):
    """``/tokenize``: a text, or a chat through the template, as vLLM has it."""

    without_effect = {"return_token_strs": bool}

    model: str | None = Field(default=None, min_length=1, max_length=1000)
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = Field(default=None, max_length=MOST_TOOLS)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateSettings | None = None

    @model_validator(mode="after")
    def _has_one_text(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise about("prompt", "or messages is wanted; give one of both")
        return self


class DetokenizeBody(Given):
    """``/detokenize``."""

    model: str | None = Field(default=None, min_length=1, max_length=1000)
    tokens: list[Annotated[int, Field(ge=0)]]
