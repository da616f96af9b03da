"""speculative_decode and custom_generate, beside transformers' own generate."""

from __future__ import annotations

import pytest
import torch

import specstream
from specstream.errors import UsageError
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["the cat sat on the", "one two three one two three one two", "def add"]


@pytest.fixture(scope="module")
def draft():
    return tiny_model(noise=0.02)


@pytest.fixture(scope="module")
def batch():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)


def test_custom_generate_equals_generate(model, draft, batch):
    expected = model.generate(**batch, max_new_tokens=25, do_sample=False)
    for generate in (specstream.custom_generate(), specstream.custom_generate(draft, gamma=3)):
        assert torch.equal(model.generate(**batch, max_new_tokens=25, custom_generate=generate), expected)


def test_custom_generate_stops_and_pads_as_generate_does(batch):
    model = tiny_model()
    free = model.generate(**batch, max_new_tokens=25, do_sample=False)
    width = batch["input_ids"].shape[1]
    model.generation_config.eos_token_id = [0, int(free[1, width + 6])]
    expected = model.generate(**batch, max_new_tokens=25, do_sample=False)
    assert (expected == 1).any()  # some row ends early and is padded
    got = model.generate(**batch, max_new_tokens=25, custom_generate=specstream.custom_generate())
    assert torch.equal(got, expected)


def test_custom_generate_keeps_processors_and_dict_output(model, batch):
    settings = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    one = {name: value[1:2] for name, value in batch.items()}
    expected = model.generate(**one, **settings)
    output = model.generate(
        **one, **settings, custom_generate=specstream.custom_generate(), return_dict_in_generate=True
    )
    assert torch.equal(output.sequences, expected)


def test_custom_generate_samples_with_torch_seed(model, batch):
    generate = specstream.custom_generate()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model.generate(**batch, max_new_tokens=15, do_sample=True, custom_generate=generate))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_custom_generate_refuses_beams(model, batch):
    with pytest.raises(UsageError, match="num_beams is 4"):
        model.generate(**batch, max_new_tokens=5, num_beams=4, custom_generate=specstream.custom_generate())


def test_speculative_decode(model, draft, batch):
    row = batch["input_ids"][1]
    row = row[batch["attention_mask"][1].bool()]
    expected = model.generate(row[None], attention_mask=torch.ones_like(row[None]), max_new_tokens=20, do_sample=False)
    for given in (row, row[None], [row.tolist()]):
        output, metrics = specstream.speculative_decode(model, draft, given, max_new_tokens=20, adaptive=False)
        assert torch.equal(output, expected)
    assert metrics["new_tokens"] == expected.shape[1] - len(row)
    assert 0 < metrics["target_passes"] < metrics["new_tokens"]


def test_speculative_decode_rows_of_different_lengths(model, batch):
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    output, _ = specstream.speculative_decode(model, None, rows, max_new_tokens=9, ignore_eos=True)
    for row, got in zip(rows, output.tolist(), strict=True):
        alone = specstream.speculative_decode(model, None, row, max_new_tokens=9, ignore_eos=True)[0][0].tolist()
        assert got == alone + [1] * (len(got) - len(alone))


def test_padding_is_found_without_a_mask_as_by_generate(model, tokenizer, batch):
    ids = batch["input_ids"]
    expected = model.generate(ids, max_new_tokens=9, do_sample=False)[:, ids.shape[1] :].tolist()
    rows = [row[mask.bool()].tolist() for row, mask in zip(ids, batch["attention_mask"], strict=True)]
    assert len({len(row) for row in rows}) > 1
    output, _ = specstream.speculative_decode(model, None, ids, max_new_tokens=9)
    engine = specstream.SpeculativeEngine(model, tokenizer)
    for given in (ids, {"input_ids": ids}, ids.numpy()):
        found = [result.token_ids for result in engine.generate(given, max_new_tokens=9)]
        assert [own[: len(want)] for own, want in zip(found, expected, strict=True)] == [
            want[: len(own)] for own, want in zip(found, expected, strict=True)
        ]
    for row, own, result in zip(rows, output.tolist(), found, strict=True):
        assert own[: len(row) + len(result)] == row + result
    with pytest.raises(UsageError, match="a row of padding alone, the token 1"):
        engine.generate(torch.ones_like(ids))


def test_speculative_decode_refuses_stop_strings(model):
    with pytest.raises(UsageError, match="tokenizer"):
        specstream.speculative_decode(model, None, [[1, 2]], stop="x")


def test_speculative_decode_notes_a_draft_that_is_its_target(model, draft, batch):
    ids = batch["input_ids"][:1]
    _, metrics = specstream.speculative_decode(model, model, ids, max_new_tokens=2)
    assert any("the target itself" in each for each in metrics["notes"])
    assert not specstream.speculative_decode(model, draft, ids, max_new_tokens=2)[1]["notes"]
