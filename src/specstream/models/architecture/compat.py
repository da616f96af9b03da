"""All that depends on what a release of transformers calls things.

The rest of the package asks here for the name of an argument, for a private attribute, or for a class that has moved.
A release that renames one of them is met in this file, and ``make matrix`` runs the contract suite with the lowest,
the locked and the newest release.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PrefixConstrainedLogitsProcessor,
    PreTrainedConfig,
)
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.pytorch_utils import Conv1D

from specstream import environment
from specstream.errors import UsageError

__all__ = ["Cache", "Conv1D", "PreTrainedConfig"]

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What a forward calls the key-value cache: the first since transformers 5.24, the second before and in remote code."""


HOOKED = "_output_capturing_hooks_installed"
"""What a model notes when it is first asked for hidden states, and puts hooks of its own on its modules."""


def is_tested() -> bool:
    """Whether the installed transformers is a tested one."""
    return environment.is_tested("transformers", transformers.__version__)


def advice(package: str = "transformers", release: str = "") -> str:
    """The installed release beside the tested ones, and the pip line; the second half of a sentence."""
    low, high = environment.TESTED[package]
    installed = release or transformers.__version__
    return f"{package} {installed} is installed, and {low} to {high} are tested: {environment.pip_line(package)}"


def require_supported() -> None:
    """Refuse releases that are older than every tested one.

    Raises:
        UsageError: one is; the message names it, the range and the pip line.
    """
    for package, release in (("transformers", transformers.__version__), ("torch", torch.__version__)):
        if environment.is_too_old(package, release):
            raise UsageError(advice(package, release))


def advice_if_untested() -> str:
    """What follows a problem that another release may not have; empty where the installed one is tested."""
    return "" if is_tested() else f"; {advice()}"


@cache
def warn_once(problem: str) -> None:
    """Say, once a process, that something is not known and what is done without it."""
    warnings.warn(problem, stacklevel=3)


def forward_arguments(model: Any) -> frozenset[str]:
    """The names that the forward of a model or a layer takes; decorators that pass everything on are looked through."""
    return frozenset(inspect.signature(model.forward).parameters)


def cache_argument(model: Any) -> str | None:
    """What this model's forward calls the cache; None if it takes none, or one under a name that is not known."""
    taken = forward_arguments(model)
    return next((name for name in CACHE_ARGUMENTS if name in taken), None)


def with_cache(model: Any, held: Cache) -> dict[str, Cache]:
    """The argument that hands a cache to this model's forward."""
    return {cache_argument(model) or CACHE_ARGUMENTS[0]: held}


def cache_among(named: Mapping[str, Any]) -> Any:
    """The cache among the arguments that a decoder layer was called with.

    Raises:
        KeyError: it is there under neither name.
    """
    name = next((name for name in CACHE_ARGUMENTS if name in named), CACHE_ARGUMENTS[0])
    return named[name]


def text_config(model: Any) -> Any:
    """The configuration of the decoder: a model that also sees or hears has it inside its own."""
    return model.config.get_text_config(decoder=True)


def _is_model(value: Any) -> bool:
    return isinstance(value, transformers.PreTrainedModel)


def wrapper_of(model: Any) -> str | None:
    """Why an object is not itself a transformers model, as the second half of a sentence; None if it is one."""
    if isinstance(model, str | os.PathLike):
        return "it is a name, no transformers model; load it: specstream.create_backend(name).model"
    if hasattr(model, "get_base_model"):
        return "it is PEFT's wrapper; give model.get_base_model(), which has the adapter in it"
    if hasattr(model, "_orig_mod"):
        return "it is compiled; give the model itself, model._orig_mod"
    if hasattr(model, "get_adapted_model"):
        return "it has adapters for a model; give its get_adapted_model()"
    if not isinstance(model, transformers.PreTrainedModel) and _is_model(getattr(model, "model", None)):
        return "it holds a model; give that, its .model"
    if _is_model(getattr(model, "module", None)):
        return "it is a wrapper; give the model itself, model.module"
    if not hasattr(model, "config") or not hasattr(model, "get_input_embeddings"):
        return "it is no transformers model; give one, or the name of one"
    return None


def model_class(config: Any) -> Any:
    """What loads a model of this configuration: as a language model, else as one that also sees or hears."""
    several = getattr(transformers, "AutoModelForMultimodalLM", transformers.AutoModelForImageTextToText)
    known = type(config) in AutoModelForCausalLM._model_mapping
    return several if not known and type(config) in several._model_mapping else AutoModelForCausalLM


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside, transformers shows no bars of progress; its reader of GGUF files does not ask for its switch."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    gguf, switched = cast(Any, modeling_gguf_pytorch_utils), cast(Any, logging)
    own, shown = getattr(gguf, "tqdm", None), switched.is_progress_bar_enabled()
    switched.disable_progress_bar()
    if own is not None:  # a release may call its bar otherwise, and then shows it
        gguf.tqdm = switched.tqdm
    try:
        yield
    finally:
        if own is not None:
            gguf.tqdm = own
        if shown:
            switched.enable_progress_bar()


def is_text_model(config: Any) -> bool:
    """Whether transformers has a language model, and nothing beside it, for this configuration."""
    return type(config) in AutoModelForCausalLM._model_mapping and config.get_text_config(decoder=True) is config


def config_of(folder: str | os.PathLike[str]) -> Any:
    """The configuration of a folder, without its wish for an attention: that may be code, which would be fetched."""
    return _without_attention(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def config_of_gguf(path: Path) -> Any:
    """The configuration that transformers makes of a GGUF file's fields."""
    found = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    return _without_attention(found)


def scale_rotations(config: Any, parameters: Mapping[str, Any]) -> None:
    """Let a configuration scale its rotations; where layers differ in them (Gemma 3), those that see everything.

    Args:
        config: a decoder's.
        parameters: as in ``rope_parameters``: ``rope_type``, ``factor`` and what else that takes.
    """
    found = config.rope_parameters
    found.get("full_attention", found).update(parameters)
    if (before := parameters.get("original_max_position_embeddings")) is not None:
        config.original_max_position_embeddings = before
    config.validate_rope()


def rope_theta_of(config: Any) -> float:
    """The base of a configuration's rotations; the usual one where it has several, or none."""
    found = getattr(config, "rope_parameters", None) or {}  # since transformers 5
    return float(found.get("rope_theta") or getattr(config, "rope_theta", None) or 1e4)


def rotations_of(settings: Mapping[str, Any]) -> nn.Module:
    """The module of rotations that transformers has for a decoder layer of the Llama kind with this configuration.

    It takes ``(like, positions [1, n])`` and returns cosines and sines ``[1, n, head_dim]``.
    """
    given = {name: value for name, value in settings.items() if name not in ("model_type", "torch_dtype", "dtype")}
    config: Any = AutoConfig.for_model(settings.get("model_type", "llama"), **given)
    return LlamaRotaryEmbedding(config)


def model_without_weights(config: Any, dtype: torch.dtype) -> Any:
    """A model of a configuration whose parameters are on no device, while its buffers, such as rotations, are there."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]  # it takes a second

    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]


def quantization_methods() -> list[str]:
    """The values of ``quant_method`` that transformers loads."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    # bitsandbytes has two entries there, which files do not name.
    return sorted({re.sub("_[48]bit$", "", name) for name in AUTO_QUANTIZATION_CONFIG_MAPPING})


def dequantised(method: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` with which a quantised checkpoint becomes numbers, where that is the better way.

    compressed-tensors would make numbers in the first forward, after others have looked at the layers.
    """
    if method != "compressed-tensors":
        return {}
    kind = transformers.CompressedTensorsConfig
    known = "dequantize" in inspect.signature(kind).parameters  # since transformers 5.22
    return {"quantization_config": kind(dequantize=True) if known else kind(run_compressed=False)}


def quantised_by(model: Any) -> str | None:
    """The method of a model whose layers are transformers' own quantised ones; None for any other."""
    method = getattr(model, "quantization_method", None) if getattr(model, "is_quantized", False) else None
    return None if method is None else str(getattr(method, "value", method))


def _without_attention(config: Any) -> Any:
    config._attn_implementation = "eager" if config._attn_implementation == "eager" else None  # in all its parts
    return config


def keeps_recurrent_state(model: Any) -> bool:
    """Whether the model keeps a recurrent state instead of, or beside, a key-value cache."""
    return bool(getattr(model, "_is_stateful", False))


def state_cache(model: Any) -> Cache:
    """An empty cache of the kind that a model with recurrent layers makes for itself; of one row."""
    return transformers.DynamicCache(config=text_config(model))


class KeptState:
    """The layers of a cache as they were, to go back to when drafted tokens turn out wrong.

    Recurrent layers change their state in place, so it is copied. Attention makes new keys and values in every pass, so
    those are held as they are.

    Args:
        cache: from ``state_cache``.
        without_parts: leave out what ``token_parts`` gives.
    """

    def __init__(self, cache: Cache, *, without_parts: bool = False) -> None:
        self._layers = _copies(cache.layers, token_parts(cache) if without_parts else ())

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(tensor.nbytes for tensor in _tensors([vars(layer) for layer in self._layers]))

    def restore(self, cache: Cache, parts: Mapping[Any, Tensor] | None = None) -> None:
        """Let the cache be what it was; more than once if need be. ``parts`` are those that were left out."""
        cache.layers = _copies(self._layers)
        for (at, name), part in (parts or {}).items():
            setattr(cache.layers[at], name, part[None])


def token_parts(cache: Cache, start: int = 0, end: int | None = None) -> dict[Any, Tensor]:
    """Keys and values of tokens in layers that have those of all tokens, ``[heads, tokens, head_dim]`` each.

    Args:
        cache: from ``state_cache``, of one row.
        start: the first token.
        end: the one behind the last; None for all.
    """
    return {
        (at, name): getattr(layer, name)[0, :, start:end]
        for at, layer in enumerate(cache.layers)
        if type(layer).__name__ in ("DynamicLayer", "LinearAttentionAndFullAttentionLayer")
        for name in ("keys", "values")
        if getattr(layer, name, None) is not None
    }


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for each in held.values() if isinstance(held, dict) else held:
            yield from _tensors(each)


_CHUNKED, _BY_STEPS = "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"

FEW = 12
"""Tokens up to which the gated delta rule is faster step by step than in a chunk of 64, on a processor."""


def state_forwards(model: Any) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Faster forwards for the layers of a model on a processor that keep a state; only their helpers are exchanged.

    The gated delta rule of a few tokens is computed step by step: a chunk is padded to 64 tokens. And torch convolves
    channel by channel in half precision, which takes seconds: that is done in float32, and rounded.
    """
    if model.device.type != "cpu":
        return
    for module in model.modules():
        # What is around it renames arguments, and calls hooks of accelerate, which are none here.
        forward = inspect.unwrap(getattr(type(module), "forward", module.forward))
        if not isinstance(forward, FunctionType) or "forward" in module.__dict__ or hasattr(module, "_hf_hook"):
            continue
        if helpers := _faster_helpers(forward, half=model.dtype.itemsize < 4):
            own = {**forward.__globals__, **helpers}
            changed = FunctionType(forward.__code__, own, forward.__name__, forward.__defaults__, forward.__closure__)
            changed.__kwdefaults__ = forward.__kwdefaults__
            yield module, MethodType(changed, module)


def _faster_helpers(forward: FunctionType, *, half: bool) -> dict[str, Callable[..., Any]]:
    """What a forward calls of them, by name: transformers' own code, without what looks for kernels of a GPU."""
    own = forward.__globals__
    called = {name: inspect.unwrap(own[name]) for name in forward.__code__.co_names if callable(own.get(name))}
    found: dict[str, Callable[..., Any]] = {}
    if _CHUNKED in called and _BY_STEPS in called:
        found[_CHUNKED] = partial(_delta_rule, called[_CHUNKED], called[_BY_STEPS])
    for name, wide in _CONVOLUTIONS.items():
        if name in called:
            found[name] = partial(wide, called[name]) if half else called[name]
    return found


def _delta_rule(
    chunked: Callable[..., Any], by_steps: Callable[..., Any], query: Tensor, *rest: Any, **more: Any
) -> Any:
    return (by_steps if query.shape[1] <= FEW else chunked)(query, *rest, **more)


def _in_float32(convolve: Callable[..., Tensor], hidden: Tensor, *rest: Any, **more: Any) -> Tensor:
    named = {name: _wide(each) for name, each in more.items()}
    return convolve(hidden.float(), *map(_wide, rest), **named).to(hidden.dtype)


def _step_in_float32(convolve: Callable[..., Tensor], hidden: Tensor, state: Tensor, *rest: Any, **more: Any) -> Tensor:
    """The same of one token, which leaves what the next one needs in ``state``."""
    wide = state.float()
    result = _in_float32(convolve, hidden, wide, *rest, **more)
    state.copy_(wide)
    return result


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


_CONVOLUTIONS = {"causal_conv1d_fn": _in_float32, "causal_conv1d_update": _step_in_float32}


def _copies(layers: Sequence[Any], left_out: Container[tuple[int, str]] = ()) -> list[Any]:
    """With the very keys and values of the layers, or with none of those left out: by layer and name."""
    held = dict[int, Tensor]()
    for at, layer in enumerate(layers):
        for name in ("keys", "values"):
            if (each := getattr(layer, name, None)) is not None:
                held[id(each)] = each[:, :, :0].clone() if (at, name) in left_out else each
    return copy.deepcopy(list(layers), held)


def attention_of(model: Any) -> str | None:
    """The name of the attention that the model runs: ``sdpa``, ``eager``, ..."""
    name: str | None = model.config._attn_implementation
    return name


def exchanges_attention(model: Any) -> bool:
    """Whether the model's layers take their attention from transformers' registry, so that another can be put in."""
    return bool(getattr(model, "_supports_attention_backend", False))


def register_attention(name: str, attend: Callable[..., Any]) -> None:
    """Add an attention to transformers' registry."""
    AttentionInterface.register(name, attend)


def attention_layers(model: Any) -> list[Any]:
    """The modules that read the name of their attention from a configuration."""
    return [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "config")]


def attention_configs(model: Any) -> dict[int, Any]:
    """The configurations that the model's layers read the name of their attention from; empty if that is not known."""
    configs = {id(layer.config): layer.config for layer in attention_layers(model)}
    if all(hasattr(config, "_attn_implementation_internal") for config in configs.values()):
        return configs
    problem = "this transformers keeps the name of the attention elsewhere, so that its own attention runs"
    warn_once(problem + advice_if_untested())
    return {}


@contextmanager
def attending(configs: Mapping[int, Any], name: str) -> Iterator[None]:
    """Inside, layers with these configurations run the attention of this name; what ran before is back afterwards."""
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, own in before:
            config._attn_implementation_internal = own


def attention_function(model: Any) -> Any:
    """What transformers' registry runs as the model's attention; None where a modelling file has its own."""
    return ALL_ATTENTION_FUNCTIONS.get(attention_of(model))


def global_hooks() -> list[Any]:
    """What watches the forward of every module there is."""
    hooks = (torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)
    return [hook for each in hooks for hook in each.values()]


def hooks_of(module: Any) -> list[Any]:
    """What watches or changes the module's forward, so that it has to run.

    A model that was once asked for hidden states or attentions keeps transformers' own hooks, which do nothing until
    it is asked again: they do not count.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith("transformers.")]


def keeps_length(module: Any) -> bool:
    """Whether the module computes rotations that depend on the length of the text, and keeps those it saw last."""
    kinds = getattr(module, "rope_type", None) or ()
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(kind == "longrope" or "dynamic" in kind for kind in kinds if isinstance(kind, str))


def rotary_limit(module: Any, layer_type: str | None = None) -> tuple[int | None, bool]:
    """Up to which length a text gets a rotary module's unchanged rotations, and whether every longer one has its own.

    Args:
        module: one that ``keeps_length``.
        layer_type: of which it is asked, where it serves several kinds of layers.
    """
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    if "dynamic" in kind:
        return int(module.original_max_seq_len), True
    if kind != "longrope":
        return None, False
    found = module.config.rope_parameters
    return int((found if layer_type is None else found[layer_type])["original_max_position_embeddings"]), False


def long_after(model: Any) -> int | None:
    """The length of a text behind which the model rotates with its second set of factors; None if it has one set."""
    limits = list[int]()
    for module in filter(keeps_length, model.modules()):
        kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
        limits += [rotary_limit(module, layers)[0] or 0 for layers, kind in kinds.items() if kind == "longrope"]
    return min(limits, default=None)


def rereads_long_texts(model: Any) -> bool:
    """Whether the model's ``generate`` reads a text anew when it goes over to the second set of factors.

    Others keep what they have read with the first.
    """
    return text_config(model).model_type in ("phi3", "phimoe", "phi4_multimodal")


def own_buffers(module: Any) -> dict[str, Any]:
    """The module's buffers for a module that stands in for it; copies of those that its forward changes in place."""
    changed = keeps_length(module)
    return {
        name: buffer.clone() if changed and buffer is not None else buffer for name, buffer in module._buffers.items()
    }


def alibi_of(model: Any) -> Any:
    """The module whose ``build_alibi_tensor(mask, heads, dtype)`` gives the position bias; None for other families."""
    return next((module for module in model.modules() if hasattr(module, "build_alibi_tensor")), None)


def is_fresh(cache: Any) -> bool:
    """Whether a cache that ``generate`` hands on is its own and empty; older releases mark no caller's."""
    return not getattr(cache, "_is_user_defined", False) and isinstance(cache, Cache) and not cache.get_seq_length()


def processor_of_row(processor: Any, row: int, rows: int) -> Any:
    """What a logits processor of ``generate`` is for one row of a batch, with state and with arguments of that row.

    Arguments may be one for each prompt, and several rows in succession answer the same prompt.

    Raises:
        UsageError: it may tell rows apart in ways that are not known here.
    """
    kind = type(processor)
    if not kind.__module__.startswith("transformers.") or hasattr(processor, "unconditional_context"):
        raise UsageError(
            f"the logits processor {kind.__name__} is made for whole batches, and rows advance at their own pace; "
            "give one row a call"
        )
    own = copy.copy(processor)  # some keep what they saw
    for name in ("prompt_ignore_length", "encoder_input_ids"):
        if isinstance(of_all := getattr(own, name, None), torch.Tensor):
            at = row * len(of_all) // rows
            setattr(own, name, of_all[at : at + 1])
    if hasattr(own, "generated_ngrams"):
        own.generated_ngrams, own.batch_size = [own.generated_ngrams[row * own.batch_size // rows]], 1
    if isinstance(own, PrefixConstrainedLogitsProcessor):
        allowed = own._prefix_allowed_tokens_fn
        own._prefix_allowed_tokens_fn = lambda _, ids: allowed(row, ids)
    return own
