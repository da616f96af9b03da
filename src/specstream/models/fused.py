"""Whole decoder layers of the Llama kind in one call of our own kernel, for the narrow passes of decoding.

Nothing of a modelling file is copied: the model's own ``forward`` embeds the tokens, turns positions into rotations and
runs through its layers; only while a pass is planned does each layer's ``forward`` go to the kernel, on the layer's own
weights. That its logits are the model's is asked of every model before its first pass (``selftest.py``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from specstream.models import native
from specstream.models.native import TreePlan
from specstream.models.quantized import QuantizedWeight
from specstream.models.taps import States

KINDS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
"""Decoder layers the kernel computes. Others that look alike scale residuals or order their norms otherwise."""

_ATTENTION_PARTS = ("q", "k", "v", "o")
_MLP_PARTS = ("gate", "up", "down")


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
    states: Callable[[], States | None],
    part: range | None = None,
) -> list[tuple[nn.Module, Callable[..., Tensor]]]:
    """The layers of a model that the kernel computes, each with what runs it.

    Args:
        model: a transformers model on the CPU, in bf16 or f32.
        windows: of each layer, 0 for full attention; empty for full attention everywhere.
        quantized: the weights of linear layers that are to be read from fewer bits instead.
        plan: the plan of the pass that is running.
        states: what that pass shall keep of what goes into its layers.
        part: the layers that are asked for; None for all.
    """
    fused: list[FusedLayer] = []
    part = range(model.config.num_hidden_layers) if part is None else part
    for layer in model.modules():
        if type(layer).__name__ in KINDS and type(layer).__module__.startswith("transformers."):
            matrices = {**_named(layer.self_attn, _ATTENTION_PARTS), **_named(layer.mlp, _MLP_PARTS)}
            if layer.self_attn.layer_idx in part and _fits(model, layer, matrices, quantized):
                window = windows[layer.self_attn.layer_idx] if windows else 0
                fused.append(FusedLayer(layer, matrices, window, quantized, plan))
    if [layer.index for layer in fused] != list(part):
        return [(layer.module, layer) for layer in fused]
    stack = FusedStack(fused, plan, states)
    return [(fused[0].module, stack), *((layer.module, stack.behind(layer)) for layer in fused[1:])]


class FusedLayer:
    """One layer; called as its module's ``forward`` is."""

    def __init__(
        self,
        layer: Any,
        matrices: Mapping[str, nn.Module],
        window: int,
        quantized: Mapping[nn.Module, QuantizedWeight],
        plan: Callable[[], TreePlan],
    ) -> None:
        attention = layer.self_attn
        self.module, self._plan, self._window = layer, plan, window
        self.index, self._head_dim, self._scale = int(attention.layer_idx), int(attention.head_dim), attention.scaling
        structs, self._alive = {}, []  # the structs hold addresses, `_alive` what lies there
        for name, matrix in matrices.items():
            structs[name], weights = _matrix(matrix, quantized.get(matrix))
            self._alive.append(weights)
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        head_norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        self._kv_heads = structs["k"].outputs // self._head_dim
        self.constants = _Layer(
            *(structs[name] for name in (*_ATTENTION_PARTS, *_MLP_PARTS)),
            *(None if norm is None else norm.weight.data_ptr() for norm in (*norms, *head_norms)),
            *(structs["q"].outputs // self._head_dim, self._kv_heads, self._head_dim),
            norms[0].variance_epsilon,
        )
        bits = {weight.bits for weight in quantized.values()}
        self.run = native.kernel("layers", norms[0].weight.dtype, *bits)

    def __call__(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], past_key_values: Any, **_: Any
    ) -> Tensor:
        x, (cos, sin) = hidden_states.contiguous(), (part.contiguous() for part in position_embeddings)
        y = torch.empty_like(x)
        arguments = self.arguments(x, y, (cos, sin), past_key_values, self._plan())
        address = ctypes.c_void_p(ctypes.addressof(self.constants))
        self.run(ctypes.addressof(address), ctypes.addressof(arguments), 1)
        return y

    def arguments(self, x: Tensor, y: Tensor, rotations: tuple[Tensor, Tensor], cache: Any, plan: TreePlan) -> _Pass:
        """What the kernel takes for a pass from ``x`` to ``y`` ``[rows, nodes, hidden]``."""
        states = x.new_empty((1, self._kv_heads, 0, self._head_dim))
        keys, values = cache.layer(self.index, states, states)
        tensors = (x, *rotations, y, keys, values, plan.lengths, plan.paths, plan.depths)
        return _Pass(
            *(tensor.data_ptr() for tensor in tensors),
            *keys.stride()[:3],
            *(x.shape[0], x.shape[1], self._window, torch.get_num_threads()),
            self._scale,
        )


class FusedStack:
    """All layers of a model in one call, in the place of the first.

    Between two calls a core's caches hold weights and nothing of Python, so each return costs more than it seems.
    """

    def __init__(
        self, layers: list[FusedLayer], plan: Callable[[], TreePlan], states: Callable[[], States | None]
    ) -> None:
        self._layers, self._plan, self._states = layers, plan, states
        addresses = (ctypes.addressof(layer.constants) for layer in layers)
        self._constants = (ctypes.c_void_p * len(layers))(*addresses)
        self._whole = False

    def __call__(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], past_key_values: Any, **rest: Any
    ) -> Tensor:
        # Whoever looks at what comes out of single layers is to see just that.
        self._whole = not any(each.module._forward_hooks or each.module._forward_pre_hooks for each in self._layers)
        if not self._whole:
            settings = {"position_embeddings": position_embeddings, "past_key_values": past_key_values}
            return self._alone(self._layers[0], hidden_states, **settings, **rest)
        cos, sin = (part.contiguous() for part in position_embeddings)
        plan, source, free = self._plan(), hidden_states.contiguous(), list[Tensor]()
        passes = (_Pass * len(self._layers))()
        for at, layer in enumerate(self._layers):
            target = free.pop() if free else torch.empty_like(source)
            passes[at] = layer.arguments(source, target, (cos, sin), past_key_values, plan)
            if not self._kept(layer, source) and at > 0:  # the first was the caller's
                free.append(source)
            source = target
        self._layers[0].run(ctypes.addressof(self._constants), ctypes.addressof(passes), len(passes))
        return source

    def _kept(self, layer: FusedLayer, hidden_states: Tensor) -> bool:
        """Whether the pass keeps what goes into this layer, which nothing may then overwrite."""
        states = self._states()
        if states is None or layer.index not in states:
            return False
        states[layer.index] = hidden_states
        return True

    def _alone(self, layer: FusedLayer, hidden_states: Tensor, **settings: Any) -> Tensor:
        self._kept(layer, hidden_states)
        return layer(hidden_states, **settings)

    def behind(self, layer: FusedLayer) -> Callable[..., Tensor]:
        """What runs a later layer: nothing, if the first has run it already."""

        def forward(hidden_states: Tensor, **settings: Any) -> Tensor:
            return hidden_states if self._whole else self._alone(layer, hidden_states, **settings)

        return forward


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


def _matrix(module: Any, weight: QuantizedWeight | None) -> tuple[_Matrix, Any]:
    bias = None if module.bias is None else module.bias.data_ptr()
    if weight is None:
        outputs, inputs = module.weight.shape
        return _Matrix(module.weight.data_ptr(), None, bias, outputs, inputs), module.weight
    addresses = (weight.values.data_ptr(), weight.scales.data_ptr(), bias)
    return _Matrix(*addresses, weight.outputs, weight.inputs), weight
