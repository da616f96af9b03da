"""A prompt is taken in every form whose meaning is plain, and means the same in each."""

from __future__ import annotations

import numpy
import pytest
import torch

from specstream import SpeculativeEngine, speculative_decode
from specstream.errors import UsageError

TEXTS = ["one two three", "the cat"]


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    return SpeculativeEngine(model, tokenizer, max_new_tokens=6)


def forms_of_one(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    return [ids, tuple(ids), torch.tensor(ids), numpy.array(ids), list(numpy.array(ids)), tokenizer(text)]


def forms_of_several(tokenizer, texts):
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return [
        ids,
        [torch.tensor(row) for row in ids],
        [texts[0], *ids[1:]],
        tokenizer(texts),
        tokenizer(texts, padding=True, return_tensors="pt"),
        tokenizer(texts, padding=True, padding_side="left", return_tensors="np"),
    ]


def test_one_prompt_in_every_form_is_the_text(engine, tokenizer):
    expected = engine.generate(TEXTS[0]).token_ids
    for form in forms_of_one(tokenizer, TEXTS[0]):
        assert engine.generate(form).token_ids == expected, type(form)
        pieces = engine.stream(form)
        assert "".join(pieces) == pieces.result.text and pieces.result.token_ids == expected, type(form)


def test_several_prompts_in_every_form_are_the_texts(engine, tokenizer):
    expected = [each.token_ids for each in engine.generate(TEXTS)]
    for form in forms_of_several(tokenizer, TEXTS):
        assert [each.token_ids for each in engine.generate(form)] == expected, type(form)


def test_a_tensor_of_one_row_is_a_list_of_one_prompt(engine, tokenizer):
    for form in (tokenizer(TEXTS[0], return_tensors="pt"), torch.tensor([tokenizer(TEXTS[0])["input_ids"]])):
        (result,) = engine.generate(form)
        pieces = engine.stream(form)
        assert "".join(pieces) == result.text == engine.generate(TEXTS[0]).text


def test_what_a_chat_template_returns_is_the_chat(engine, tokenizer):
    chat = [{"role": "user", "content": "one"}]
    expected = engine.generate(chat).token_ids
    form = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    assert [each.token_ids for each in engine.generate(form)] == [expected]


def test_several_prompts_are_not_streamed(engine):
    with pytest.raises(UsageError, match="stream is given 2 prompts; give one"):
        engine.stream(TEXTS)


def test_everything_is_read_before_the_first_pass(engine):
    seen = []
    with pytest.raises(UsageError, match="prompt"):
        engine.benchmark([*TEXTS, ""], num_runs=1, logits_processor=[lambda ids, scores: seen.append(ids) or scores])
    assert seen == []


def test_ids_are_measured_as_texts_are(engine, tokenizer):
    figures = engine.benchmark(tokenizer(TEXTS, padding=True, return_tensors="pt"), num_runs=1, max_new_tokens=4)
    assert figures["num_runs"] == 1 and figures["tokens_per_second"] > 0


def test_speculative_decode_leaves_out_the_padding_of_a_tokenizer(model, tokenizer):
    padded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    expected, _ = speculative_decode(model, None, [tokenizer(text)["input_ids"] for text in TEXTS], max_new_tokens=5)
    found, _ = speculative_decode(model, None, padded, max_new_tokens=5)
    assert torch.equal(found, expected)


def test_the_result_says_whether_the_chat_template_was_used(engine, tokenizer):
    text, chat = TEXTS[0], [{"role": "user", "content": TEXTS[0]}]
    assert [each.chat for each in engine.generate([text, chat, tokenizer(text)["input_ids"]])] == [False, True, False]
    pieces = engine.stream(chat)
    assert list(pieces) and pieces.result.chat
