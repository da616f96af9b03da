"""The default model: unpacked and converted with this release, decoded as `make run` does and as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from specstream import SpeculativeEngine
from specstream.models.hub.catalog import DEFAULT_MODEL
from tests.integration.test_commands import run

PROMPT = "Repeat after me: one two three one two three one two"
TOKENS = 24

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


def test_its_tokens_are_those_of_generate(default_model_path: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(default_model_path)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    result = SpeculativeEngine(DEFAULT_MODEL, dtype="float32").generate(PROMPT, max_new_tokens=TOKENS)
    assert result.token_ids == expected.tolist()
    assert result.drafter == "lookup+streams"


def test_the_command_speculates_without_loss(
    capsys: pytest.CaptureFixture[str], default_model_path: str, record_property: Callable[[str, object], None]
) -> None:
    code, out, err = run(capsys, "generate", PROMPT, "-n", str(TOKENS), "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["new_tokens"] > 0 and result["text"]
    assert result["lossless"]
    if result["exact"] != "bits":
        record_property("rounding", f"the default model in {result['dtype']}")
