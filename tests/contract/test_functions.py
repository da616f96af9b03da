"""Transformers' own call, with speculation behind it."""

from __future__ import annotations

import specstream
from tests.tiny import tiny_model, tiny_tokenizer


def test_custom_generate_gives_what_generate_gives() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    inputs = tokenizer(["one two three one two", "the cat"], return_tensors="pt", padding=True, padding_side="left")
    inputs.pop("token_type_ids", None)
    for row in range(2):
        mask = inputs["attention_mask"][row].bool()
        alone = {name: values[row : row + 1, mask] for name, values in inputs.items()}
        expected = model.generate(**alone, max_new_tokens=20, do_sample=False)
        speculation = specstream.custom_generate(tiny_model(noise=0.02))
        got = model.generate(**alone, max_new_tokens=20, do_sample=False, custom_generate=speculation)
        assert got.tolist() == expected.tolist()


def test_rows_behind_padding_get_their_own_processors_and_criteria() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = [0, 17, 58, 101, 216, 77, 90]
    inputs = tokenizer(["one two three one two", "the cat"], return_tensors="pt", padding=True, padding_side="left")
    inputs.pop("token_type_ids", None)
    settings = {
        "max_new_tokens": 20,
        "do_sample": False,
        "min_new_tokens": 6,
        "repetition_penalty": 1.2,
        "encoder_no_repeat_ngram_size": 2,
        "prefix_allowed_tokens_fn": lambda row, ids: list(range(2 + row, 250)),
    }
    expected = model.generate(**inputs, **settings)
    got = model.generate(**inputs, **settings, custom_generate=specstream.custom_generate())
    assert got.tolist() == expected.tolist()
