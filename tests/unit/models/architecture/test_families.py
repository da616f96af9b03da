from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from specstream.errors import UnsupportedModelError
from specstream.models.architecture.families import describe
from specstream.models.target.hf import HuggingFaceTarget

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
SPECIAL = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def causal(configuration: Any) -> Any:
    return hf.AutoModelForCausalLM.from_config(configuration).eval()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "t5": (
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        "it is an encoder-decoder",
    ),
    "rwkv": (
        lambda: causal(hf.RwkvConfig(hidden_size=16, num_hidden_layers=2, context_length=32, **SPECIAL)),
        "recurrent state",
    ),
    "bert": (
        lambda: hf.BertForMaskedLM(hf.BertConfig(**{**TINY, "pad_token_id": 0})).eval(),
        "it is not a causal language model with a key-value cache",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_a_target_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=f"^{name} cannot be a target: .*{reason}") as refusal:
        HuggingFaceTarget(make())
    assert "\n" not in str(refusal.value)


def test_attention_without_a_mask_is_refused_with_the_remedy() -> None:
    model = causal(hf.LlamaConfig(**TINY))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match=re.escape('load it with attn_implementation="sdpa"')):
        HuggingFaceTarget(model)


def test_training_mode_is_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape("call model.eval() first")):
        HuggingFaceTarget(causal(hf.LlamaConfig(**TINY)).train())


@pytest.mark.parametrize(
    ("configuration", "windows"),
    [
        (hf.LlamaConfig(**TINY), {None: None}),
        (hf.MistralConfig(**TINY, sliding_window=8), {None: 8}),
        (hf.MistralConfig(**TINY, sliding_window=None), {None: None}),
        (hf.Qwen2Config(**TINY, sliding_window=8, use_sliding_window=False), {None: None}),
        (
            hf.Qwen2Config(**TINY, sliding_window=8, use_sliding_window=True, max_window_layers=1),
            {"full_attention": None, "sliding_attention": 8},
        ),
        (hf.Qwen2Config(**TINY, sliding_window=8, use_sliding_window=True, max_window_layers=0), {None: 8}),
        (hf.Phi3Config(**TINY, sliding_window=8), {None: 8}),
        (
            hf.Gemma2Config(**TINY, head_dim=8, sliding_window=8),
            {"full_attention": None, "sliding_attention": 8},
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_the_windows_of_the_layers(configuration: Any, windows: dict[str | None, int | None]) -> None:
    model = causal(configuration)
    assert describe(model).windows == windows
    HuggingFaceTarget(model, runtime="eager").prepare()


def test_the_context_is_the_position_table_and_alibi_has_none() -> None:
    assert describe(causal(hf.LlamaConfig(**TINY))).context_length == 64
    bloom = causal(hf.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2))
    assert describe(bloom).context_length is None
    assert describe(bloom).alibi is not None


def test_the_alibi_hook_is_gone_after_a_pass_that_failed() -> None:
    family = describe(causal(hf.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)))
    with pytest.raises(KeyboardInterrupt), family.key_positions(torch.arange(4)[None]):
        raise KeyboardInterrupt
    assert "build_alibi_tensor" not in vars(family.alibi)
