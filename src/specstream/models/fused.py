"""Whole decoder layers of the Llama kind in one call of our own kernel, for the narrow passes of decoding.

Nothing of a modelling file is copied: the model's own ``forward`` embeds the tokens, turns positions into rotations and
runs through its layers; only while a pass is planned does each layer's ``forward`` go to the kernel, on the layer's own
weights. That its logits are the model's is asked of every model before its first pass (``selftest.py``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from specstream.models import native
from specstream.models.native import TreePlan
from specstream.models.quantized import QuantizedWeight

KINDS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
"""Decoder layers the kernel computes. Others that look alike scale residuals or order their norms otherwise."""

_ATTENTION_PARTS = ("q", "k", "v", "o")
_MLP_PARTS = ("gate", "up", "down")

LayerForward = Callable[..., Tensor]


class _Matrix(ctypes.Structure):
    """``struct Matrix`` of layer.cpp, field by field, like those below."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("weights", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
    ]


class _Layer(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, _Matrix) for name in (*_ATTENTION_PARTS, *_MLP_PARTS)),
        *((name, ctypes.c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "dim")),
        ("epsilon", ctypes.c_float),
    ]


class _Pass(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin", "y", "keys", "values", "lengths", "paths", "depths")),
        *((name, ctypes.c_int64) for name in ("cache_row", "cache_head", "cache_slot")),
        *((name, ctypes.c_int64) for name in ("rows", "nodes", "window", "threads")),
        ("scale", ctypes.c_float),
    ]


def fused_layers(
    model: Any,
    windows: tuple[int, ...],
    quantized: Mapping[nn.Module, QuantizedWeight],
    plan: Callable[[], TreePlan],
) -> Iterator[tuple[nn.Module, LayerForward]]:
    """The layers of a model that the kernel computes, each with what runs it.

    Args:
        model: a transformers model on the CPU, in bf16 or f32.
        windows: of each layer, 0 for full attention; empty for full attention everywhere.
        quantized: the weights of linear layers that are to be read as bytes instead.
        plan: the plan of the pass that is running.
    """
    for layer in model.modules():
        if type(layer).__name__ in KINDS and type(layer).__module__.startswith("transformers."):
            matrices = {**_named(layer.self_attn, _ATTENTION_PARTS), **_named(layer.mlp, _MLP_PARTS)}
            if _fits(model, layer, matrices, quantized):
                index = layer.self_attn.layer_idx
                yield layer, _forward(layer, matrices, windows[index] if windows else 0, quantized, plan)


def _named(module: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    return {name: getattr(module, f"{name}_proj") for name in names}


def _fits(
    model: Any, layer: Any, matrices: Mapping[str, nn.Module], quantized: Mapping[nn.Module, QuantizedWeight]
) -> bool:
    """Whether the layer is as its class made it, without adapters or hooks inside, and its weights lie as expected."""
    inside = [module for child in layer.children() for module in child.modules()]
    hooked = any(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook") for module in inside)
    plain = all(type(matrix) is nn.Linear for matrix in matrices.values())
    bytes_or_not = {matrix in quantized for matrix in matrices.values()}
    rotary = getattr(model.base_model, "rotary_emb", None)
    dim = layer.self_attn.head_dim
    return (
        plain
        and not hooked
        and len(bytes_or_not) == 1
        and layer.mlp.act_fn.__class__.__name__ in ("SiLU", "SiLUActivation")
        and rotary is not None
        and 2 * rotary.inv_freq.numel() == dim
        and all(
            weight.is_contiguous() and weight.dtype == model.dtype for weight in layer.parameters() if weight.numel()
        )
    )


def _forward(
    layer: Any,
    matrices: Mapping[str, nn.Module],
    window: int,
    quantized: Mapping[nn.Module, QuantizedWeight],
    planned: Callable[[], TreePlan],
) -> LayerForward:
    attention = layer.self_attn
    head_dim, index = int(attention.head_dim), int(attention.layer_idx)
    structs, alive = {}, [layer]  # the structs hold addresses, `alive` what lies there
    for name, matrix in matrices.items():
        structs[name], weights = _matrix(matrix, quantized.get(matrix))
        alive.append(weights)
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    head_norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
    kv_heads = structs["k"].outputs // head_dim
    constants = _Layer(
        *(structs[name] for name in (*_ATTENTION_PARTS, *_MLP_PARTS)),
        *(None if norm is None else norm.weight.data_ptr() for norm in (*norms, *head_norms)),
        *(structs["q"].outputs // head_dim, kv_heads, head_dim),
        norms[0].variance_epsilon,
    )
    scale = float(attention.scaling)
    dtype = norms[0].weight.dtype
    bits = {weight.bits for weight in quantized.values()}
    run = native.kernel("layer", dtype, *bits)

    def forward(
        hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], past_key_values: Any, **_: Any
    ) -> Tensor:
        x = hidden_states.contiguous()
        y = torch.empty_like(x)
        plan = planned()
        cos, sin = (part.contiguous() for part in position_embeddings)
        states = x.new_empty((1, kv_heads, 0, head_dim))
        keys, values = past_key_values.layer(index, states, states)
        steps = keys.stride()
        arguments = _Pass(
            *(tensor.data_ptr() for tensor in (x, cos, sin, y, keys, values, plan.lengths, plan.paths, plan.depths)),
            *steps[:3],
            *(x.shape[0], x.shape[1], window, torch.get_num_threads()),
            scale,
        )
        run(ctypes.addressof(constants), ctypes.addressof(arguments))
        assert alive
        return y

    return forward


def _matrix(module: Any, weight: QuantizedWeight | None) -> tuple[_Matrix, Any]:
    bias = None if module.bias is None else module.bias.data_ptr()
    if weight is None:
        outputs, inputs = module.weight.shape
        return _Matrix(module.weight.data_ptr(), None, bias, outputs, inputs), module.weight
    addresses = (weight.values.data_ptr(), weight.scales.data_ptr(), bias)
    return _Matrix(*addresses, weight.outputs, weight.inputs), weight
