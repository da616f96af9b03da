"""OpenAI's Responses API: its bodies become those of chats, and what a chat answers becomes its items and events."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from specstream.serving.requests import (
    MOST_TOOLS,
    Called,
    ChatBody,
    Effort,
    Function,
    FunctionName,
    Given,
    about,
)

CHAT_FIELDS = {"messages": "input", "response_format": "text", "max_completion_tokens": "max_output_tokens"}
"""What the fields of a chat's body are called here."""

_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class Part(Given):
    """A piece of an item, as it is sent or as it was received."""

    without_effect: ClassVar[Mapping[str, type]] = {"annotations": list, "logprobs": list}

    type: Literal["input_text", "output_text", "reasoning_text", "text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _is_text(cls, kind: Any) -> Any:
        if isinstance(kind, str) and kind.rpartition("_")[2] != "text":
            raise ValueError(f"only parts of text are supported; leave out {kind[:40]!r}")
        return kind


class Item(Given):
    """One of the input: a message, a call, its output, or a thought that comes back."""

    without_effect: ClassVar[Mapping[str, type]] = {
        **dict.fromkeys(("id", "status", "phase", "encrypted_content"), str),
        "summary": list,
    }

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Item:
        if missing := next((name for name in _NEEDED[self.type] if getattr(self, name) is None), None):
            raise about(missing, f"is missing, and the type is {self.type}; give it")
        if self.arguments is not None:
            try:
                Called(name=self.name or "", arguments=self.arguments)
            except ValidationError as error:
                raise about("arguments", error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self


class FunctionTool(Function):
    """A function that may be called."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise about("type", f"is {kind[:40]!r}, and only functions are supported; leave this tool out")
        if isinstance(values, dict) and "function" in values and "name" not in values:
            raise about("name", "is missing; give name, description and parameters beside type, without function")
        return values


class FunctionChoice(FunctionName):
    """The one that has to be called."""

    type: Literal["function"]


class TextFormat(Given):
    """What the answer has to look like."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class Text(Given):
    """How the answer is written."""

    without_effect: ClassVar[Mapping[str, type]] = {"verbosity": str}

    format: TextFormat | None = None


class Reasoning(Given):
    """How much a model thinks. Nobody writes summaries: the whole thought is told."""

    without_effect: ClassVar[Mapping[str, type]] = dict.fromkeys(("summary", "generate_summary"), str)

    effort: Effort | None = None


Included = Literal[
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "web_search_call.results",
    "web_search_call.action.sources",
    "file_search_call.results",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
"""What an answer may be asked to hold besides: none of it is made here, so nothing is left out.

Log probabilities (``message.output_text.logprobs``) are not among them: a chat has them."""


class ResponsesBody(Given):
    """``/v1/responses``."""

    without_effect: ClassVar[Mapping[str, type]] = {
        **dict.fromkeys(("store",), bool),
        **dict.fromkeys(("service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"), str),
    }
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **dict.fromkeys(("previous_response_id", "conversation", "prompt", "max_tool_calls"), ()),
        "background": (False,),
        "truncation": ("disabled",),
        "top_logprobs": (0,),
    }

    model: str | None = Field(default=None, min_length=1, max_length=1000)
    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    metadata: dict[str, str] | None = None
    reasoning: Reasoning | None = None
    thinking_token_budget: int | None = Field(default=None, ge=0)
    stream: bool | None = None
    stream_options: dict[Literal["include_obfuscation"], bool] | None = None
    include: list[Included] | None = None
    user: str | None = Field(default=None, max_length=1000)
    _chat: ChatBody = PrivateAttr()

    @field_validator("include", mode="before")
    @classmethod
    def _without_logprobs(cls, names: Any) -> Any:
        if isinstance(names, list) and "message.output_text.logprobs" in names:
            raise ValueError("log probabilities are not supported here; ask /v1/chat/completions for logprobs")
        return names

    @model_validator(mode="after")
    def _is_a_chat(self) -> ResponsesBody:
        """What a chat would refuse is refused here, by the name that it has here."""
        chosen = self.tool_choice
        if isinstance(chosen, FunctionChoice):
            chosen = {"type": "function", "function": {"name": chosen.name}}  # type: ignore[assignment]
        same = ("model", "parallel_tool_calls", "temperature", "top_p", "stream", "user", "thinking_token_budget")
        body = {
            **{name: getattr(self, name) for name in same},
            "messages": self._messages(),
            "tools": [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in self.tools or ()],
            "tool_choice": chosen,
            "response_format": self._format(),
            "max_completion_tokens": self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "stream_options": {"include_usage": True} if self.stream else None,
        }
        try:
            self._chat = ChatBody.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            context = first.get("ctx", {})
            name = str((*first["loc"], context.get("name"))[0])
            words = str(context.get("words") or first["msg"]).removeprefix("Value error, ")
            raise about(CHAT_FIELDS.get(name, name), words) from None
        return self

    @property
    def chat(self) -> ChatBody:
        """The same request, as the chat that it is."""
        return self._chat

    def _format(self) -> dict[str, Any] | None:
        form = self.text.format if self.text else None
        if form is None:
            return None
        if form.type != "json_schema":
            return {"type": form.type}
        return {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema_}}

    def _messages(self) -> list[dict[str, Any]]:
        """The turns of the chat; what the assistant thought, said and called is one of them."""
        turns: list[dict[str, Any]] = []
        if self.instructions is not None:
            turns.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*turns, {"role": "user", "content": self.input}]
        for item in self.input:
            if item.type == "function_call_output":
                turns.append({"role": "tool", "tool_call_id": item.call_id, "content": _said(item.output)})
                continue
            if item.type == "message" and item.role != "assistant":
                turns.append({"role": item.role, "content": _said(item.content)})
                continue
            said = _turn(item)
            last = turns[-1] if turns else {}
            if last.get("role") != "assistant" or (said.keys() & last.keys()) - {"role", "tool_calls"}:
                turns.append(said)
            else:
                calls = [*last.get("tool_calls", ()), *said.get("tool_calls", ())]
                last.update({**said, **({"tool_calls": calls} if calls else {})})
        return turns


def _turn(item: Item) -> dict[str, Any]:
    """What an item of the assistant adds to its turn."""
    if item.type == "reasoning":
        return {"role": "assistant", "reasoning_content": _said(item.content)}
    if item.type == "message":
        return {"role": "assistant", "content": _said(item.content)}
    function = {"name": item.name, "arguments": item.arguments}
    return {"role": "assistant", "tool_calls": [{"id": item.call_id, "type": "function", "function": function}]}


def _said(content: str | list[Part] | None) -> str:
    return "".join(part.text for part in content) if isinstance(content, list) else content or ""


class ResponseEvents:
    """Makes a response, and the events of its stream, of what a chat answers.

    Args:
        body: the request.
    """

    def __init__(self, body: ResponsesBody) -> None:
        self._number, self._reason = 0, ""
        self._items: list[dict[str, Any]] = []
        self._response = {**_echoed(body), "object": "response", "status": "in_progress", "output": self._items}

    def whole(self, completion: Mapping[str, Any]) -> dict[str, Any]:
        """The response of a whole answer."""
        (choice,) = completion["choices"]
        told = {**completion, "choices": [{"delta": choice["message"], "finish_reason": choice["finish_reason"]}]}
        for _ in (*self.begin(told), *self.feed(told), *self.end()):
            pass
        return self._response

    def begin(self, head: Mapping[str, Any]) -> Iterator[bytes]:
        """The first events, of an answer's name and time."""
        self._response |= {
            "id": "resp_" + head["id"].removeprefix("chatcmpl-"),
            "created_at": head["created"],
            "model": head["model"],
        }
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response)

    def feed(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """The events of a part of a chat's stream."""
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for kind, name in (("reasoning", "reasoning_content"), ("message", "content")):
                if delta.get(name):
                    yield from self._write(kind, delta[name])
            for call in delta.get("tool_calls", ()):
                yield from self._call(call)
            self._reason = choice["finish_reason"] or self._reason
        self._response |= {name: chunk[name] for name in ("speculation", "clamped") if name in chunk}
        if chunk.get("usage"):
            self._response["usage"] = _usage(chunk["usage"])

    def end(self) -> Iterator[bytes]:
        """The last events."""
        whole = self._reason != "length"
        if not self._items:
            yield from self._open("message")
        yield from self._close("completed" if whole else "incomplete")
        self._response["status"] = "completed" if whole else "incomplete"
        self._response["incomplete_details"] = None if whole else {"reason": "max_output_tokens"}
        yield self._event(f"response.{self._response['status']}", response=self._response)

    def failed(self, status: int, error: Mapping[str, Any]) -> Iterator[bytes]:
        """The last event of an answer that failed with this HTTP status."""
        code = "server_error" if status >= 500 else "invalid_prompt"
        self._response |= {"status": "failed", "error": {"code": code, "message": error["message"]}}
        yield self._event("response.failed", response=self._response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        told = json.dumps({"type": kind, "sequence_number": self._number, **fields}, separators=(",", ":"))
        self._number += 1
        return f"event: {kind}\ndata: {told}\n\n".encode()

    def _place(self) -> dict[str, Any]:
        """Of the last item and, where it has them, of its only part."""
        item = self._items[-1]
        part = {"content_index": 0} if item["type"] != "function_call" else {}
        return {"item_id": item["id"], "output_index": len(self._items) - 1, **part}

    def _open(self, kind: str, **more: Any) -> Iterator[bytes]:
        if self._items:
            yield from self._close("completed")
        item: dict[str, Any] = {
            "id": f"{_PREFIXES[kind]}_{secrets.token_hex(12)}",
            "type": kind,
            "status": "in_progress",
            **more,
        }
        if kind != "function_call":
            item["content"] = []
        if kind == "message":
            item["role"] = "assistant"
        if kind == "reasoning":
            item["summary"] = []
        self._items.append(item)
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)
        if kind != "function_call":
            part: dict[str, Any] = {"type": _PARTS[kind], "text": "", **_chances(kind)}
            if kind == "message":
                part["annotations"] = []
            item["content"].append(part)
            yield self._event("response.content_part.added", **self._place(), part=part)

    def _write(self, kind: str, text: str) -> Iterator[bytes]:
        if not self._items or self._items[-1]["type"] != kind:
            yield from self._open(kind)
        self._items[-1]["content"][0]["text"] += text
        yield self._event(f"response.{_PARTS[kind]}.delta", **self._place(), delta=text, **_chances(kind))

    def _call(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        function = call["function"]
        if "id" in call:
            yield from self._open("function_call", call_id=call["id"], name=function["name"], arguments="")
        if function["arguments"]:
            self._items[-1]["arguments"] += function["arguments"]
            kind = "response.function_call_arguments.delta"
            yield self._event(kind, **self._place(), delta=function["arguments"])

    def _close(self, status: str) -> Iterator[bytes]:
        """The last item, which nothing follows."""
        item, place = self._items[-1], self._place()
        item["status"] = status
        if item["type"] == "function_call":
            kind = "response.function_call_arguments.done"
            yield self._event(kind, **place, name=item["name"], arguments=item["arguments"])
        else:
            (part,) = item["content"]
            told = f"response.{_PARTS[item['type']]}.done"
            yield self._event(told, **place, text=part["text"], **_chances(item["type"]))
            yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=place["output_index"], item=item)


_PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}


def _chances(kind: str) -> dict[str, Any]:
    """Text has probabilities of its tokens, of which none are told here."""
    return {"logprobs": []} if kind == "message" else {}


def _echoed(body: ResponsesBody) -> dict[str, Any]:
    """What a response says of its request."""
    form = body.text.format if body.text else None
    named = body.tool_choice.model_dump() if isinstance(body.tool_choice, FunctionChoice) else body.tool_choice
    return {
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tool_choice": named or "auto",
        "tools": [{**tool.model_dump(), "strict": False} for tool in body.tools or ()],
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "store": False,
        "usage": None,
    }


def _usage(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {**counts["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": counts["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": counts["total_tokens"],
    }
