"""Calls of tools: how models write them, the grammar that holds an answer to them, and how they are read.

A format is told from the chat template, or named (``tool_call_parser``). Nothing here looks at special tokens, which
are not part of an answer's text: what begins like a call where no marker is, is one if it names a tool of the request.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

OPENING, CLOSING = "<tool_call>", "</tool_call>"
# Qwen2.5-Coder puts its calls into code blocks, or into the tags that tools are told in, whatever it was told.
_MARKERS = {OPENING: CLOSING, "```json": "```", "<tools>": "</tools>"}
_NAMED = re.compile(r'\{\s*"name"\s*:\s*"([\w.-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_BARE = re.compile(r"([\w.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
_BETWEEN = " \t\r\n,;[]}"

Parser = Literal["auto", "hermes", "llama3_json", "mistral", "smollm2"]
"""What a server may be told of the format, by vLLM's names; ``auto`` takes the template's."""


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """How a family of models writes its calls.

    Attributes:
        opening: before the first call, or before each where they are not ``listed``.
        closing: behind.
        listed: whether all calls are one list of JSON.
        between: what stands between two calls.
        arguments: the key of a call's arguments.
        templated: whether the chat template says which tools there are; if not, ``instructions`` do.
    """

    opening: str
    closing: str
    listed: bool = False
    between: str = "\n"
    arguments: str = "arguments"
    templated: bool = True


FORMATS: Mapping[str, ToolFormat] = {
    "hermes": ToolFormat(opening=OPENING + "\n", closing="\n" + CLOSING),
    "llama3_json": ToolFormat(opening="", closing="", between="; ", arguments="parameters"),
    "mistral": ToolFormat(opening="[", closing="]", listed=True, between=", "),
    "smollm2": ToolFormat(opening=OPENING + "[", closing="]" + CLOSING, listed=True, between=", ", templated=False),
}


def format_of(template: str | None, parser: Parser) -> ToolFormat:
    """The format of a named parser, or that of a chat template: Qwen's and Hermes', Mistral's, Llama 3's.

    A template that says nothing of tools gets the format of SmolLM2, with the tools in a system message.
    """
    marks = {"[TOOL_CALLS]": "mistral", OPENING: "hermes", "tools": "llama3_json", "": "smollm2"}
    told = next(name for mark, name in marks.items() if mark in (template or ""))
    return FORMATS[told if parser == "auto" else parser]


def rendered(
    turns: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], form: ToolFormat
) -> list[dict[str, Any]]:
    """A chat for a template that knows no tools: they stand in a system message, calls in what the assistant said."""
    listed = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    said = (
        "You can call functions. They are, with the JSON schemas of their arguments:\n"
        f"<tools>{listed}</tools>\n"
        "Where functions help, answer with a list of calls and nothing else:\n"
        f'{OPENING}[{{"name": "function", "arguments": {{"argument": "value"}}}}]{CLOSING}\n'
        "Otherwise answer in plain words."
    )
    if not tools:
        said = ""
    written = [{**turn, "content": _written(turn, form)} for turn in turns]
    for turn in written:
        turn.pop("tool_calls", None)
    if written and written[0]["role"] == "system":
        said = "\n\n".join(filter(None, (written.pop(0)["content"], said)))
    return [{"role": "system", "content": said}, *written] if said else written


def _written(turn: Mapping[str, Any], form: ToolFormat) -> str:
    calls = [call["function"] for call in turn.get("tool_calls") or ()]
    if not calls:
        return str(turn["content"] or "")
    listed = ", ".join(json.dumps({"name": each["name"], form.arguments: each["arguments"]}) for each in calls)
    return f"{turn['content'] or ''}{form.opening}{listed}{form.closing}"


def symbol(tokenizer: Any, tag: str) -> str:
    """A tag in Lark's notation; by its id if it is one token: llguidance takes added ones in brackets for no text."""
    tokens = tokenizer(tag, add_special_tokens=False)["input_ids"]
    return f"<[{tokens[0]}]>" if len(tokens) == 1 else json.dumps(tag)


def grammar(tokenizer: Any, form: ToolFormat, tools: Sequence[Mapping[str, Any]], *, several: bool) -> str:
    """What llguidance holds an answer to that is calls of these functions, and nothing else: Lark's notation.

    Args:
        tokenizer: the model's, whose tags may be tokens.
        form: how the model writes them.
        tools: the functions that may be called, each with a name and perhaps parameters.
        several: whether there may be more than one call.
    """
    rules = []
    for at, tool in enumerate(tools):
        schema = dict(tool.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False})
        schema["x-guidance"] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        head = f'{{"name": {json.dumps(tool["name"])}, "{form.arguments}": '
        rules += [f'call{at}: {json.dumps(head)} arguments{at} "}}"', f"arguments{at}: %json {json.dumps(schema)}"]
    opening, closing = (
        "".join(
            f"{symbol(tokenizer, part) if part in (OPENING, CLOSING) else json.dumps(part)} "
            for part in re.split(f"({OPENING}|{CLOSING})", each)
            if part
        )
        for each in (form.opening, form.closing)
    )
    call = f"({' | '.join(f'call{at}' for at in range(len(tools)))})"
    one = call if form.listed else f"{opening}{call} {closing}".strip()
    more = f" ({json.dumps(form.between)} {one})*" if several else ""
    start = f"{opening}{one}{more} {closing}" if form.listed else f"{one}{more}"
    return "\n".join([f"start: {start.strip()}", *rules])


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What a piece of an answer turned out to be: text, or a part of a call.

    Attributes:
        content: text for the reader.
        reasoning: text of the thought before it.
        index: which call of the answer.
        name: of the function; with the call's first part only.
        arguments: JSON that goes on with the call's arguments.
    """

    content: str = ""
    reasoning: str = ""
    index: int = -1
    name: str | None = None
    arguments: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a stream says it."""
        if self.reasoning:
            return {"reasoning_content": self.reasoning}
        if self.index < 0:
            return {"content": self.content}
        call: dict[str, Any] = {"index": self.index, "function": {"arguments": self.arguments}}
        if self.name is not None:
            call |= {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
            call["function"] = {"name": self.name, "arguments": self.arguments}
        return {"tool_calls": [call]}


class _Object:
    """Where a JSON object ends, looked for from its opening brace on, each character once."""

    def __init__(self, start: int) -> None:
        self.at, self._depth, self._text, self._escaped = start, 0, False, False

    def end(self, text: str) -> int | None:
        """The place behind it; None if it goes on."""
        while self.at < len(text):
            letter, self.at = text[self.at], self.at + 1
            if self._escaped:
                self._escaped = False
            elif self._text:
                self._escaped, self._text = letter == "\\", letter != '"'
            elif letter == '"':
                self._text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return self.at
        return None


class ToolReader:
    """Reads one answer: pieces in, text and calls out, as soon as they are certain.

    What is no call of a tool of the request is text, as the model wrote it. An answer that ends within a call's
    arguments has given them as far as it went.

    Args:
        names: of the tools.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self._rest = ""  # what is not certain yet
        self._text = True  # False between a marker and its end
        self._bare = True  # whether a call without a marker may begin here: nothing was said yet
        self._marker = ""  # what was left out before an object, if that is no call
        self._closing = CLOSING  # of the marker before
        self._scan: _Object | None = None  # of the object that ``_rest`` begins with
        self._streaming = False  # whether that object is the arguments of a call that was told
        self.calls = 0

    def feed(self, piece: str) -> list[Delta]:
        """What is certain now."""
        self._rest += piece
        return list(self._read())

    def finish(self) -> list[Delta]:
        """What is left, which nothing follows."""
        found = list(self._read())
        rest, self._rest = self._marker + self._rest, ""
        if self._streaming or (self.calls and not rest.strip(_BETWEEN)):
            return found
        return [*found, Delta(content=rest)] if rest else found

    def _read(self) -> Iterator[Delta]:
        while True:
            before = len(self._rest), self._text, self._scan
            if self._scan is not None:
                yield from self._go_on(self._scan)
            elif self._text:
                yield from self._look()
            else:
                yield from self._between()
            if (len(self._rest), self._text, self._scan) == before:
                return

    def _look(self) -> Iterator[Delta]:
        """Text up to a marker, or a call that an answer begins with."""
        rest = self._rest
        if (self._bare and self._begins_bare(rest.lstrip())) or not self._text or (self.calls and not rest.strip()):
            return
        found = [(at, marker) for marker in _MARKERS if (at := rest.find(marker)) >= 0]
        if found:
            end, self._marker = min(found)
            self._text, self._closing, self._rest = False, _MARKERS[self._marker], rest[end + len(self._marker) :]
        else:  # a marker may have begun
            sizes = range(min(len(OPENING) - 1, len(rest)), 0, -1)
            begun = (size for size in sizes if any(marker.startswith(rest[-size:]) for marker in _MARKERS))
            end = len(rest) - next(begun, 0)
            self._rest = rest[end:]
        said = rest[:end]
        if said and not (self.calls and said.isspace()):  # what stands between two calls
            self._bare = False
            yield Delta(content=said)

    def _begins_bare(self, rest: str) -> bool:
        """Whether to wait; an answer that begins with a call is read from there."""
        if not rest:
            return True
        if rest[0] in "{[" or _BARE.match(rest):
            if (named := _BARE.match(rest)) and named[1] not in self._names:
                self._bare = False
                return False
            self._text = False
            return False
        waits = any(name.startswith(rest.strip()) for name in self._names)
        self._bare = waits
        return waits

    def _between(self) -> Iterator[Delta]:
        """From the end of a call, or from a marker, to the next call, or to the marker's end."""
        rest = self._rest.lstrip(_BETWEEN)
        if rest.startswith("{"):
            self._marker += self._rest[: len(self._rest) - len(rest)]
            self._rest, self._scan = rest, _Object(0)
        elif self.calls and rest.startswith(self._closing):
            self._text, self._bare, self._marker, self._rest = True, False, "", rest[len(self._closing) :]
        elif named := _BARE.match(rest):
            if named[1] in self._names:
                yield self._begun(named[1])
                self._rest, self._scan, self._streaming = rest[named.end() :], _Object(0), True
            else:
                yield from self._no_call(len(self._rest))
        elif rest and not self._closing.startswith(rest) and not re.fullmatch(r"[\w.-]+\s*(\[A?R?G?S?\]?)?", rest):
            yield from self._no_call(len(self._rest))

    def _go_on(self, scan: _Object) -> Iterator[Delta]:
        """With the object that is being read."""
        if not self._streaming and (named := _NAMED.match(self._rest)) and named[1] in self._names:
            yield self._begun(named[1])
            self._rest, self._streaming = self._rest[named.end() :], True
            self._scan = scan = _Object(0)
        end = scan.end(self._rest)
        if self._streaming:
            told = len(self._rest) if end is None else end
            if told:
                yield Delta(index=self.calls - 1, arguments=self._rest[:told])
            self._rest, scan.at = self._rest[told:], 0
            if end is not None:
                self._scan, self._streaming = None, False
        elif end is not None:
            call, self._scan = _call(self._rest[:end]), None
            if call is not None and call[0] in self._names:
                yield self._begun(call[0], call[1])
                self._rest = self._rest[end:]
            else:
                yield from self._no_call(end)

    def _begun(self, name: str, arguments: str = "") -> Delta:
        self._marker, self._bare = "", False
        self.calls += 1
        return Delta(index=self.calls - 1, name=name, arguments=arguments)

    def _no_call(self, end: int) -> Iterator[Delta]:
        """So much of the rest is text after all."""
        said, self._marker, self._rest = self._marker + self._rest[:end], "", self._rest[end:]
        self._text, self._bare = True, False
        yield Delta(content=said)


def _call(text: str) -> tuple[str, str] | None:
    """Name and arguments, as JSON, of an object that is a call."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    name, arguments = found.get("name"), found.get("arguments", found.get("parameters", {}))
    if not isinstance(name, str):
        return None
    return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
