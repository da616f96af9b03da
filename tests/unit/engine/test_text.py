from __future__ import annotations

import logging
from threading import Thread

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from specstream.engine.text import TextStream, encode, final_text, stop_check
from specstream.errors import UsageError
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


def test_what_another_thread_is_told_of_a_long_text_stays(caplog):
    logger = logging.getLogger("transformers.tokenization_utils_base")

    def tell(who):
        logger.warning(f"Token indices sequence length is longer: {who}")

    def tokenizer(text):
        tell("own")
        other = Thread(target=tell, args=("other",))
        other.start()
        other.join()
        return {"input_ids": [1]}

    caplog.set_level(logging.WARNING, logger.name)  # whatever other tests made of transformers' verbosity
    logger.addHandler(caplog.handler)  # transformers' loggers hand nothing on by themselves
    try:
        assert encode(tokenizer, "a") == [1]
        tell("own, afterwards")
    finally:
        logger.removeHandler(caplog.handler)
    assert list(dict.fromkeys(each.rpartition(": ")[2] for each in caplog.messages)) == ["other", "own, afterwards"]


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


def test_cut_at_the_first_of_several(tokenizer):
    ids = tokenizer("abcdef")["input_ids"]
    assert final_text(tokenizer, ids, ["e", "cd"]) == "ab"
    assert final_text(tokenizer, ids, ["x"]) == "abcdef"


def with_turns():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|think|>"]})
    return tokenizer


@pytest.mark.parametrize("stop", ["<|turn|>", "<eos>", "two<|turn|>", "<|turn|> three", "o<|turn|> t"])
def test_a_special_token_in_a_stop_string_is_found_and_cut(stop):
    tokenizer = with_turns()
    ids = tokenizer("<|think|>one two<|turn|> three<eos> four")["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    check = stop_check(tokenizer, [stop])
    kept = next(kept for kept in range(1, len(ids) + 1) if check(ids[:kept], 1) is not None)
    assert stop in tokenizer.decode(ids[:kept], skip_special_tokens=False)
    assert stop not in tokenizer.decode(ids[: kept - 1], skip_special_tokens=False)
    expected = whole[: whole.index(stop)]
    for special in ("<|think|>", "<|turn|>"):
        expected = expected.replace(special, "")
    assert final_text(tokenizer, ids[:kept], [stop]) == expected


def test_a_special_token_is_no_part_of_a_stop_string_without_one():
    tokenizer = with_turns()
    ids = tokenizer("one<|turn|>two")["input_ids"]
    assert stop_check(tokenizer, ["turn"])(ids, len(ids)) is None
    assert stop_check(tokenizer, ["onetwo"])(ids, len(ids)) == len(ids)


def byte_tokenizer():
    """As Llama 2's: a character without a token of its own is spelt in bytes, decoded run by run."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocab.update({letter: 257 + at for at, letter in enumerate("▁abcdefgh")})
    model = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = normalizers.Replace(" ", "▁")
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
@pytest.mark.parametrize("text", ["a🙂", "ab 🙂🙂", "🙂é🙂", "a🙂 b日本🙂"])
def test_a_character_cut_in_its_bytes_streams_as_the_whole_text_reads(text, cut, step):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    ids = ids[: len(ids) - cut]
    stream = TextStream(tokenizer)
    pieces = [stream.push(ids[at : at + step]) for at in range(0, len(ids), step)]
    final = tokenizer.decode(ids)
    assert "".join([*pieces, stream.finish(final)]) == final


def test_a_cut_character_before_other_text_streams_as_the_whole_text_reads():
    tokenizer = byte_tokenizer()
    ids = [*tokenizer("a🙂🙂")["input_ids"][:-2], *tokenizer("bc d")["input_ids"]]
    stream = TextStream(tokenizer)
    pieces = [stream.push([token]) for token in ids]
    final = tokenizer.decode(ids)
    assert "".join([*pieces, stream.finish(final)]) == final


@pytest.mark.parametrize("bytes_", [("<0x74>", "<0xA4>"), ("<0x5F>", "<0x22>", "<0xC0>"), ("<0x20>", "<0xF0>")])
def test_a_token_that_is_not_shown_ends_no_run_of_bytes(bytes_):
    tokenizer = byte_tokenizer()
    ids = tokenizer.convert_tokens_to_ids([name for byte in bytes_ for name in (byte, "<unk>")] + ["a"])
    stream = TextStream(tokenizer)
    final = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join([*[stream.push([token]) for token in ids], stream.finish(final)]) == final


@pytest.mark.parametrize("before", range(8))
def test_a_stop_string_in_a_long_run_of_bytes_is_found(before):
    tokenizer = byte_tokenizer()
    ids = tokenizer("é" * 9 + "日" * before + "🙂")["input_ids"]
    assert stop_check(tokenizer, ["🙂"])(ids, 1) == len(ids)
