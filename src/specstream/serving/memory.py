"""How much memory a deployment takes, by its models' configurations: nothing is loaded for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from specstream.engine.choices import SELF
from specstream.environment import free_bytes
from specstream.errors import SpecStreamError, UsageError
from specstream.models.architecture.compat import model_class
from specstream.models.cache import STEP, capacity_for, token_bytes
from specstream.models.hub.catalog import resolve
from specstream.models.hub.gguf import read_config
from specstream.models.hub.gguf_header import is_gguf, read_header
from specstream.models.hub.load import pick_device, pick_dtype
from specstream.models.hub.schemes import Scheme, read_scheme
from specstream.models.runtime.capabilities import capabilities
from specstream.serving.deployment import DeploymentConfig

GB = 1e9

_BYTES: dict[str, float] = {"none": 0, "int8": 1, "int4": 0.6}
"""Bytes of a weight in a quantised copy, a larger head among them."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model as it is going to be loaded.

    Attributes:
        parameters: weights.
        weights: bytes of those.
        token: bytes of a token's keys and values.
        context: tokens that it holds; None for no limit.
        dtype: its name.
    """

    parameters: int
    weights: int
    token: int
    context: int | None
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a deployment takes at most, in bytes.

    Attributes:
        weights: of the model and of its draft.
        draft: those of its draft alone, which its adapters share.
        cache: of keys and values, when every row is as long as it may become and the prefix cache is full.
        dtype: of the model.
        rows: answers side by side.
        context: tokens of each.
    """

    weights: float
    draft: float
    cache: float
    dtype: str
    rows: int
    context: int


def check_fit(config: DeploymentConfig, shards: int = 1) -> None:
    """Refuse models that take more than ``memory_gb``, before they are loaded; several, also what is not free.

    Args:
        config: what is asked for.
        shards: see ``needs``.

    Raises:
        UsageError: they do; with the numbers. A dtype or a device that there is not.
        ModelNotFoundError: nothing answers to a model's name.
        DownloadError: it could not be fetched.
    """
    if config.models or config.lora_modules:
        _check_several(config)
        return
    if config.memory_gb is None:
        return
    try:
        needed = needs(config, shards)
    except SpecStreamError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, ImportError):
        return  # to load it will say what is wrong with it
    if needed.weights + needed.cache <= config.memory_gb * GB:
        return
    cache = remedy = ""
    if needed.cache:
        cache = (
            f" and the cache {needed.cache / GB:.1f} GB ({needed.rows} rows of {needed.context} tokens, and "
            f"{config.prefix_cache_gb:g} GB of earlier ones)"
        )
        remedy = ", fewer max_rows, a shorter max_context, a smaller prefix_cache_gb"
    raise UsageError(
        f"memory_gb is {config.memory_gb:g}, the weights of {config.source} in {needed.dtype} take "
        f"{needed.weights / GB:.1f} GB{cache}; give more{remedy}, or a smaller model"
    )


def _check_several(config: DeploymentConfig) -> None:
    """Refuse models that do not fit beside each other, and say which of them to leave out.

    Raises:
        UsageError: so it is. The others are those of ``needs``.
    """
    free, where = free_bytes(config.device)
    most, there = free, f"{where} has {free / GB:.1f} GB free"
    if config.memory_gb is not None:
        most, there = int(config.memory_gb * GB), f"memory_gb is {config.memory_gb:g}"
    takes, fitting, left_out = dict[str, float](), 0.0, list[str]()
    for each in config.targets:
        try:
            needed = needs(each)
        except SpecStreamError:
            raise
        except (OSError, ValueError, KeyError, AttributeError, ImportError):
            continue  # to load it will say what is wrong with it
        whole = needed.weights + needed.cache
        for name, size in {each.model_name: whole, **dict.fromkeys(each.lora_modules, whole - needed.draft)}.items():
            takes[name] = size
            if fitting + size > most or each.model_name in left_out:  # no adapter without its base
                left_out.append(name)
            else:
                fitting += size
    if not left_out:
        return
    sizes = ", ".join(f"{name} {size / GB:.1f}" for name, size in takes.items())
    remedy = f"leave out {' and '.join(left_out)}, or give " if len(left_out) < len(takes) else "give "
    raise UsageError(
        f"{there} and {len(takes)} models take {sum(takes.values()) / GB:.1f} GB (weights and caches: {sizes}); "
        f"{remedy}fewer max_rows, a shorter max_context, a smaller prefix_cache_gb"
    )


def needs(config: DeploymentConfig, shards: int = 1) -> Needs:
    """What this deployment takes. A model that is not on this machine is fetched, as it will be to load it.

    Args:
        config: what is asked for.
        shards: into how many parts vLLM splits the weights; the answer is for one, without the cache, which vLLM makes
            of what is left.

    Raises:
        ModelNotFoundError: nothing answers to a model's name.
        DownloadError: it could not be fetched.
        OSError, ValueError, KeyError: a model that cannot be read.
    """
    target = size_of(config.source, config)
    if config.engine == "vllm":
        return Needs(weights=target.weights / shards, draft=0, cache=0, dtype=target.dtype, rows=0, context=0)
    name = config.draft_model or ""
    own_weights = target.weights + target.parameters * _BYTES[config.quantization]  # both, until one is released
    if name.startswith(SELF) and name.removeprefix(SELF) in _BYTES:
        draft_weights, draft_token = target.parameters * _BYTES[name.removeprefix(SELF)], target.token
    elif name:
        draft = size_of(name, config)
        draft_weights, draft_token = draft.weights, draft.token
    else:
        draft_weights = draft_token = 0
    context = min((limit for limit in (config.max_context, target.context) if limit is not None), default=STEP)
    return Needs(
        weights=own_weights + draft_weights,
        draft=draft_weights,
        cache=config.max_rows * capacity_for(context) * (target.token + draft_token) + config.prefix_cache_gb * GB,
        dtype=target.dtype,
        rows=config.max_rows,
        context=context,
    )


def _stays_quantised(settings: Mapping[str, Any] | None, name: str) -> bool:
    """Whether weights take the bits that they are stored in: compressed-tensors makes numbers of what we do not run."""
    if not settings:
        return False
    return settings.get("quant_method") != "compressed-tensors" or isinstance(read_scheme(settings, name), Scheme)


def size_of(model: str, config: DeploymentConfig) -> Size:
    """One model's, without its weights: they are made on no device.

    Raises:
        ModelNotFoundError: nothing answers to the name.
        DownloadError: it could not be fetched.
        OSError, ValueError, KeyError: it cannot be read.
    """
    folder = Path(resolve(model))
    in_blocks = is_gguf(folder)
    own = read_config(folder) if in_blocks else AutoConfig.from_pretrained(folder, trust_remote_code=False)
    stored = torch.bfloat16 if in_blocks else own.dtype or torch.float32
    dtype = pick_dtype(config.dtype) or capabilities(pick_device(config.device), stored).dtype.value
    with torch.device("meta"):
        empty = model_class(own).from_config(own, dtype=dtype)
    parameters = sum(each.numel() for each in empty.parameters())
    weights = parameters * dtype.itemsize
    if _stays_quantised(getattr(own, "quantization_config", None), model):
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if in_blocks:
        weights = sum(part.stat().st_size for part in read_header(folder).paths)
    text = own.get_text_config(decoder=True)
    return Size(
        parameters=parameters,
        weights=weights,
        token=token_bytes(own, dtype),
        context=getattr(text, "max_position_embeddings", None),
        dtype=str(dtype).removeprefix("torch."),
    )
