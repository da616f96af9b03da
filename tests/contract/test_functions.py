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
