"""Every argument of the Python API with values of every kind: taken, or refused in one sentence of ours."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import specstream
from specstream import config
from specstream.errors import SpecStreamError
from tests.tiny import tiny_model, tiny_tokenizer


class Odd:
    """Nothing that anybody would give."""


VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**30),
    *("", "nope", " ", "\0", "4", b"x", Path("nope")),
    *([], {}, [None], ["x"], [1, 2], {"a": 1}, (1,), {1}),
    *(Odd(), Odd, len, torch.tensor(2), torch.tensor([1, 2])),
)
TARGET, DRAFT, TOKENIZER = tiny_model(), tiny_model(noise=0.02), tiny_tokenizer()
SETTINGS = tuple(typing.get_type_hints(config.EngineSettings))
SAMPLING = tuple(typing.get_type_hints(config.SamplingSettings))
IDS = torch.tensor([[1, 2, 3]])
LORA = ("r", "alpha", "dropout", "target_modules")

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]] = {
    "engine": (
        specstream.SpeculativeEngine,
        {"model": TARGET, "tokenizer": TOKENIZER},
        ("model", "tokenizer", "draft_model", *SETTINGS),
    ),
    "generate": (
        lambda **given: specstream.SpeculativeEngine(TARGET, TOKENIZER, drafter="lookup").generate(**given),
        {"prompt": "x", "max_new_tokens": 2},
        ("prompt", *SAMPLING),
    ),
    "speculative_decode": (
        specstream.speculative_decode,
        {"target": TARGET, "draft": DRAFT, "input_ids": IDS, "max_new_tokens": 2},
        ("target", "draft", "input_ids", *SETTINGS),
    ),
    "custom_generate": (
        lambda **given: TARGET.generate(IDS, max_new_tokens=2, custom_generate=specstream.custom_generate(**given)),
        {},
        ("draft_model", "tokenizer", "streamer", *SETTINGS),
    ),
    "DeploymentConfig": (specstream.DeploymentConfig, {}, tuple(specstream.DeploymentConfig.model_fields)),
    "LoRAAdapter": (lambda **given: specstream.LoRAAdapter(tiny_model(), given), {}, LORA),
    "create_backend": (
        specstream.create_backend,
        {"name": "no/such"},
        ("name", "dtype", "torch_dtype", "device", "runtime"),
    ),
}


@pytest.mark.parametrize(
    ("call", "argument"), [(call, argument) for call, (_, _, arguments) in CALLS.items() for argument in arguments]
)
def test_no_value_ends_in_an_error_of_another_library(call, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made, given, _ = CALLS[call]
    for value in VALUES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made(**{**given, argument: value})
            except SpecStreamError as error:
                assert "\n" not in str(error), value
            except Exception as error:
                pytest.fail(f"{argument}={value!r} ends in {type(error).__name__}: {error}")
