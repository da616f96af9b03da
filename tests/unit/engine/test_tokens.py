from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from specstream.engine.tokens import TokenTexts
from tests.tiny import tiny_tokenizer

TEXTS = (
    "the cat sat",
    "a ünïcode line",
    "日本語 and 🙂🙂 in it",
    "\N{REPLACEMENT CHARACTER} is one too",
    "def f():\n  x",
)


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: words with a mark for the space before them, and bytes for what is in no word."""
    words = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "▁sat"]
    words += [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    vocabulary = {word: at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


TOKENIZERS = {"byte-level": tiny_tokenizer, "byte fallback": fallback_tokenizer}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_bytes_of_its_tokens_are_the_text(kind: str, text: str) -> None:
    tokenizer: Any = TOKENIZERS[kind]()
    texts = TokenTexts(tokenizer)
    ids = tokenizer(text)["input_ids"]
    found = b"".join(texts.bytes_of(token, first=at == 0) for at, token in enumerate(ids))
    assert found.decode() == tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_part_of_a_character_is_said_by_its_bytes(kind: str) -> None:
    tokenizer: Any = TOKENIZERS[kind]()
    texts = TokenTexts(tokenizer)
    ids = tokenizer("x🙂")["input_ids"][-4:] if kind == "byte fallback" else tokenizer("€")["input_ids"]
    said = [texts.say(token, mark="bytes:") for token in ids]
    if len(ids) > 1:
        assert all(each.startswith("bytes:\\x") for each in said)
    raw = b"".join(texts.bytes_of(token) for token in ids)
    assert raw.decode() in ("🙂", "€")


def test_the_space_before_a_word_is_its_own() -> None:
    tokenizer = fallback_tokenizer()
    word = tokenizer.convert_tokens_to_ids("▁cat")
    assert TokenTexts(tokenizer).say(word) == " cat"
    assert TokenTexts(tokenizer).say(word, first=True) == "cat"


def test_a_replacement_character_is_not_taken_for_a_part() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["\N{REPLACEMENT CHARACTER}"])
    assert TokenTexts(tokenizer).say(len(tokenizer) - 1) == "\N{REPLACEMENT CHARACTER}"
