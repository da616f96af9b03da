"""Tiny random models of every family that must pass, each with a draft that agrees with it only now and then."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf

VOCAB = 160
WINDOW = 8
"""Shorter than any prompt here, so that a window off by one changes the output."""

_TOKENS = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
_ROPE = {
    **_TOKENS,
    "pad_token_id": None,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
_GROUPED = {**_ROPE, "num_key_value_heads": 2}
_GEMMA = {
    **_GROUPED,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_GPT = {**_TOKENS, "pad_token_id": None, "n_layer": 2, "n_head": 4}

CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_GROUPED),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, head_dim=16),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, sliding_window=WINDOW),
    # Soft-capped logits, attention's too; 2 and 8 bend the scores that these weights give.
    "gemma2": lambda: hf.Gemma2Config(**_GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=8.0),
    "gemma3": lambda: hf.Gemma3TextConfig(**_GEMMA),
    "phi": lambda: hf.PhiConfig(**_GROUPED),
    "gpt2": lambda: hf.GPT2Config(**_GPT, n_embd=64, n_positions=2048),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_ROPE),
    "opt": lambda: hf.OPTConfig(
        **{**_TOKENS, "pad_token_id": 1},
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        max_position_embeddings=2048,
    ),
    "bloom": lambda: hf.BloomConfig(**_GPT, hidden_size=64),
}
FAMILIES = tuple(CONFIGURATIONS)


def _long(original: int, **more: Any) -> dict[str, Any]:
    """Two sets of factors, for texts up to ``original`` tokens and for longer ones, far enough apart to show."""
    dims = 8 if more.get("partial_rotary_factor") is None else 4
    factors = {"short_factor": [1.0] * dims, "long_factor": [1.0 + 0.7 * at for at in range(dims)]}
    rotations = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": original,
        **factors,
    }
    return {**_GROUPED, "rope_parameters": rotations, **more}


LONG: dict[str, Callable[[], Any]] = {
    "llama-64": lambda: hf.LlamaConfig(**_long(64)),
    "llama-120": lambda: hf.LlamaConfig(**_long(120)),
    "qwen2-64": lambda: hf.Qwen2Config(**_long(64)),
    "phi3-64": lambda: hf.Phi3Config(**_long(64), original_max_position_embeddings=64),
    "phi3-120": lambda: hf.Phi3Config(**_long(120), original_max_position_embeddings=120),
}
"""Families whose rotations depend on the length of the text, by the length behind which they do."""

_SEEDS = {name: seed for seed, name in enumerate([*CONFIGURATIONS, *LONG])}


@cache
def build(family: str, dtype: torch.dtype = torch.float32, *, noise: float = 0.0) -> Any:
    """A model whose greedy output wanders; ``noise`` makes a draft of it that agrees the less, the larger it is.

    All tests share it: who changes it, its dtype for example, takes a copy.
    """
    with torch.random.fork_rng():  # the same model in every order of the tests
        torch.manual_seed(_SEEDS[family])
        model = hf.AutoModelForCausalLM.from_config({**CONFIGURATIONS, **LONG}[family]()).eval()
    chance = torch.Generator().manual_seed(_SEEDS[family])
    with torch.no_grad():
        for name, weights in model.named_parameters():
            # The default spread of 0.02 leaves a small random model repeating one token.
            spread = 0.25 if weights.ndim > 1 else 0.1 if name.endswith("bias") else 0.0
            weights.add_(torch.randn(weights.shape, generator=chance) * spread)
    if noise:
        chance = torch.Generator().manual_seed(99)
        with torch.no_grad():
            for weights in model.parameters():
                weights.add_(torch.randn(weights.shape, generator=chance) * noise * weights.std())
    return model.to(dtype)


def generated(model: Any, tokens: list[int], count: int, **settings: Any) -> list[int]:
    """What ``generate`` of transformers gives greedily behind a prompt alone."""
    ids = torch.tensor([tokens])
    given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": count, **settings}
    found: list[int] = model.generate(ids, **given)[0, len(tokens) :].tolist()
    return found


def prompt(length: int, seed: int = 0) -> list[int]:
    """Tokens with repeats in them, so that prompt lookup has something to copy, and to copy wrongly."""
    chance = torch.Generator().manual_seed(seed)
    phrase = torch.randint(2, VOCAB, (max(3, length // 3),), generator=chance).tolist()
    filler = torch.randint(2, VOCAB, (length,), generator=chance).tolist()
    return [*phrase, *filler[: max(0, length - 2 * len(phrase))], *phrase][:length]
