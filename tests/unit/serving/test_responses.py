"""Log-probabilities of tokens that are no whole characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from specstream.serving.jobs import TokenChance
from specstream.serving.responses import Shape
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXT = "a 🙃 and ß 好 x"
IDS: list[int] = TOKENIZER(TEXT)["input_ids"]
FIRST_BYTE, OTHER_BYTE = TOKENIZER.convert_tokens_to_ids(["ð", "¡"])


def shape(chat: bool) -> Shape:
    return Shape(chat=chat, model="tiny", tokenizer=TOKENIZER, lossless=True)


def chances(tokens: Sequence[int], top: Sequence[tuple[int, float]] = ()) -> list[TokenChance]:
    return [TokenChance(token=token, logprob=-1.0, top=tuple(top)) for token in tokens]


def told(made: Any) -> Any:
    return made["choices"][0]["logprobs"]


def test_the_bytes_of_a_chat_s_tokens_are_its_text() -> None:
    content = told(shape(True).chunk(0, TEXT, chances(IDS)))["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == TEXT
    assert len({token["token"] for token in content if "\\x" in token["token"]}) > 1
    assert not any("\N{REPLACEMENT CHARACTER}" in token["token"] for token in content)


def test_the_likeliest_are_said_by_their_bytes_too() -> None:
    top = [(FIRST_BYTE, -0.5), (OTHER_BYTE, -2.0)]
    (first, second) = told(shape(True).chunk(0, "aa", chances(IDS[:2], top)))["content"]
    for token in (first, second):
        assert [other["bytes"] for other in token["top_logprobs"]] == [[0xF0], [0xA1]]
        assert [other["token"] for other in token["top_logprobs"]] == ["\\xf0", "\\xa1"]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_offsets_are_those_of_the_text_however_a_stream_is_cut(size: int) -> None:
    stream, offsets, tokens = shape(False), [], []
    for start in range(0, len(IDS), size):
        part = told(stream.chunk(0, "", chances(IDS[start : start + size])))
        offsets += part["text_offset"]
        tokens += part["tokens"]
    whole = [token for token in zip(tokens, offsets, strict=True) if not token[0].startswith("bytes:")]
    assert all(TEXT[at:].startswith(token) for token, at in whole)
    assert len(whole) < len(tokens)
    for at, token in enumerate(tokens):  # a part of a character stands where the character does
        if token.startswith("bytes:"):
            before = TOKENIZER.decode(IDS[:at]).rstrip("\N{REPLACEMENT CHARACTER}")
            assert offsets[at] == len(before)


def test_bytes_that_are_no_character_count_as_what_the_text_has_for_them() -> None:
    tokens = [FIRST_BYTE, *IDS[:1], FIRST_BYTE, OTHER_BYTE, *IDS[:1]]
    assert TOKENIZER.decode(tokens) == "\ufffda\ufffda"
    assert told(shape(False).chunk(0, "", chances(tokens)))["text_offset"] == [0, 1, 2, 2, 3]


def test_answers_of_one_request_have_offsets_of_their_own() -> None:
    several = shape(False)
    assert told(several.chunk(0, "", chances(IDS[:2])))["text_offset"][0] == 0
    assert told(several.chunk(1, "", chances(IDS[:2])))["text_offset"][0] == 0
    assert told(several.chunk(0, "", chances(IDS[2:3])))["text_offset"][0] > 0


def test_a_completion_s_sampled_token_is_among_the_likeliest() -> None:
    top = [(IDS[1], -0.1), (IDS[2], -0.2)]
    (unlikely,) = told(shape(False).chunk(0, "", chances(IDS[:1], top)))["top_logprobs"]
    assert len(unlikely) == 3
    assert unlikely["a"] == -1.0
    (alone,) = told(shape(False).chunk(0, "", chances(IDS[:1])))["top_logprobs"]
    assert alone == {"a": -1.0}
    (likely,) = told(shape(False).chunk(0, "", [TokenChance(token=IDS[1], logprob=-0.1, top=tuple(top))]))[
        "top_logprobs"
    ]
    assert len(likely) == 2
