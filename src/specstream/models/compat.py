"""All that depends on what a release of transformers calls things.

The rest of the package asks here for the name of an argument, for a private attribute, or for a class that has moved.
A release that renames one of them is met in this file, and ``make matrix`` runs the contract suite with the lowest,
the locked and the newest release.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from specstream import environment
from specstream.errors import UsageError

__all__ = ["Cache", "Conv1D", "PreTrainedConfig"]

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What a forward calls the key-value cache: the first since transformers 5.24, the second before and in remote code."""


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


@cache
def warn_once(problem: str) -> None:
    """Say, once a process, that something is not known and what is done without it; of an untested release, which."""
    warnings.warn(problem if is_tested() else f"{problem}; {advice()}", stacklevel=3)


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


def keeps_recurrent_state(model: Any) -> bool:
    """Whether the model keeps a recurrent state instead of, or beside, a key-value cache."""
    return bool(getattr(model, "_is_stateful", False))


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
    warn_once("this transformers keeps the name of the attention elsewhere, so that its own attention runs")
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


def rotary_limit(module: Any, layer_type: str | None = None) -> tuple[int, bool]:
    """Up to which length a text gets a rotary module's unchanged rotations, and whether every length has its own.

    Args:
        module: one that ``keeps_length``.
        layer_type: of which it is asked, where it serves several kinds of layers.
    """
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    if "dynamic" in kind:
        return int(module.original_max_seq_len), True
    if kind != "longrope":
        return sys.maxsize, False
    found = module.config.rope_parameters
    return int((found if layer_type is None else found[layer_type])["original_max_position_embeddings"]), False


def long_after(model: Any) -> int | None:
    """The length of a text behind which the model rotates with its second set of factors; None if it has one set."""
    limits = [rotary_limit(module) for module in model.modules() if getattr(module, "rope_type", None) == "longrope"]
    return min((limit for limit, _ in limits), default=None)


def rereads_long_texts(model: Any) -> bool:
    """Whether the model's ``generate`` reads a text anew when it goes over to the second set of factors.

    Others keep what they have read with the first.
    """
    return model.config.get_text_config(decoder=True).model_type in ("phi3", "phimoe", "phi4_multimodal")


def own_buffers(module: Any) -> dict[str, Any]:
    """The module's buffers for a module that stands in for it; copies of those that its forward changes in place."""
    changed = keeps_length(module)
    return {
        name: buffer.clone() if changed and buffer is not None else buffer for name, buffer in module._buffers.items()
    }


def alibi_of(model: Any) -> Any:
    """The module whose ``build_alibi_tensor(mask, heads, dtype)`` gives the position bias; None for other families."""
    return next((module for module in model.modules() if hasattr(module, "build_alibi_tensor")), None)
