"""How the passes of a model run: the kernels, not the mathematics.

``eager`` calls the model as it is. ``native`` (CPU) lends every linear layer, for the time of a pass, a kernel of our
own on the layer's own weights: they are read once, so that five tokens cost little more than one, which is where
speculation lives; whole decoder layers where the kernels know their kind. ``packed`` (CPU, without a compiler) lends
linear layers copies of their weights in oneDNN's blocked layout. ``graphs`` (CUDA) replays captured passes of fixed
shape, and ``static`` runs those uncaptured, for debugging; see ``target/graphs.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from specstream.core.ports import Adapter
from specstream.core.tree import TokenTree
from specstream.errors import UsageError
from specstream.models.architecture import compat
from specstream.models.architecture.blocks import BlockTensor, source_of
from specstream.models.architecture.code import is_original_class, is_undisturbed
from specstream.models.architecture.compat import Conv1D
from specstream.models.architecture.hidden_states import States
from specstream.models.architecture.partial_forward import Swaps, adapted, merged, swapped, upper_linears
from specstream.models.architecture.view import Copied
from specstream.models.runtime import native, quantized
from specstream.models.runtime.capabilities import Capabilities, Quantization, RuntimeName, capabilities
from specstream.models.runtime.compiled import NoKernelsError
from specstream.models.runtime.fused import FusedModel, FusedTop, final_norm, fused_layers, is_plain
from specstream.models.runtime.native import TreePlan, tree_plan
from specstream.models.runtime.quantized import QuantizedWeight

_ATTENTION = "specstream_native"  # the name of our attention in transformers' registry

_PASS: ContextVar[tuple[TreePlan | None, tuple[int, ...]]] = ContextVar("specstream_pass", default=(None, ()))
"""The pass that is running: transformers hands an attention function no argument of the caller's."""

_STATES: ContextVar[States | None] = ContextVar("specstream_states", default=None)
"""What the pass that is running shall keep."""

_BATCH_HINT = 8  # tokens the packed layout is laid out for: the width of a usual tree


class Runtime:
    """Runs passes of one model.

    Args:
        model: a view of a transformers model (``view.py``): passes change its modules.
        name: ``graphs``, ``native``, ``packed``, ``eager``, or ``auto`` for the first of them that works here; or
            ``static``.
        layer_windows: the sliding window of each layer, 0 for full attention; empty for full attention everywhere.
        quantization: ``int8`` and ``int4`` read the linear layers' weights from a copy in fewer bits. ``none`` reads
            them as they are: those of a GGUF file or a quantised checkpoint from blocks.
        head: the same of the language-model head; None for as the other layers.

    Attributes:
        name: of what runs.
        kind: the same without the quantisation.
        static: whether passes have fixed shapes.
        quantized: whether linear layers run on a quantised copy of their weights.
        exact_branches: whether a branch of a tree may have the bits of plain decoding: its keys are summed in path
            order.
        whole: what runs planned passes from tokens to logits past the model's own forward, if anything does.

    Raises:
        UsageError: a runtime or a quantisation that does not exist for this model's device and dtype.
        NoKernelsError: ``native`` was asked for and cannot be built.
    """

    def __init__(
        self,
        model: Any,
        name: RuntimeName = "auto",
        layer_windows: Sequence[int] = (),
        quantization: Quantization = "none",
        head: Quantization | None = None,
    ) -> None:
        found = capabilities(model.device, model.dtype, keep_dtype=True, runtime=name)
        _refuse(name, quantization, found)
        if name == "auto" and model.device.type == "cpu" and found.kernels.library is None:
            compat.warn_once(f"passes run without our kernels, and slower: {found.kernels.reason}")
        name = found.runtime.value
        if name == "graphs" and any(map(compat.keeps_length, model.modules())):
            name = "eager"  # a graph has no lengths in it
        self.model = model
        self.kind: str = name
        kept: Kept = "blocks" if quantization == "none" and _reads_blocks(model, name) else quantization
        if kept != "none":
            self.name: str = f"{name}-{source_of(model) if kept == 'blocks' else kept}"
        else:  # layers that transformers quantised are its own, whatever runs beside them
            self.name = name if compat.quantised_by(model) is None else f"{name}-transformers"
        self.static = name in ("graphs", "static")
        self.quantized = kept != "none"
        self._as_stored = kept == "blocks"
        self._weights = weights = _quantized(model, kept, head or kept)
        self._swaps = list(_linear_forwards(model, name, weights))
        biases = [_held(module, "bias") for module, _ in self._swaps if getattr(module, "bias", None) is not None]
        self._copied = [Copied(bias) for bias in biases if not bias.is_contiguous()]
        self._copied += [Copied(_held(module)) for module, _ in self._swaps if _is_copied(module, name, weights)]
        self._own_linears = name == "native" and any(module not in weights for module, _ in self._swaps)
        if name in ("native", "packed"):
            self._swaps += compat.state_forwards(model)
        self._layer_windows = tuple(layer_windows)
        self._parts: dict[range, Swaps] = {}
        self._adapted: WeakKeyDictionary[Adapter, Swaps] = WeakKeyDictionary()
        self._tops: WeakKeyDictionary[Adapter, FusedTop] = WeakKeyDictionary()
        self._released = False
        self._configs = _attention_configs(model) if name == "native" else {}
        self.exact_branches = bool(self._configs)
        self._planned_swaps = self._swaps
        self._stacked = False  # whether all layers of the model run on our own kernel
        self.whole: FusedModel | None = None
        if self._configs:
            compat.register_attention(_ATTENTION, _attend)
            layers = fused_layers(model, self._layer_windows, weights, _running)
            self._stacked = len(layers) == compat.text_config(model).num_hidden_layers
            inside = {module for layer, _ in layers for module in layer.modules()}
            self._planned_swaps = [*layers, *(swap for swap in self._swaps if swap[0] not in inside)]
            if self._stacked and (norm := final_norm(model)):
                self._planned_swaps.append((model.base_model.norm, norm))
            rotary = getattr(model.base_model, "rotary_emb", None)  # of which a table is made
            self._copied += [Copied(each) for each in (() if rotary is None else rotary.buffers())]
        if self._stacked and FusedModel.knows(model):
            top = model.get_output_embeddings()
            head_forward = dict(self._swaps).get(top, top)
            self.whole = FusedModel(model, self._layer_windows, weights, head_forward, as_stored=self._as_stored)

    def uncaptured(self) -> None:
        """The model's passes turned out not to be capturable, and results must not say that they are."""
        self.name = self.kind = "eager"

    @property
    def nbytes(self) -> int:
        """Bytes of the model's weights and of their quantised copies; a file's blocks count once."""
        blocks = self._weights if self._as_stored else ()  # rounded once more, an embedding is still read from them
        packed = {id(module.weight) for module in blocks if isinstance(module.weight, BlockTensor)}
        own: int = sum(weight.nbytes for weight in self.model.parameters() if id(weight) not in packed)
        return own + sum(weight.nbytes for weight in self._weights.values())

    @property
    def for_drafts(self) -> tuple[object, ...]:
        """What holds the copies of weights that heads draft with, and plain passes do not read."""
        return self._parts, self._adapted, self._tops

    def release(self, *, head: bool = True) -> None:
        """Give back the memory of weights that were quantised; only for a model that nobody else uses.

        Args:
            head: that of the language-model head too, of which streams and Medusa heads make their own.
        """
        embedding = self.model.get_input_embeddings().weight
        kept = None if head else self.model.get_output_embeddings()
        for module in self._weights:
            weight: Any = module.weight
            if weight is not embedding and module is not kept:
                module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
        self._copied.clear()
        self._released = True

    @property
    def outdated(self) -> bool:
        """Whether a weight that is held as a copy has been changed in place."""
        return any(copied.outdated for copied in self._copied)

    def own_attention(self, rows: int, width: int) -> bool:
        """Whether a pass over so many rows and nodes each goes through the native attention, not the model's own."""
        return bool(self._configs) and rows * width <= native.MOST_ROWS

    def alike(self, rows: int, width: int) -> bool:
        """Whether a pass over so many rows and nodes each runs the kernels that narrower ones run."""
        attention = not self._configs or self.own_attention(rows, width)
        return attention and (not self._own_linears or rows * width <= native.rows_of(self.model.dtype))

    def plan(self, trees: Sequence[TokenTree], width: int, lengths: Sequence[int]) -> TreePlan | None:
        """What the native attention needs to know of a pass; None if the pass goes through the model's own."""
        return tree_plan(trees, width, lengths) if self.own_attention(len(trees), width) else None

    def stacked(self, plan: TreePlan | None) -> bool:
        """Whether a pass of this plan runs through our own stack of layers, which keeps states by itself."""
        return plan is not None and self._stacked

    @property
    def ragged(self) -> bool:
        """Whether a pass may hold the nodes of all rows one after another and no padding: only our own stack can."""
        return self.whole is not None

    def kernels(self, plan: TreePlan | None = None, states: States | None = None) -> AbstractContextManager[None]:
        """Inside, the model's linear layers, and with a plan its attention, run on the kernels of this runtime.

        Args:
            plan: of the pass, if it is narrow enough for the runtime's own attention.
            states: filled by our own stack of layers with what goes into those that are its keys.
        """
        return self._running(plan, states, self._swaps if plan is None else self._planned_swaps)

    def adapted(self, plan: TreePlan | None, first: int, adapter: Adapter) -> AbstractContextManager[None]:
        """The same for a pass through the layers from ``first`` on, with an adapter's changes beside their weights."""
        if adapter not in self._adapted:
            swaps = dict(self._swaps)
            beside = adapted(upper_linears(self.model, first), adapter, swaps)
            self._adapted[adapter] = list({**swaps, **dict(beside)}.items())
        return self._running(plan, None, self._adapted[adapter])

    def top(self, first: int, adapter: Adapter) -> FusedTop | None:
        """What runs planned passes through those layers, if our own kernel does.

        It reads a copy of their weights with the changes in them, as bytes: such passes draft, so rounding changes the
        acceptance and never the output, and half of the memory is read.
        """
        if not self._stacked:
            return None
        if adapter not in self._tops:
            if self._released:
                return None
            changed = merged(upper_linears(self.model, first), adapter)
            weights = {linear: quantized.quantize(weight) for linear, weight in changed.items()}
            self._copied += [Copied(_held(linear)) for linear in changed]
            self._tops[adapter] = FusedTop(self.model, self._layer_windows, weights, first)
        return self._tops[adapter] if self._tops[adapter].complete else None

    def partial(self, plan: TreePlan | None, part: range, states: States | None = None) -> AbstractContextManager[None]:
        """The same for a pass through some of the layers, which our own stack would not leave out."""
        swaps = self._swaps if plan is None else self._planned_swaps
        if self.stacked(plan):
            if part not in self._parts:
                self._parts[part] = fused_layers(self.model, self._layer_windows, self._weights, _running, part)
            swaps = list({**dict(swaps), **dict(self._parts[part])}.items())
        return self._running(plan, states, swaps)

    @contextmanager
    def _running(self, plan: TreePlan | None, states: States | None, swaps: Swaps) -> Iterator[None]:
        token, keeping = _PASS.set((plan, self._layer_windows)), _STATES.set(states)
        configs = self._configs if plan is not None else {}
        try:
            with swapped(swaps), compat.attending(configs, _ATTENTION):
                yield
        finally:
            _PASS.reset(token)
            _STATES.reset(keeping)


def lend_kernels(module: nn.Module, name: str) -> None:
    """Let the linear layers of trained heads run on the kernels of a runtime, from now on: a few rows at a time.

    Args:
        module: ours alone, and not to be trained; its weights stay where they are.
        name: of the target's runtime.
    """
    for linear, forward in list(_linear_forwards(module, name, {})):
        linear.__dict__["forward"] = forward


def _plan() -> TreePlan:
    plan, _ = _PASS.get()
    assert plan is not None
    return plan


def _running() -> tuple[TreePlan, States | None]:
    return _plan(), _STATES.get()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface on the native kernel; the mask is in the plan of the pass."""
    plan, (_, windows) = _plan(), _PASS.get()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Not the window among the arguments: some families put theirs into the mask only.
    window = windows[cast(int, module.layer_idx)] if windows else 0
    softcap = kwargs.get("softcap") or 0.0
    return native.attention(query, key, value, plan, scale=scale, window=window, softcap=softcap), None


def _attention_configs(model: Any) -> dict[int, Any]:
    """The configurations to switch to the native attention for a pass; none if the model cannot take it.

    It must go through transformers' attention interface, without sinks, and its heads must fill the lanes.
    """
    layers = compat.attention_layers(model)
    sinks = any("sink" in name for name, _ in model.named_parameters())
    dims = {getattr(module, "head_dim", getattr(module, "head_size", 0)) for module in layers}
    dims -= {0}
    # transformers 5.20 drops Gemma 2's softcap under sdpa, and the output has to be the model's as it runs.
    softcap = getattr(compat.text_config(model), "attn_logit_softcapping", None)
    capless = softcap and compat.attention_of(model) != "eager"
    refused = sinks or capless or not compat.exchanges_attention(model) or not is_undisturbed(model)
    if refused or not dims or any(dim % native.LANES for dim in dims):
        return {}
    return compat.attention_configs(model)


def _refuse(name: RuntimeName, quantization: Quantization, found: Capabilities) -> None:
    """Refuse what was asked for and does not run here."""
    if name in found.refused:
        if name == "native" and found.refused[name] == found.kernels.reason:
            raise NoKernelsError(found.kernels.reason)
        raise UsageError(f"runtime is {name!r}: {found.refused[name]}; give auto")
    if quantization in found.refused:
        remedy = "int8" if quantization == "int4" and "int8" not in found.refused else "none"
        raise UsageError(f"quantization is {quantization!r}: {found.refused[quantization]}; give {remedy!r}")


BITS_OF_INT4 = 5.5
"""Bits a weight, in a draft's blocks, from which ``int4``, of five bits, is less to read by a tenth or more."""


def draft_quantization(draft: Any, runtime: RuntimeName) -> Quantization:
    """How a draft is fastest on the runtime that was asked for; blocks stay unless four bits are much less to read."""
    weights = list(draft.parameters())
    size, blocks = sum(weight.numel() for weight in weights), [each for each in weights if type(each) is BlockTensor]
    found = capabilities(draft.device, draft.dtype, keep_dtype=True, runtime=runtime, draft_parameters=size)
    wanted, bits = found.quantization.value, 8 * sum(each.nbytes for each in blocks)
    stays = bool(blocks) and (wanted != "int4" or bits < BITS_OF_INT4 * sum(each.numel() for each in blocks))
    return "none" if stays else wanted


Forward = Callable[..., Tensor]

Kept = Quantization | Literal["blocks"]
"""What a layer's weights are read from; the last: the blocks of a file."""


def _linear_forwards(
    model: Any, name: str, weights: Mapping[nn.Module, QuantizedWeight]
) -> Iterator[tuple[nn.Module, Forward]]:
    make = {"native": native.linear, "packed": _packed}.get(name)
    for module in _plain_linears(model):
        if module in weights:
            yield module, quantized.linear(weights[module], module.bias)
        elif make is not None and is_plain(module.weight):
            yield module, make(_weight(module), module.bias)


def _reads_blocks(model: Any, name: str) -> bool:
    """Whether linear layers run on blocks: only our kernels read them."""
    return name == "native" and source_of(model) is not None


def _quantized(model: Any, bits: Kept, head_bits: Kept) -> dict[nn.Module, QuantizedWeight]:
    head, weights = model.get_output_embeddings(), dict[nn.Module, QuantizedWeight]()
    for module in _plain_linears(model) if bits != "none" else ():
        own, weight = head_bits if module is head else bits, module.weight
        if own == "blocks":
            if isinstance(weight, BlockTensor):
                weights[module] = quantized.of_blocks(weight.kind, weight.blocks, weight.shape[1])
        elif own != "none":
            weights[module] = quantized.quantize(_weight(module), own)
    return weights


def _plain_linears(model: Any) -> Iterator[Any]:
    """Only plain layers: a subclass (LoRA, a quantised layer) or a patched layer has a forward of its own."""
    plain = {kind for kind in (nn.Linear, Conv1D) if is_original_class(kind)}
    for module in model.modules():
        patched = hasattr(module, "_hf_hook") or "forward" in module.__dict__
        if not patched and type(module) in plain and (is_plain(module.weight) or type(module.weight) is BlockTensor):
            yield module


def _is_copied(module: Any, name: str, weights: Mapping[nn.Module, QuantizedWeight]) -> bool:
    """Whether a layer's forward reads a copy of its weight."""
    return module in weights or name == "packed" or not module.weight.is_contiguous() or type(module) is Conv1D


def _weight(module: Any) -> Tensor:
    """``[outputs, inputs]``; GPT-2's layers keep theirs the other way round."""
    weight: Tensor = module.weight
    return (weight.t() if type(module) is Conv1D else weight).contiguous()


def _held(module: Any, name: str = "weight") -> Tensor:
    """A parameter as the model has it."""
    parameter: Tensor = getattr(module, name)
    return parameter


def _packed(weight: Tensor, bias: Tensor | None) -> Forward:
    bias = None if bias is None else bias.detach().contiguous()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _BATCH_HINT)

    def forward(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return result

    return forward
