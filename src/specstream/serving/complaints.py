"""What is wrong with a body: the field that it is about, and a sentence with the value, not all of a long one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from specstream.errors import meant, remedy, shown
from specstream.serving.middleware import refusal
from specstream.serving.requests import TOKEN_ID, ChatBody, CompletionBody, DetokenizeBody, Given, TokenizeBody
from specstream.serving.responses_api import ResponsesBody

_LONGEST_NAME = 100
_JSON = {"None": "null", "True": "true", "False": "false"}
_SHOULD = "Input should be "
_MAPPING = "a mapping of keys to values"
"""An object, in the words for YAML."""

_PATHS = {"messages": "/v1/chat/completions", "prompt": "/v1/completions", "input": "/v1/responses"}
"""The field that a body of each path must have."""

_BODIES: tuple[type[Given], ...] = (ChatBody, CompletionBody, ResponsesBody, TokenizeBody, DetokenizeBody)
_FIELDS = {
    path: body.model_fields for path, body in zip((*_PATHS.values(), "/tokenize", "/detokenize"), _BODIES, strict=True)
}

_SCHEMA = 'give response_format: {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}'
_INSTEAD = {
    "response_format.schema": _SCHEMA,
    "guided_json": _SCHEMA,
    "structured_outputs": _SCHEMA,
    **dict.fromkeys(("messages.text", "messages.value", "input.text", "input.value"), "did you mean 'content'?"),
    **dict.fromkeys(("guided_regex", "guided_grammar", "grammar", "json_schema"), _SCHEMA),
    "guided_choice": f'{_SCHEMA}, the schema {{"enum": [..]}}',
    **dict.fromkeys(
        ("think", "enable_thinking", "thinking"),
        'give reasoning_effort: "none" for no thought, or chat_template_kwargs',
    ),
    **dict.fromkeys(("allowed_token_ids", "bad_words"), "give logit_bias, from token ids to -100 or 100"),
    "lora_request": "an adapter is asked for by its name, as model",
    "chat_template": "the model's own is used; leave it out",
    "return_token_ids": "/tokenize gives the ids of a text; leave it out",
    "spaces_between_special_tokens": "leave it out",
    "format": "did you mean 'response_format'?",
    "extra_body": "give what is in it at the top of the body",
}
"""Fields of other servers and clients, and what does it here."""


_FORMS = {
    "messages": 'a list, such as [{"role": "user", "content": "Name three rivers."}]',
    "tools": 'a list, such as [{"type": "function", "function": {"name": "now"}}]',
    "tokens": "a list of token ids",
}
"""What a list holds where texts are no members of it."""


class _Complaint(NamedTuple):
    """One of pydantic's errors: the keys and indices that lead to what it is about, and what is wrong there."""

    place: tuple[str | int, ...]
    words: str


def malformed(error: RequestValidationError, content_type: str, path: str) -> Response:
    """The refusal of a body.

    Args:
        error: every complaint about it.
        content_type: the header.
        path: that it was sent to.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        said = f"is {kind[:_LONGEST_NAME]!r}" if kind else "is missing"
        return refusal(400, f"the Content-Type {said}; send Content-Type: application/json", code="invalid_body")
    if error.body is None:
        return refusal(400, "the body is empty or null; send a JSON object", code="invalid_body")
    place, words = _most_precise([_complaint(each, error.body, path) for each in error.errors()], error.body)
    name = ".".join(str(part)[:_LONGEST_NAME] + ".." * (len(str(part)) > _LONGEST_NAME) for part in place)
    whole = f"{name}: {words}" if name else words
    message = f"{name or 'the body'} {words}" if words.startswith("is ") else whole
    return refusal(400, message, code="invalid_body", param=name or None)


def _complaint(error: Any, body: Any, path: str) -> _Complaint:
    kind, context = error["type"], error.get("ctx", {})
    words = str(error["msg"]).removeprefix("Value error, ").splitlines()[0]
    if kind == "json_invalid":  # its place is a character
        at = error["loc"][-1]
        said = f"{words} at character {at}: {context.get('error', 'no JSON')}; send a JSON object"
        return _Complaint(place=(), words=said)
    place = _place(error["loc"][1:], body, missing=kind == "missing")
    if kind == "string_pattern_mismatch":
        wanted = "a token id" if context["pattern"] == TOKEN_ID else f"one that matches {context['pattern']}"
        words = f"is {shown(error['input'])}; give {wanted}"
    if kind == "field":  # of the object, and about one of its fields
        place, words = (*place, context["name"]), context["words"]
    elif kind == "extra_forbidden":
        words = _unknown(place, path)
    elif kind == "missing":
        given = body if len(place) == 1 and isinstance(body, Mapping) else {}
        paths = {**_PATHS, "prompt": "/tokenize"} if path == "/detokenize" else _PATHS
        other = next((path for field, path in paths.items() if field != place[0] and field in given), None)
        words = "is missing; give it" if other is None else f"is missing; what is sent goes to {other}"
    return _Complaint(place=place, words=words)


def _unknown(place: tuple[str | int, ...], path: str) -> str:
    name = ".".join(part for part in place if isinstance(part, str))
    if name in _INSTEAD:
        return f"the field is not known; {_INSTEAD[name]}"
    like = meant(name, _FIELDS.get(path, ())) if len(place) == 1 else None
    other = next((each for each, fields in _FIELDS.items() if each != path and name in fields), None)
    if like is None and other is not None:
        return f"the field is one of {other}; send it there, or leave it out"
    return f"the field is not known; {'leave it out' if like is None else f'did you mean {like!r}?'}"


def _place(location: Sequence[str | int], body: Any, *, missing: bool) -> tuple[str | int, ...]:
    """Where it is in the body: of a union, pydantic says which branch it means, and that is no field."""
    found: list[str | int] = []
    value = body
    for at, part in enumerate(location):
        last = missing and at == len(location) - 1
        if isinstance(value, dict) and isinstance(part, str) and (part in value or last):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        found.append(part)
    return tuple(found)


def _most_precise(complaints: Sequence[_Complaint], body: Any) -> tuple[tuple[str | int, ...], str]:
    """Of the first field that is wrong what is wrong deepest inside: a union complains about each of its branches.

    What all of them complain about is wrong in itself, and a value of the wrong size is of the right type.
    """
    first = complaints[0].place
    inside = [each for each in complaints if each.place[: len(first)] == first]
    times = Counter(each.place for each in inside)
    place = max(times, key=lambda place: (len(place), times[place]))
    words = list(dict.fromkeys(each.words for each in inside if each.place == place))
    words = [each for each in words if " should have " in each] or words
    if all(each.startswith(_SHOULD) for each in words):
        words = [_SHOULD + " or ".join(each.removeprefix(_SHOULD) for each in words)]
    if _SHOULD in words[0] or " should have " in words[0]:
        value = body
        for part in place:
            value = value[part]
        said = _JSON.get(repr(value)) or shown(value)
        form = _FORMS.get(".".join(map(str, place))) if "valid list" in words[0] else None
        return place, f"is {said}; give {form or remedy(words[0], value).replace(_MAPPING, 'an object')}"
    return place, words[0]
