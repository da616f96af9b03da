from __future__ import annotations

import pytest

from specstream.errors import UsageError
from specstream.text import TextStream, cut_at_stop, encode, stop_check
from tests.tiny import TEXT, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_pieces_join_to_the_text_and_split_no_character(tokenizer, text, step):
    ids = tokenizer(text)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(ids[at : at + step]) for at in range(0, len(ids), step)]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join([*pieces, stream.finish(tokenizer.decode(ids))]) == text


def test_text_arrives_before_the_end(tokenizer):
    ids = tokenizer("one two three four five")["input_ids"]
    stream = TextStream(tokenizer)
    assert "one two" in "".join(stream.push([token]) for token in ids[: len(ids) - 1])


def test_a_stop_string_that_is_completing_is_held_back(tokenizer):
    stream = TextStream(tokenizer, hold=len("STOP"))
    sent = "".join(stream.push([token]) for token in tokenizer("one ST")["input_ids"])
    assert "S" not in sent
    assert sent + stream.finish("one ") == "one "


def test_chat_goes_through_the_template(tokenizer):
    chat = [{"role": "user", "content": "one two"}]
    assert tokenizer.decode(encode(tokenizer, chat)) == "<user>one two<assistant>"


def test_chat_without_a_template_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        encode(tokenizer, [{"role": "user", "content": "one"}])


def test_empty_prompt_is_refused(tokenizer):
    with pytest.raises(UsageError, match="empty"):
        encode(tokenizer, "")


def test_stop_check_finds_the_token_that_completes_the_string(tokenizer):
    ids = tokenizer("one two three four")["input_ids"]
    check = stop_check(tokenizer, ["three"])
    kept = check(ids, len(ids))
    assert "three" in tokenizer.decode(ids[:kept])
    assert "three" not in tokenizer.decode(ids[: kept - 1])
    assert check(ids[: kept - 1], kept - 1) is None


def test_stop_check_sees_a_string_across_rounds(tokenizer):
    ids = tokenizer("one two three")["input_ids"]
    check = stop_check(tokenizer, ["o th"])
    kept = next(kept for kept in range(1, len(ids) + 1) if check(ids[:kept], 1) is not None)
    assert "o th" in tokenizer.decode(ids[:kept])
    assert "o th" not in tokenizer.decode(ids[: kept - 1])


def test_no_stop_strings_no_check(tokenizer):
    assert stop_check(tokenizer, []) is None


def test_cut_at_the_first_of_several():
    assert cut_at_stop("abcdef", ["e", "cd"]) == "ab"
    assert cut_at_stop("abcdef", ["x"]) == "abcdef"
