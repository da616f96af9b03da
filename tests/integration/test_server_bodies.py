"""Malformed bodies of every kind, made from the server's own OpenAPI description: always 4xx, in OpenAI's shape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.served import NAME, PATIENCE, Served, serving

PATHS = {
    "/v1/chat/completions": {"model": NAME, "messages": [{"role": "user", "content": "one two"}], "max_tokens": 1},
    "/v1/completions": {"model": NAME, "prompt": "one two", "max_tokens": 1},
    "/v1/responses": {"model": NAME, "input": "one two", "max_output_tokens": 1},
}
ATOMS: list[Any] = [None, True, False, 0, 1, -1, 0.5, 1e308, 10**400, "", "a", "1", "\ud800", [], [None], [[]], {}]
DEEP = (200, 500, 900, 990, 1500, 20_000)

Schema = dict[str, Any]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(max_tokens=20, max_body_bytes=200_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE) as client:
        yield client
        assert client.get("/health").json() == {"status": "ok"}


class Description:
    """What the OpenAPI says of bodies.

    Args:
        document: the whole of it.
    """

    def __init__(self, document: Any) -> None:
        self._document = document

    def body(self, path: str) -> Schema:
        content = self._document["paths"][path]["post"]["requestBody"]["content"]
        return self._resolved(content["application/json"]["schema"])

    def allows(self, schema: Schema, value: Any) -> bool:
        """Whether the value is one of the schema's."""
        schema = self._resolved(schema)
        if "anyOf" in schema:
            return any(self.allows(each, value) for each in schema["anyOf"])
        if "const" in schema or "enum" in schema:
            return isinstance(value, str) and value in schema.get("enum", [schema.get("const")])
        check = {
            "null": lambda: value is None,
            "boolean": lambda: isinstance(value, bool),
            "integer": lambda: number(value) and value == int(value) and within(schema, value),
            "number": lambda: number(value) and within(schema, value),
            "string": lambda: isinstance(value, str) and sized(schema, "Length", value) and matches(schema, value),
            "array": lambda: self._allows_array(schema, value),
            "object": lambda: self._allows_object(schema, value),
        }
        return check[schema["type"]]() if "type" in schema else True

    def wrong(self, schema: Schema) -> Iterator[Any]:
        """Values that the schema forbids: of other types, out of its range, wrong somewhere inside."""
        for value in [*ATOMS, *self._edges(schema)]:
            if not self.allows(schema, value):
                yield value

    def right(self, schema: Schema) -> Iterator[Any]:
        """Values that it allows, at the ends of their ranges."""
        for value in [*ATOMS, *self._edges(schema)]:
            if self.allows(schema, value):
                yield value

    def properties(self, schema: Schema) -> dict[str, Schema]:
        found: dict[str, Schema] = self._resolved(schema)["properties"]
        return found

    def _edges(self, schema: Schema) -> Iterator[Any]:
        """At the limits of the schema and just beyond."""
        schema = self._resolved(schema)
        for each in schema.get("anyOf", []):
            yield from self._edges(each)
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if name in schema:
                limit = schema[name]
                yield from (limit, limit - 1, limit + 1, -limit, 1e-40, 5e-324)
        for name in ("minLength", "maxLength"):
            if name in schema:
                yield from ("a" * length for length in (schema[name] - 1, schema[name], schema[name] + 1))
        yield from schema.get("enum", [schema["const"]] if "const" in schema else [])
        if schema.get("type") == "array":
            yield from ([value] for value in ATOMS)
            yield from ([value] for value in self._edges(schema["items"]))
            yield ["a"] * (schema.get("maxItems", 4) + 1)
        if "properties" in schema:
            yield from self._objects(schema)

    def _objects(self, schema: Schema) -> Iterator[Any]:
        properties: dict[str, Schema] = schema["properties"]
        good = {name: next(self.right(own)) for name, own in properties.items() if name in schema.get("required", ())}
        yield good
        yield from ({**good, name: value} for name, own in properties.items() for value in self.wrong(own))
        yield {**good, "not_known": 1}
        yield from ({key: value for key, value in good.items() if key != name} for name in good)

    def _allows_array(self, schema: Schema, value: Any) -> bool:
        return (
            isinstance(value, list)
            and sized(schema, "Items", value)
            and all(self.allows(schema["items"], each) for each in value)
        )

    def _allows_object(self, schema: Schema, value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        own = schema.get("properties", {})
        extra = schema.get("additionalProperties", True) is not False or value.keys() <= own.keys()
        inside = all(self.allows(own[name], each) for name, each in value.items() if name in own)
        return extra and inside and value.keys() >= set(schema.get("required", ()))

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = self._document["components"]["schemas"][name]
        return schema


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def within(schema: Schema, value: float) -> bool:
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def sized(schema: Schema, what: str, value: Any) -> bool:
    return bool(schema.get(f"min{what}", 0) <= len(value) <= schema.get(f"max{what}", len(value)))


def matches(schema: Schema, value: str) -> bool:
    return "pattern" not in schema or re.search(schema["pattern"], value) is not None


def said(answer: httpx.Response) -> str:
    """The message of a refusal, which is whole."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:200])
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return str(error["message"])


def send(client: httpx.Client, path: str, content: bytes | Any) -> httpx.Response:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post(path, content=raw, headers={"content-type": "application/json"})


@pytest.fixture(scope="module")
def description(client: httpx.Client) -> Description:
    return Description(client.get("/openapi.json").json())


@pytest.mark.parametrize("path", PATHS)
class TestFields:
    def test_what_the_description_forbids_is_refused(
        self, client: httpx.Client, description: Description, path: str
    ) -> None:
        count = 0
        for name, schema in description.properties(description.body(path)).items():
            for value in description.wrong(schema):
                answer = send(client, path, {**PATHS[path], name: value})
                assert 400 <= answer.status_code < 500, (name, value, answer.text)
                assert name in said(answer) or value == "\ud800", (name, value)
                count += 1
        assert count > 300, "the description says what is checked"

    def test_what_it_allows_never_fails(self, client: httpx.Client, description: Description, path: str) -> None:
        """It may be more than this server's limits, or go against another field; it is no failure of the server."""
        for name, schema in description.properties(description.body(path)).items():
            for value in description.right(schema):
                answer = send(client, path, {**PATHS[path], name: value})
                assert answer.status_code in (200, 400, 404), (name, value, answer.text)
                if answer.status_code != 200:
                    said(answer)
                elif answer.headers["content-type"].startswith("text/event-stream"):
                    last = "event: response.incomplete\n" if path == "/v1/responses" else "data: [DONE]\n\n"
                    assert last in answer.text, (name, value)

    def test_what_is_missing_or_unknown_is_named(
        self, client: httpx.Client, description: Description, path: str
    ) -> None:
        for name in description.body(path)["required"]:
            body = {key: value for key, value in PATHS[path].items() if key != name}
            assert name in said(send(client, path, body))
        for name in ("gamma", "", "prompt ", "__class__", "a" * 10_000, "\u0000"):
            assert "is not known" in said(send(client, path, {**PATHS[path], name: 1}))

    def test_what_is_no_object_is_refused(self, client: httpx.Client, path: str) -> None:
        for value in [*ATOMS[:-1], {}]:
            said(send(client, path, value))


@pytest.mark.parametrize("path", PATHS)
class TestBytes:
    def test_half_a_body(self, client: httpx.Client, path: str) -> None:
        whole = json.dumps(PATHS[path]).encode()
        for end in range(len(whole)):
            said(send(client, path, whole[:end]))
        for more in (b"}", b"x", whole):
            said(send(client, path, whole + more))

    @pytest.mark.parametrize("wrong", [b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\x00", b"\x1f", b"\\x", b"\\u12"])
    def test_what_is_no_text(self, client: httpx.Client, path: str, wrong: bytes) -> None:
        whole = json.dumps(PATHS[path]).encode()
        for place in (b"", b"one two"):
            said(send(client, path, whole.replace(place, place + wrong, 1)))

    @pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"0x1", b"01", b"9" * 5000, b"'a'"])
    def test_what_is_no_number(self, client: httpx.Client, path: str, value: bytes) -> None:
        whole = json.dumps(PATHS[path]).encode()
        for name in (b"temperature", b"seed", b"max_tokens", b"n"):
            said(send(client, path, whole[:-1] + b', "' + name + b'": ' + value + b"}"))

    @pytest.mark.parametrize("depth", DEEP)
    @pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}"), ('{"properties":{"a":', "}}")])
    def test_what_is_nested_deeply(self, client: httpx.Client, path: str, depth: int, left: str, right: str) -> None:
        nested = left * depth + "1" + right * depth
        places = [nested, *(f'{{"{name}": {nested}}}' for name in ("messages", "prompt", "stop", "unknown"))]
        form = f'{{"type": "json_schema", "json_schema": {{"name": "a", "schema": {nested}}}}}'
        opening = json.dumps(PATHS[path])[:-1]
        places += [f'{opening}, "response_format": {form}}}', f'{opening}, "stop": {nested}}}']
        tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {nested}}}}}'
        places += [f'{opening}, "tools": [{tool}], "tool_choice": "required"}}']
        for body in places:
            said(send(client, path, body.encode()))
        assert send(client, path, f'{opening}, "metadata": {nested}}}'.encode()).status_code in (200, 400, 413)

    def test_what_is_too_long(self, client: httpx.Client, path: str) -> None:
        assert send(client, path, b" " * 200_001).status_code == 413
        said(send(client, path, b" " * 200_001))
        assert "shorten it" in said(
            send(client, path, json.loads(json.dumps(PATHS[path]).replace("two", "two " * 9000)))
        )
        turns = [{"role": "user", "content": "one two"}] * 3000
        many = {"messages": turns, "prompt": ["a"] * 20_000, "input": turns}
        said(send(client, path, {**PATHS[path], **{name: many[name] for name in many if name in PATHS[path]}}))

    def test_what_is_of_another_kind(self, client: httpx.Client, path: str) -> None:
        whole = json.dumps(PATHS[path]).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "\x7f"):
            said(client.post(path, content=whole, headers={"content-type": kind}))
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            assert client.request(method, path).status_code == 405
            said(client.request(method, path))
