"""Tiny random models that also see or hear, used with text alone: a decoder inside a larger model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf

from tests.lossless.families import VOCAB, WINDOW

_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LAYERS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA = {**_TEXT, **_LAYERS, "query_pre_attn_scalar": 16}
_SIGHT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
_PATCHES = {**_SIGHT, "image_size": 28, "patch_size": 14}
_DEEP = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
_HEARING = {"num_mel_bins": 8, "max_source_positions": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LAST = VOCAB - 1  # stands for an image


def _rotating(*sections: int) -> dict[str, Any]:
    return {
        **_TEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)},
    }


def _llava(kind: Any, vision: Any, **more: Any) -> Any:
    return kind(text_config=hf.LlamaConfig(**_TEXT), vision_config=vision(**_PATCHES), **more)


def _windowed(kind: Any) -> Any:
    text = hf.Cohere2Config(**_TEXT, **_LAYERS)
    return kind(text_config=text, vision_config=hf.SiglipVisionConfig(**_PATCHES))


CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "gemma3": lambda: hf.Gemma3Config(text_config=_GEMMA, vision_config=_PATCHES, mm_tokens_per_image=4),
    "gemma4": lambda: hf.Gemma4Config(
        text_config={
            **_GEMMA,
            "pad_token_id": 0,
            "global_head_dim": 16,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
        vision_config={**_SIGHT, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 14},
        audio_config=None,
    ),
    "qwen2_vl": lambda: hf.Qwen2VLConfig(
        text_config=_rotating(2, 3, 3), vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    ),
    "qwen2_5_vl": lambda: hf.Qwen2_5_VLConfig(
        text_config=_rotating(2, 3, 3), vision_config={**_DEEP, "fullatt_block_indexes": [0]}
    ),
    "qwen3_vl": lambda: hf.Qwen3VLConfig(
        text_config=_rotating(3, 3, 2), vision_config={**_DEEP, "deepstack_visual_indexes": [0]}
    ),
    "qwen3_vl_moe": lambda: hf.Qwen3VLMoeConfig(
        text_config={**_rotating(3, 3, 2), **_EXPERTS}, vision_config={**_DEEP, "deepstack_visual_indexes": [0]}
    ),
    "glm4v": lambda: hf.Glm4vConfig(
        text_config={**_rotating(2, 3, 3), "partial_rotary_factor": 1.0},
        vision_config={**_DEEP, "image_size": 28, "patch_size": 14},
    ),
    "llava": lambda: _llava(hf.LlavaConfig, hf.CLIPVisionConfig),
    "llava_next": lambda: _llava(hf.LlavaNextConfig, hf.CLIPVisionConfig, image_grid_pinpoints=[[28, 28]]),
    "mistral3": lambda: hf.Mistral3Config(
        text_config=hf.MistralConfig(**_TEXT, sliding_window=WINDOW), vision_config=hf.PixtralVisionConfig(**_PATCHES)
    ),
    "idefics3": lambda: hf.Idefics3Config(text_config=hf.LlamaConfig(**_TEXT), vision_config=_PATCHES),
    "smolvlm": lambda: hf.SmolVLMConfig(text_config=hf.LlamaConfig(**_TEXT), vision_config=_PATCHES),
    "internvl": lambda: hf.InternVLConfig(
        text_config=hf.Qwen2Config(**_TEXT),
        vision_config={**_SIGHT, "image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=_LAST,
    ),
    "aya_vision": lambda: _windowed(hf.AyaVisionConfig),
    "cohere2_vision": lambda: _windowed(hf.Cohere2VisionConfig),
    "mllama": lambda: hf.MllamaConfig(
        text_config={
            **_TEXT,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cross_attention_layers": [1],
        },
        vision_config={
            **_SIGHT,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
        },
    ),
    "voxtral": lambda: hf.VoxtralConfig(text_config=_TEXT, audio_config={**_SIGHT, **_HEARING}, audio_token_id=_LAST),
    "qwen2_audio": lambda: hf.Qwen2AudioConfig(
        text_config=hf.Qwen2Config(**_TEXT),
        audio_config={
            **_HEARING,
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
        },
        audio_token_index=_LAST,
    ),
    "qwen3_5": lambda: hf.Qwen3_5Config(
        text_config={
            **_rotating(2, 3, 3),
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        vision_config=_DEEP,
    ),
}


@cache
def build(name: str) -> Any:
    """A model whose greedy output wanders. All tests share it."""
    config = CONFIGURATIONS[name]()
    kind = getattr(hf, type(config).__name__.removesuffix("Config") + "ForConditionalGeneration")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
    return disturbed(model, 0.25, seed=1)


def disturbed(model: Any, spread: float, seed: int) -> Any:
    """A copy with noise on its matrices, and less on its biases."""
    other, chance = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in other.named_parameters():
            scale = spread if weights.ndim > 1 else 0.4 * spread if name.endswith("bias") else 0.0
            weights.add_(torch.randn(weights.shape, generator=chance) * scale)
    return other
