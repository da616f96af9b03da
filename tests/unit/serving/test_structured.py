"""The mask of an answer under a schema: a schema that is given up is never taken for a complete answer."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from specstream.errors import MissingPackageError, UsageError
from specstream.serving.structured import JsonMask, Schemas
from tests.tiny import tiny_tokenizer

EOS = 0
HOPELESS: dict[str, dict[str, Any]] = {
    "divisor": {"type": "integer", "multipleOf": 829348951},
    "loop of two": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "loop of one": {"$ref": "#"},
    "loop in allOf": {"allOf": [{"$ref": "#"}]},
    "loop in anyOf": {"anyOf": [{"$ref": "#"}]},
}
ENDLESS = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
"""Every array has to hold another."""

EXPLODING = {"type": "string", "pattern": "^(([a-z]{1,50}){1,50}){1,50}$"}
"""Has more states than the library goes through."""


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    return Schemas(tiny_tokenizer(), [EOS])


def written(mask: JsonMask, most: int = 400) -> tuple[list[int], bool]:
    """The tokens of an answer of chance within the mask, which ends where it may, and whether it did."""
    tokens: list[int] = []
    chance = torch.Generator().manual_seed(0)
    for _ in range(most):
        likely = torch.rand(1, 300, generator=chance)
        likely[0, EOS] = 2
        token = int(mask(torch.tensor([tokens], dtype=torch.int64), likely)[0].argmax())
        if token == EOS:
            return tokens, True
        tokens.append(token)
    return tokens, False


@pytest.mark.parametrize("name", HOPELESS)
def test_a_schema_that_is_given_up_at_once_is_refused_before_the_answer(schemas: Schemas, name: str) -> None:
    with pytest.raises(UsageError, match="the JSON schema cannot be followed"):
        schemas.mask(HOPELESS[name], 0)


@pytest.mark.parametrize("schema", [ENDLESS, EXPLODING], ids=["endless", "exploding"])
def test_a_schema_that_is_given_up_later_is_an_error_and_no_end(schemas: Schemas, schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the JSON schema cannot be followed"):
        tokens, ended = written(schemas.mask(schema, 0))
        pytest.fail(f"{tiny_tokenizer().decode(tokens)!r}, ended: {ended}")


def test_an_answer_ends_where_the_schema_accepts(schemas: Schemas) -> None:
    for schema in ({"type": "integer"}, {"enum": ["cat", "dog"]}, {"type": "string"}, {"type": "null"}):
        tokens, ended = written(schemas.mask(schema, 0))
        assert ended
        json.loads(tiny_tokenizer().decode(tokens))


def test_true_and_false_are_schemas_too(schemas: Schemas) -> None:
    tokens, ended = written(schemas.mask(True, 0))
    assert ended
    json.loads(tiny_tokenizer().decode(tokens))
    with pytest.raises(UsageError, match="Unsatisfiable"):
        schemas.mask(False, 0)


def test_answers_to_one_schema_do_not_disturb_each_other(schemas: Schemas) -> None:
    first = schemas.mask({"enum": ["cat", "dog"]}, 0)
    masks = [first.behind(0) for _ in range(3)]
    whole = [written(mask) for mask in masks]
    assert whole == [written(first)] * 3
    assert all(ended for _, ended in whole)


def test_a_complete_answer_can_only_end(schemas: Schemas) -> None:
    mask = schemas.mask({"enum": ["cat"]}, 0)
    tokens, ended = written(mask)
    assert ended
    assert tiny_tokenizer().decode(tokens) == '"cat"'
    scores = mask(torch.tensor([tokens]), torch.zeros(1, 300))
    assert scores.isfinite().nonzero()[:, 1].tolist() == [EOS]


def test_what_goes_wrong_says_nothing_of_the_schema_or_of_the_answer(
    schemas: Schemas, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = {"type": "array", "items": {"$ref": "#"}, "minItems": 1, "description": "xyzzy"}
    failed = {"anyOf": [{"$ref": "#"}], "description": "xyzzy"}
    with pytest.raises(UsageError) as late:
        written(schemas.mask(secret, 0))
    with pytest.raises(UsageError):
        schemas.mask(failed, 0)
    assert "[" not in str(late.value)
    assert len(str(late.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_the_first_schemas_of_several_threads_are_all_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they share is there before the first of them, so that none meets it half made."""
    made: list[threading.Thread] = []
    from llguidance import hf

    from_tokenizer = hf.from_tokenizer

    def noted(*arguments: Any, **named: Any) -> Any:
        made.append(threading.current_thread())
        return from_tokenizer(*arguments, **named)

    monkeypatch.setattr(hf, "from_tokenizer", noted)
    schemas = Schemas(tiny_tokenizer(), [EOS])
    assert made == [threading.current_thread()]
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda at: schemas.mask({"enum": [at]}, 0), range(8)))
    assert [tiny_tokenizer().decode(written(mask)[0]) for mask in masks] == [str(at) for at in range(8)]
    assert made == [threading.current_thread()]


def test_without_the_library_a_server_starts_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    schemas = Schemas(tiny_tokenizer(), [EOS])
    with pytest.raises(MissingPackageError, match="llguidance"):
        schemas.mask({"type": "null"}, 0)


def test_a_tokenizer_that_the_library_does_not_read_is_named() -> None:
    class Slow:
        pass

    schemas = Schemas(Slow(), [EOS])
    with pytest.raises(UsageError, match="response_format"):
        schemas.mask({"type": "null"}, 0)


def test_a_model_without_an_end_cannot_follow_a_schema() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="end-of-sequence"):
        Schemas(tokenizer, []).mask({"type": "null"}, 0)
