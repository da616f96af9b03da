"""Logits processors and stopping criteria of generate, in batches with padding, beside transformers' own loop."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import specstream
from specstream.errors import UsageError
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["the cat sat on the", "one two three one two three one two", "def add"]


@pytest.fixture(scope="module")
def batch():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)


@pytest.fixture(scope="module")
def ending():
    """A model whose rows end at different places."""
    model = tiny_model()
    model.generation_config.eos_token_id = [0, 17, 58, 101, 216, 77, 90]
    return model


def both(model, batch, **settings):
    settings = {"max_new_tokens": 24, "do_sample": False, **settings}
    expected = model.generate(**batch, **settings)
    return expected, model.generate(**batch, **settings, custom_generate=specstream.custom_generate())


@pytest.mark.parametrize(
    "settings",
    [
        {"min_new_tokens": 9},
        {"min_length": 30},
        {"forced_eos_token_id": 17},
        {"exponential_decay_length_penalty": (2, 3.0)},
        {"begin_suppress_tokens": list(range(2, 120))},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.6},
        {"encoder_no_repeat_ngram_size": 1},
        {"bad_words_ids": [[10], [64, 40]]},
        {"sequence_bias": {(10,): -9.0, (64, 40): -9.0}},
        {"suppress_tokens": [10, 255]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_padded_batch_gets_what_transformers_gives(ending, batch, settings):
    expected, got = both(ending, batch, **settings)
    assert got.tolist() == expected.tolist()
    plain = ending.generate(**batch, max_new_tokens=24, do_sample=False)
    assert plain.tolist() != expected.tolist(), "the setting changes nothing"


@pytest.mark.parametrize("name", ["encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "repetition_penalty"])
def test_several_answers_to_a_prompt_get_its_own_rules(ending, batch, name):
    settings = {name: 2 if "size" in name else 1.6, "num_return_sequences": 2, "do_sample": True, "top_k": 1}
    expected, got = both(ending, batch, **settings)
    assert got.tolist() == expected.tolist()


def test_watermarks_of_each_row_are_its_own(ending, batch):
    watermark = hf.SynthIDTextWatermarkingConfig(ngram_len=3, keys=[654, 400, 836, 123], context_history_size=8)
    settings = {"watermarking_config": watermark, "do_sample": True, "top_k": 1}
    expected, got = both(ending, batch, **settings)
    assert got.tolist() == expected.tolist()


def test_allowed_tokens_are_asked_with_the_rows_own_index(ending, batch):
    asked = set()

    def allowed(row, ids):
        asked.add((row, tuple(ids[: batch["input_ids"].shape[1]].tolist())))
        return list(range(20 * row + 20, 20 * row + 60))

    expected, _ = both(ending, batch, prefix_allowed_tokens_fn=allowed)
    theirs, asked = asked, set()
    got = ending.generate(
        **batch,
        max_new_tokens=24,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
        custom_generate=specstream.custom_generate(),
    )
    assert got.tolist() == expected.tolist()
    assert asked == {(row, tuple(ids)) for row, ids in enumerate(batch["input_ids"].tolist())} == theirs


def test_a_processor_of_the_callers_own_sees_the_padded_row(ending, batch):
    seen = []

    class Watches(hf.LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids.tolist())
            return scores

    one = {name: values[2:3] for name, values in batch.items()}
    ending.generate(**one, max_new_tokens=5, logits_processor=[Watches()], custom_generate=specstream.custom_generate())
    width = one["input_ids"].shape[1]
    assert {tuple(ids[0][:width]) for ids in seen} == {tuple(one["input_ids"][0].tolist())}


def test_a_processor_of_the_callers_own_is_refused_in_a_batch(ending, batch):
    class Counts(hf.LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores

    with pytest.raises(UsageError, match=r"Counts.*one row"):
        both(ending, batch, logits_processor=[Counts()])
    with pytest.raises(UsageError, match=r"UnbatchedClassifierFreeGuidance.*one row"):
        both(ending, batch, guidance_scale=1.5)


class LmEval(hf.StoppingCriteria):
    """As in lm-eval: one flag a row, and the end once all rows have it."""

    def __init__(self, text, tokenizer, width, rows):
        self.width, self.done, self.text, self.tokenizer = width, [False] * rows, text, tokenizer

    def __call__(self, input_ids, scores, **kwargs):
        texts = self.tokenizer.batch_decode(input_ids[:, self.width :])
        for row, done in enumerate(self.done):
            if not done:
                self.done[row] = self.text in texts[row]
        return False not in self.done


class PerRow(hf.StoppingCriteria):
    """Each row ends where its own text holds a string."""

    def __init__(self, text, tokenizer):
        self.text, self.tokenizer = text, tokenizer

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([self.text in text for text in self.tokenizer.batch_decode(input_ids)])


@pytest.mark.parametrize("eos", [None, [0, 58, 101]])
def test_a_criterion_that_keeps_a_flag_for_each_row(batch, eos):
    model, tokenizer, width = tiny_model(), tiny_tokenizer(), batch["input_ids"].shape[1]
    model.generation_config.eos_token_id = eos
    results = []
    for extra in ({}, {"custom_generate": specstream.custom_generate()}):
        criterion = LmEval("e", tokenizer, width, len(PROMPTS))
        got = model.generate(**batch, max_new_tokens=40, do_sample=False, stopping_criteria=[criterion], **extra)
        results.append((got.tolist(), criterion.done))
    assert results[1] == results[0]


@pytest.mark.parametrize("eos", [None, [0, 58, 101]])
@pytest.mark.parametrize("text", ["the cat", "e", "th", "one two"])
def test_a_criterion_that_reads_the_whole_text(batch, eos, text):
    model = tiny_model()
    model.generation_config.eos_token_id = eos
    expected, got = both(model, batch, max_new_tokens=40, stopping_criteria=[PerRow(text, tiny_tokenizer())])
    assert got.tolist() == expected.tolist()


def test_criteria_see_each_column_once_and_in_order(batch):
    model = tiny_model()
    columns: dict[str, list] = {"theirs": [], "ours": []}
    for name, extra in (("theirs", {}), ("ours", {"custom_generate": specstream.custom_generate()})):

        def watch(ids, scores, name=name):
            columns[name].append(ids.tolist())
            return torch.zeros(len(ids), dtype=torch.bool)

        model.generate(**batch, max_new_tokens=12, do_sample=False, stopping_criteria=[watch], **extra)
    assert columns["ours"] == columns["theirs"]
