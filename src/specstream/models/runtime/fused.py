"""Whole decoder layers of the Llama kind in one call of our own kernel, for the narrow passes of decoding.

Nothing of a modelling file is copied: the model's own ``forward`` embeds the tokens, turns positions into rotations and
runs through its layers; only while a pass is planned does each layer's ``forward`` go to the kernel, on the layer's own
weights. That its logits are the model's is asked of every model before its first pass (``target/tree_check.py``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from specstream.models.architecture.blocks import BlockTensor
from specstream.models.architecture.code import is_original, is_original_class
from specstream.models.architecture.compat import cache_among, hooks_of, text_config
from specstream.models.architecture.hidden_states import States
from specstream.models.runtime import native
from specstream.models.runtime.native import TreePlan
from specstream.models.runtime.quantized import QuantizedWeight, embed_from

KINDS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
"""Decoder layers the kernel computes. Others that look alike scale residuals or order their norms otherwise."""

MODELS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Models that embed, run such layers, normalise and apply their head, and nothing else."""

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
"""Norms that the kernel computes; others add 1 to their weights, or multiply before they round."""

STEADY = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary positions whose angles do not depend on how long the text is."""

POSITIONS = 1024
"""Positions that a table of rotations begins with."""

_ATTENTION_PARTS = ("q", "k", "v", "o")
_MLP_PARTS = ("gate", "up", "down")


class _Matrix(ctypes.Structure):
    """``struct Matrix`` of layer.cpp, field by field, like those below."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("weights", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "layout")),
    ]


class _Layer(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, _Matrix) for name in (*_ATTENTION_PARTS, *_MLP_PARTS)),
        *((name, ctypes.c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "dim", "window")),
        *((name, ctypes.c_float) for name in ("epsilon", "scale")),
    ]


class _Cache(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("row", "head", "slot")),
    ]


class _Pass(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin", "y", "lengths", "starts", "paths", "depths", "kept")),
        *((name, ctypes.c_int64) for name in ("rows", "nodes", "threads")),
    ]


Running = Callable[[], tuple[TreePlan, States | None]]
"""What a pass that is running is: its plan, and what it shall keep of what goes into its layers."""


def fused_layers(
    model: Any,
    windows: tuple[int, ...],
    quantized: Mapping[nn.Module, QuantizedWeight],
    running: Running,
    part: range | None = None,
) -> list[tuple[nn.Module, Callable[..., Tensor]]]:
    """The layers of a model that the kernel computes, each with what runs it.

    Args:
        model: a transformers model on the CPU, in bf16 or f32.
        windows: of each layer, 0 for full attention; empty for full attention everywhere.
        quantized: the weights of linear layers that are to be read from fewer bits instead.
        running: the pass that is running: its plan, and what it shall keep of what goes into its layers.
        part: the layers that are asked for; None for all.
    """
    part = range(text_config(model).num_hidden_layers) if part is None else part
    fused = _known(model, windows, quantized, part)
    alone = [FusedLayers([layer], running) for layer in fused]
    watched = any(hooks_of(layer.module) for layer in fused)
    if watched or [layer.index for layer in fused] != list(part):
        return [(layer.module, run) for layer, run in zip(fused, alone, strict=True)]
    together = FusedLayers(fused, running)
    return [(fused[0].module, together), *((layer.module, _already) for layer in fused[1:])]


def _already(hidden_states: Tensor, **named: Any) -> Tensor:
    """All layers run in the place of the first: between two calls a core's caches would lose what Python brings in."""
    return hidden_states


def _known(
    model: Any, windows: tuple[int, ...], quantized: Mapping[nn.Module, QuantizedWeight], part: range
) -> list[FusedLayer]:
    fused: list[FusedLayer] = []
    for layer in model.modules():
        if type(layer).__name__ in KINDS and type(layer).__module__.startswith("transformers."):
            matrices = {**_named(layer.self_attn, _ATTENTION_PARTS), **_named(layer.mlp, _MLP_PARTS)}
            if None in matrices.values() or not all(hasattr(norm, "variance_epsilon") for norm in _norms(layer)):
                continue
            if layer.self_attn.layer_idx in part and _fits(model, layer, matrices, quantized):
                window = windows[layer.self_attn.layer_idx] if windows else 0
                fused.append(FusedLayer(layer, matrices, window, quantized))
    return fused


class FusedLayer:
    """What the kernel needs to know of one layer."""

    def __init__(
        self,
        layer: Any,
        matrices: Mapping[str, nn.Module],
        window: int,
        quantized: Mapping[nn.Module, QuantizedWeight],
    ) -> None:
        attention = layer.self_attn
        self.module, self.index, dim = layer, int(attention.layer_idx), int(attention.head_dim)
        structs, self._alive = {}, list[Any]()  # the structs hold addresses, `_alive` what lies there
        for name, matrix in matrices.items():
            structs[name], alive = _matrix(matrix, quantized.get(matrix))
            self._alive += alive
        norms = _norms(layer)
        head_norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        self._alive += [norm.weight.detach() for norm in (*norms, *head_norms) if norm is not None]
        self.heads = (structs["k"].outputs // dim, dim)
        self.constants = _Layer(
            *(structs[name] for name in (*_ATTENTION_PARTS, *_MLP_PARTS)),
            *(None if norm is None else norm.weight.data_ptr() for norm in (*norms, *head_norms)),
            *(structs["q"].outputs // dim, *self.heads, window),
            *(norms[0].variance_epsilon, attention.scaling),
        )
        self.dtype = norms[0].weight.dtype
        self.bits = "blocks" if any(matrix in quantized for matrix in matrices.values()) else ""


class FusedLayers:
    """Some layers in one call, from the input of the first to the output of the last; called as a module's ``forward``.

    A draft's step is short enough for the time that Python takes to show. So what a pass changes is told once for all
    layers, and what stays, the addresses in the cache, is kept with the cache.
    """

    def __init__(self, layers: Sequence[FusedLayer], running: Running) -> None:
        self._layers, self._running = layers, running
        self._constants = (ctypes.c_void_p * len(layers))(*(ctypes.addressof(layer.constants) for layer in layers))
        self._run = native.kernel("layers", layers[0].dtype, layers[0].bits)

    def __call__(self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **named: Any) -> Tensor:
        return self.run(hidden_states, position_embeddings, cache_among(named), *self._running())

    def run(
        self, hidden: Tensor, rotations: tuple[Tensor, Tensor], cache: Any, plan: TreePlan, states: States | None
    ) -> Tensor:
        """A pass of this plan, ``[rows, nodes, hidden]`` in and out, ``[1, all nodes, hidden]`` where it is packed.

        It fills ``states`` likewise.
        """
        x, (cos, sin) = hidden.contiguous(), (part.contiguous() for part in rotations)
        y, caches = torch.empty_like(x), cache.addresses.get(self) or self._addresses(cache, x)
        tensors = (x, cos, sin, y, plan.lengths, plan.starts, plan.paths, plan.depths)
        kept = self._kept(states, x) if states else None
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        about = _Pass(*addresses, kept, *plan.depths.shape, torch.get_num_threads())
        self._run(self._constants, caches, ctypes.byref(about), len(self._layers))
        return y

    def _kept(self, states: States, like: Tensor) -> Any:
        """Where the kernel is to leave what goes into layers; nothing for the others."""
        kept = (ctypes.c_void_p * len(self._layers))()
        for at, layer in enumerate(self._layers):
            if layer.index in states:
                states[layer.index] = into = torch.empty_like(like)
                kept[at] = into.data_ptr()
        return ctypes.cast(kept, ctypes.c_void_p)

    def _addresses(self, cache: Any, like: Tensor) -> Any:
        tensors = []
        for layer in self._layers:
            states = like.new_empty((1, layer.heads[0], 0, layer.heads[1]))
            tensors.append(cache.layer(layer.index, states, states))
        made = (_Cache * len(tensors))(
            *(_Cache(keys.data_ptr(), values.data_ptr(), *keys.stride()[:3]) for keys, values in tensors)
        )
        cache.addresses[self] = made
        return made


def final_norm(model: Any) -> Callable[[Tensor], Tensor] | None:
    """The norm behind the layers in our own kernel, rounded as those within them; None where the model's own runs.

    Whatever runs a pass of a text has to run the same: bits differ.
    """
    norm = model.base_model.norm
    known = type(norm).__name__ in NORMS and hasattr(norm, "variance_epsilon") and is_original(norm)
    if not known or not is_plain(norm.weight) or not norm.weight.is_contiguous() or norm.weight.dtype != model.dtype:
        return None
    return native.norm(norm.weight, norm.variance_epsilon)


class Rotations:
    """What a model's rotary embedding says of positions, from a table where it says the same of each every time.

    Args:
        rotary: the module.
    """

    def __init__(self, rotary: Any) -> None:
        self._rotary = rotary
        self._fixed = getattr(rotary, "rope_type", None) in STEADY
        self._table: tuple[Tensor, Tensor] | None = None

    def __call__(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[rows, nodes, dim]``, in the dtype of ``hidden``, of positions ``[rows, nodes]``."""
        if not self._fixed:
            cos, sin = self._rotary(hidden, position_ids=positions)
            return cos, sin
        needed = int(positions.max()) + 1
        if self._table is None or len(self._table[0]) < needed or self._table[0].dtype != hidden.dtype:
            wanted = max(POSITIONS, 2 * needed)
            cos, sin = self._rotary(hidden, position_ids=torch.arange(wanted, device=hidden.device)[None])
            self._table = cos[0], sin[0]
        at = positions.reshape(-1)
        cos, sin = (part.index_select(0, at).view(*positions.shape, -1) for part in self._table)
        return cos, sin


class FusedTop:
    """The layers from one on with what the model has around them: positions become rotations before, its norm follows.

    Such a pass is short, and to go through the model's own ``forward``, past all the layers below, would take as long.

    Args:
        model, windows, quantized: as for ``fused_layers``.
        first: the layer to begin with.

    Attributes:
        complete: whether the kernel knows all layers from there on; otherwise it cannot be called.
    """

    def __init__(
        self, model: Any, windows: tuple[int, ...], quantized: Mapping[nn.Module, QuantizedWeight], first: int
    ) -> None:
        layers = _known(model, windows, quantized, range(first, text_config(model).num_hidden_layers))
        self.complete = len(layers) == text_config(model).num_hidden_layers - first
        if self.complete:
            self._layers = FusedLayers(layers, _nothing_runs)
        self._rotate, self._norm = Rotations(model.base_model.rotary_emb), final_norm(model) or model.base_model.norm

    def __call__(
        self, hidden: Tensor, positions: Tensor, cache: Any, plan: TreePlan, states: States | None = None
    ) -> Tensor:
        """What goes into the first layer -> final, normed states, both ``[rows, nodes, hidden]``; fills ``states``."""
        rotations = self._rotate(hidden, positions)
        normed: Tensor = self._norm(self._layers.run(hidden, rotations, cache, plan, states))
        return normed


class FusedModel:
    """A whole model of the Llama kind: embedding, layers, norm, head, and as little of Python between as there can be.

    Args:
        model, windows, quantized: as for ``fused_layers``. The kernel has to know all its layers.
        head: what runs the head.
        as_stored: whether quantised weights have the values that the model has.
    """

    def __init__(
        self,
        model: Any,
        windows: tuple[int, ...],
        quantized: Mapping[nn.Module, QuantizedWeight],
        head: Callable[[Tensor], Tensor],
        *,
        as_stored: bool,
    ) -> None:
        self._embed = _embedding(model, quantized if as_stored else {})
        self._head, self._depth = head, text_config(model).num_hidden_layers
        self._layers = FusedTop(model, windows, quantized, 0)

    @staticmethod
    def knows(model: Any) -> bool:
        """Whether the model's own forward does no more than this, and nobody watches it; some scale embeddings."""
        kind, passed_over = type(model), [*model.base_model.layers, model.get_output_embeddings()]
        known = kind.__name__ in MODELS and kind.__module__.startswith("transformers.")
        return known and all(map(is_original, [model, model.base_model, *passed_over]))

    def __call__(self, tokens: Tensor, positions: Tensor, cache: Any, plan: TreePlan, states: States | None) -> Tensor:
        """Tokens ``[rows, nodes]`` -> logits ``[rows, nodes, vocab]``; fills ``states``.

        Where the plan is packed, all nodes stand in one row instead.
        """
        normed = self._layers(self._embed(tokens), positions, cache, plan, states)
        if states is not None and self._depth in states:
            states[self._depth] = normed
        return self._head(normed)


def _embedding(model: Any, weights: Mapping[nn.Module, QuantizedWeight]) -> Callable[[Tensor], Tensor]:
    """What embeds tokens: the blocks that the head has packed, where the two are one matrix; else the module."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    packed = weights.get(head) if head.weight is embedding.weight and is_original(embedding) else None
    if packed is None or not isinstance(head.weight, BlockTensor):
        return cast(Callable[[Tensor], Tensor], embedding)
    return embed_from(packed, model.dtype)


def _nothing_runs() -> tuple[TreePlan, None]:
    raise AssertionError("these layers are run by name, not in the place of a module")


def _named(module: nn.Module, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(module, f"{name}_proj", None) for name in names}


def _norms(layer: Any) -> tuple[Any, Any]:
    return layer.input_layernorm, layer.post_attention_layernorm


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is numbers in memory: a tensor of a class of its own may be something else."""
    return type(weight) in (Tensor, nn.Parameter) and type(weight.data) is Tensor


def _fits(
    model: Any, layer: Any, matrices: Mapping[str, nn.Module], quantized: Mapping[nn.Module, QuantizedWeight]
) -> bool:
    """Whether the layer is as its class made it, nothing in it added, patched or hooked, its weights as expected."""
    inside = [module for child in layer.children() for module in child.modules()]
    own = all(map(is_original, inside)) and "forward" not in layer.__dict__ and is_original_class(type(layer))
    plain = own and all(type(matrix) is nn.Linear for matrix in matrices.values())
    bytes_or_not = {matrix in quantized for matrix in matrices.values()}
    blocks = {id(matrix.weight) for matrix in matrices.values() if matrix in quantized}
    rotary = getattr(model.base_model, "rotary_emb", None)
    dim = layer.self_attn.head_dim
    return (
        plain
        and len(bytes_or_not) == 1
        and layer.mlp.act_fn.__class__.__name__ in ("SiLU", "SiLUActivation")
        and rotary is not None
        and 2 * rotary.inv_freq.numel() == dim
        and all(
            is_plain(weight) and weight.is_contiguous() and weight.dtype == model.dtype
            for weight in layer.parameters()
            if weight.numel() and id(weight) not in blocks
        )
    )


def _matrix(module: Any, weight: QuantizedWeight | None) -> tuple[_Matrix, list[Any]]:
    """The struct, and what lies at its addresses: a parameter itself may be given other storage."""
    bias = None if module.bias is None else module.bias.detach()
    bias_address = None if bias is None else bias.data_ptr()
    if weight is None:
        outputs, inputs = module.weight.shape
        own = module.weight.detach()
        return _Matrix(own.data_ptr(), bias_address, outputs, inputs, 0), [own, bias]
    addresses = (weight.values.data_ptr(), bias_address)
    return _Matrix(*addresses, weight.outputs, weight.inputs, weight.layout), [weight, bias]
