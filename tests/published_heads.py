"""Folders of random EAGLE-3 and DFlash heads, as speculators and as the authors lay them out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

HEADS, KV_HEADS, DIM = 4, 2, 8

Layout = Literal["speculators", "authors"]


def write_eagle(  # noqa: PLR0913
    folder: Path,
    model: Any,
    layout: Layout = "speculators",
    *,
    taps: Sequence[int] = (0, 1),
    gamma: int = 4,
    drafted: Sequence[int] | None = None,
    kind: str = "llama",
    embeddings: bool = False,
    change: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A head for a model.

    Args:
        folder: where to.
        model: whose sizes are taken.
        layout: of the folder.
        taps: the model's layers that are read.
        gamma: the deepest draft.
        drafted: ids of the tokens that are drafted, rising; None for all.
        kind: of the layer: that of Llama or of Qwen3.
        embeddings: whether it has some of its own.
        change: in config.json.
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = model.get_input_embeddings().weight
    size, width = table.shape
    ids = torch.tensor(list(range(size) if drafted is None else drafted))
    random, inner = torch.Generator().manual_seed(seed), 2 * width
    shapes = {"fc": (width, len(taps) * width), "lm_head": (len(ids), width)}
    layer = "layers.0" if layout == "speculators" else "midlayer"
    shapes |= {f"{layer}.self_attn.{name}_proj": (KV_HEADS * DIM, 2 * width) for name in "kv"}
    shapes |= {f"{layer}.self_attn.q_proj": (HEADS * DIM, 2 * width), f"{layer}.self_attn.o_proj": (width, HEADS * DIM)}
    shapes |= {f"{layer}.mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
    shapes |= {f"{layer}.mlp.down_proj": (width, inner)}
    tensors: dict[str, Tensor] = {
        f"{name}.weight": torch.randn(shape, generator=random) / shape[1] ** 0.5 for name, shape in shapes.items()
    }
    norms = {name: width for name in ("norm", *(f"{layer}.{each}" for each in _NORMS))}
    if kind == "qwen3":
        norms |= {f"{layer}.self_attn.{name}_norm": DIM for name in "qk"}
    if (change or {}).get("norm_before_fc"):
        norms["input_norm"] = len(taps) * width
    tensors |= {f"{name}.weight": 1 + 0.1 * torch.randn(many, generator=random) for name, many in norms.items()}
    if embeddings:
        tensors["embed_tokens.weight"] = torch.randn(size, width, generator=random)
    if drafted is not None:
        tensors |= {"d2t": ids - torch.arange(len(ids)), "t2d": torch.isin(torch.arange(size), ids)}
    inside = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM, "hidden_size": width}
    inside |= {"model_type": kind, "intermediate_size": inner, "vocab_size": size, "rms_norm_eps": 1e-5}
    inside |= {"num_hidden_layers": 1, "rope_theta": 10000.0, "max_position_embeddings": 512}
    if layout == "speculators":
        methods = [{"proposal_type": "greedy", "speculative_tokens": gamma}]
        settings = {
            "speculators_model_type": "eagle3",
            "transformer_layer_config": inside,
            "norm_before_residual": True,
        }
        settings |= {"speculators_config": {"algorithm": "eagle3", "proposal_methods": methods}}
        settings |= {"eagle_aux_hidden_state_layer_ids": list(taps), "draft_vocab_size": len(ids)}
        save_file(tensors, folder / "model.safetensors")
    else:
        settings = {**inside, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": len(ids)}
        settings |= {"eagle_config": {"eagle_aux_hidden_state_layer_ids": list(taps)}}
        torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(settings | (change or {})), encoding="utf-8")
    return folder


_NORMS = ("input_layernorm", "hidden_norm", "post_attention_layernorm")


def write_dflash(  # noqa: PLR0913
    folder: Path,
    model: Any,
    layout: Layout = "speculators",
    *,
    taps: Sequence[int] = (0, 1),
    layers: int = 2,
    block: int = 4,
    change: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A DFlash head for a model; the authors' has no embeddings and no output.

    Args:
        folder: where to.
        model: whose sizes are taken.
        layout: of the folder.
        taps: the model's layers that are read.
        layers: of the head.
        block: tokens of a block, the last known one among them.
        change: in config.json.
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, width = model.get_input_embeddings().weight.shape
    random, inner, own = torch.Generator().manual_seed(seed), 2 * width, layout == "speculators"
    shapes = {"fc": (width, len(taps) * width)}
    norms = {"norm": width, "hidden_norm": width}
    for at in range(layers):
        layer = f"layers.{at}"
        shapes |= {f"{layer}.self_attn.{name}_proj": (KV_HEADS * DIM, width) for name in "kv"}
        shapes |= {f"{layer}.self_attn.q_proj": (HEADS * DIM, width), f"{layer}.self_attn.o_proj": (width, HEADS * DIM)}
        shapes |= {f"{layer}.mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj": (width, inner)}
        norms |= {f"{layer}.{name}": width for name in ("input_layernorm", "post_attention_layernorm")}
        norms |= {f"{layer}.self_attn.{name}_norm": DIM for name in "qk"}
    if own:
        shapes |= {"lm_head": (size // 2, width), "embed_tokens": (size, width)}
    tensors: dict[str, Tensor] = {
        f"{name}.weight": torch.randn(shape, generator=random) / shape[1] ** 0.5 for name, shape in shapes.items()
    }
    tensors |= {f"{name}.weight": 1 + 0.1 * torch.randn(many, generator=random) for name, many in norms.items()}
    inside = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM, "hidden_size": width}
    inside |= {"model_type": "qwen3", "intermediate_size": inner, "vocab_size": size, "rms_norm_eps": 1e-5}
    inside |= {"num_hidden_layers": layers, "rope_theta": 10000.0, "max_position_embeddings": 512}
    if own:
        tensors["d2t"] = torch.arange(size // 2)  # every other token
        settings = {"speculators_model_type": "dflash", "transformer_layer_config": inside, "block_size": block}
        settings |= {"aux_hidden_state_layer_ids": list(taps), "mask_token_id": 5}
    else:
        settings = {**inside, "architectures": ["DFlashDraftModel"], "block_size": block}
        settings |= {"dflash_config": {"target_layer_ids": [tap - 1 for tap in taps], "mask_token_id": 5}}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings | (change or {})), encoding="utf-8")
    return folder
