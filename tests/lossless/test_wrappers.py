"""Models that also see or hear, used with text: transformers' own greedy tokens, and words where there is an image."""

from __future__ import annotations

import pytest
import torch

import specstream
from specstream.errors import UsageError
from tests.lossless.families import prompt
from tests.lossless.wrappers import CONFIGURATIONS, build, disturbed

PROMPTS = [prompt(12), prompt(17, seed=1), prompt(9, seed=2)]
NEW = 30


def greedy(model, tokens):
    ids = torch.tensor([tokens])
    given = {"attention_mask": torch.ones_like(ids), "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, **given)[0].tolist()


@pytest.mark.parametrize("runtime", ["auto", "eager"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_text_alone_gives_what_transformers_gives(name, runtime):
    model = build(name)
    expected = [greedy(model, tokens) for tokens in PROMPTS]
    draft = disturbed(model, 0.01, seed=2)
    settings = {"max_new_tokens": NEW, "runtime": runtime, "ignore_eos": True, "adaptive": False, "gamma": 3}
    output, metrics = specstream.speculative_decode(model, draft, PROMPTS, branches=2, **settings)
    assert [row[: len(one)] for row, one in zip(output.tolist(), expected, strict=True)] == expected
    assert metrics["mean_accepted_length"] > 1


@pytest.mark.parametrize("name", ["gemma3", "qwen2_vl", "qwen3_vl", "glm4v", "llava"])
def test_generate_of_transformers_prepares_such_models_as_it_does_for_itself(name):
    model, width = build(name), max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(tokens)) + tokens for tokens in PROMPTS])
    given = {"attention_mask": (ids != 0).long(), "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": NEW}
    got = model.generate(ids, **given, do_sample=False, custom_generate=specstream.custom_generate())
    assert [row[width - len(tokens) :] for row, tokens in zip(got.tolist(), PROMPTS, strict=True)] == [
        greedy(model, tokens) for tokens in PROMPTS
    ]


def test_images_are_refused_in_words():
    model, ids = build("llava"), torch.tensor([[5, 6, 7]])
    pixels = torch.zeros(1, 3, 28, 28)
    with pytest.raises(UsageError, match=r"^(pixel_values|an image or a video) is given.*no images or sound"):
        model.generate(ids, pixel_values=pixels, max_new_tokens=3, custom_generate=specstream.custom_generate())
