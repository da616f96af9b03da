"""From a model argument to a model and its tokenizer on a device, in a dtype that the device can compute."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import AutoTokenizer

from specstream.errors import (
    ModelNotFoundError,
    SpecStreamError,
    UnsupportedModelError,
    UsageError,
    one_line,
    suggested,
)
from specstream.models.architecture.compat import config_of, dequantised, model_class, require_supported
from specstream.models.architecture.families import require_model
from specstream.models.hub.catalog import entry_of, resolve
from specstream.models.hub.damage import DAMAGED, damage
from specstream.models.hub.gguf import load_gguf, read_config, read_tokenizer
from specstream.models.hub.gguf_header import is_gguf
from specstream.models.hub.quantized import Elsewhere, load_quantized
from specstream.models.hub.schemes import Scheme, read_scheme
from specstream.models.runtime.capabilities import capabilities
from specstream.reporting import announce, step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str) -> torch.device:
    """``auto`` is the GPU if there is one.

    Raises:
        UsageError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device is {device!r}, which is not available here; give auto or cpu") from error
    if picked.type == "cpu" and picked.index:
        raise UsageError(f"device is {device!r}, and there is one CPU; give cpu")
    return picked


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """A torch dtype from its name; None for ``auto``.

    Raises:
        UsageError: another name.
    """
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else ""
    if name == "auto":
        return None
    if name not in DTYPES:
        quantised = f", or an engine's quantization={name!r}" if name in ("int8", "int4") else ""
        raise UsageError(f"dtype is {dtype!r}; give auto, {', '.join(DTYPES)}{quantised}{suggested(name, DTYPES)}")
    return DTYPES[name]


def check_place(model: Any, device: str, dtype: Any) -> None:
    """Refuse a device or a dtype that a model object is not of: it is its owner's, who moves and casts it.

    Args:
        model: a transformers model.
        device: that is wanted; ``auto`` is the model's own.
        dtype: likewise.

    Raises:
        UsageError: the model is elsewhere or of another dtype, or there is no such device or dtype.
    """
    place, wanted = pick_device(device), pick_dtype(dtype)
    own = model.device
    if device != "auto" and (place.type != own.type or place.index not in (None, own.index)):
        raise UsageError(f"device is {device!r} and the model is on {own}; move it: model.to({device!r})")
    if wanted not in (None, model.dtype):
        raise UsageError(f"dtype is {wanted} and the model is {model.dtype}; cast it: model.to({wanted})")


def check_draft_place(draft: Any, target: Any, dtype: Any) -> None:
    """Refuse a draft that is an object and cannot be asked beside its target.

    Its own dtype need not be the target's: what it says only has to be likely, and what is emitted is the target's.

    Args:
        draft: a transformers model.
        target: likewise.
        dtype: that is wanted of the models; ``auto`` is the draft's own.

    Raises:
        UnsupportedModelError: it is no transformers model.
        UsageError: it is on another device, or of another dtype than is asked for.
    """
    require_model(draft)
    wanted = pick_dtype(dtype)
    if draft.device != target.device and draft.device.type != "meta":  # of which nothing can be moved
        raise UsageError(
            f"the draft is on {draft.device} and the target on {target.device}; move it: draft.to('{target.device}')"
        )
    if wanted not in (None, draft.dtype):
        raise UsageError(f"dtype is {wanted} and the draft is {draft.dtype}; cast it: draft.to({wanted})")


def load_model(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    check: Callable[[Any], None] = lambda tokenizer: None,
) -> tuple[Any, Any]:
    """The model and the tokenizer of a catalog name, a local folder, a GGUF file or a hub id.

    Args:
        name: the model argument.
        dtype: ``auto`` is the checkpoint's own, but float32 on a CPU that would emulate it.
        device: where the model goes.
        check: is shown the tokenizer before the weights are read, and may refuse it.

    Raises:
        ModelNotFoundError: nothing answers to the name, or the folder cannot be read.
        UnsupportedModelError: it is not a causal language model.
        UsageError: an unknown dtype or device.
    """
    require_supported()
    place, wanted = pick_device(device), pick_dtype(dtype)
    folder = resolve(name)
    with step(f"loading {name}"):
        model, tokenizer = _load(name, folder, wanted, place, check)
        model.to(place)
    model.eval()
    return model, tokenizer


def _load(
    name: str, folder: str, wanted: torch.dtype | None, place: torch.device, check: Callable[[Any], None]
) -> tuple[Any, Any]:
    if is_gguf(folder):
        return _load_gguf(name, Path(folder), wanted, place, check)
    config = config_in(folder, name)
    try:
        own, settings = config.dtype or torch.float32, getattr(config, "quantization_config", None) or {}
        chosen = wanted or capabilities(place, own).dtype.value
        scheme = read_scheme(settings, name) if settings else None
        tokenizer = tokenizer_in(folder)
        check(tokenizer)
        if scheme is not None and (model := _quantized(name, folder, config, scheme, chosen, place)) is not None:
            return model, tokenizer
        model, told = model_class(config).from_pretrained(
            folder,
            config=config,
            dtype=chosen,
            trust_remote_code=False,
            output_loading_info=True,
            **dequantised(str(settings.get("quant_method"))),
        )
        if missing := sorted(told["missing_keys"]):
            saved = " or ".join(config.architectures or ["nothing known"])
            raise ModelNotFoundError(
                f"model {name!r}, saved as {saved}, lacks the weights of "
                f"{missing[0]!r} and {len(missing) - 1} more, which would be random; give a whole checkpoint of a "
                "causal language model, of adapters what save_merged writes"
            )
    except SpecStreamError:
        raise
    except Exception as error:  # of transformers, torch, safetensors or a missing package: the folder's fault each time
        raise ModelNotFoundError(f"model {name!r} cannot be loaded: {reason(error)}") from error
    return model, tokenizer


def _quantized(
    name: str, folder: str, config: Any, scheme: Scheme | str, dtype: torch.dtype, place: torch.device
) -> Any:
    """The model of a quantised checkpoint on our kernels; None, and the reason said, where transformers runs it."""
    try:
        if place.type != "cpu":
            raise Elsewhere(f"our kernels run on the CPU, not on {place}")
        if isinstance(scheme, str):
            raise Elsewhere(scheme)
        return load_quantized(Path(folder), config, scheme, dtype)
    except Elsewhere as reason:
        announce(f"{name} is left to transformers: {reason}")
        return None


def _load_gguf(
    name: str, file: Path, wanted: torch.dtype | None, place: torch.device, check: Callable[[Any], None]
) -> tuple[Any, Any]:
    chosen, in_blocks = wanted or capabilities(place, torch.bfloat16).dtype.value, place.type == "cpu"
    if not in_blocks:
        form = str(chosen).removeprefix("torch.")
        announce(f"{name} is a GGUF file, whose blocks run on the CPU only: on {place} its weights are {form}")
    entry = entry_of(name)
    try:
        return load_gguf(file, chosen, check, () if entry is None else entry.stop_tokens, in_blocks=in_blocks)
    except SpecStreamError:
        raise
    except Exception as error:  # of transformers or gguf: the file's fault each time
        raise ModelNotFoundError(f"model {name!r} cannot be loaded: {reason(error)}") from error


def tokenizer_in(folder: str) -> Any:
    """The tokenizer of the folder or the file that ``resolve`` gives; the errors are transformers' own."""
    if is_gguf(folder):
        return read_tokenizer(Path(folder))
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def config_in(folder: str, name: str) -> Any:
    """The configuration of a model, without its weights.

    Args:
        folder: that ``resolve`` gives.
        name: that it gave it for.

    Raises:
        ModelNotFoundError: it holds something else, or files that cannot be read.
        UnsupportedModelError: it is an encoder-decoder.
    """
    if is_gguf(folder):
        return read_config(Path(folder))
    check_holds_model(folder, name)
    try:
        if told := damage(Path(folder)):
            raise ModelNotFoundError(f"model {name!r} cannot be loaded: {told}")
        config = config_of(folder)
    except SpecStreamError:
        raise
    except Exception as error:  # of transformers: the folder's fault each time
        raise ModelNotFoundError(f"model {name!r} cannot be loaded: {reason(error)}") from error
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{name} cannot be a target: {config.model_type} is an encoder-decoder; "
            "SpecStream decodes with decoder-only models"
        )
    return config


def check_holds_model(folder: str, name: str) -> None:
    """Refuse a folder that holds something else of ours, such as heads.

    Args:
        folder: that ``resolve`` gives.
        name: that it gave it for.

    Raises:
        ModelNotFoundError: so it is.
    """
    if is_gguf(folder) or (kind := own_kind(folder)) is None:
        return
    base = _settings(folder).get("base") or _settings(folder).get("specstream", {}).get("base", {})
    what = "router" if kind == "router" else "heads"
    given = f"its base, {base['name']}, and {name!r} as {what}" if "name" in base else "the folder of a saved model"
    raise ModelNotFoundError(f"{name!r} holds {kind!r} and no model; give {given}")


def own_kind(folder: str | os.PathLike[str]) -> str | None:
    """What else this program wrote into a folder, such as streams or a router; None where it is not known to be."""
    settings = _settings(folder)
    kind = settings.get("kind", "medusa" if settings.get("model_type") == "medusa" else None)
    return kind if isinstance(kind, str) else None


def _settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the configuration in a folder says; nothing where it cannot be read."""
    try:
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


_REMEDIES = (
    (r"no file named .*(safetensors|pytorch_model)", "its weights are missing: copy or download model.safetensors"),
    (r"deserializing header|HeaderTooLarge|MetadataIncomplete|incomplete metadata", f"model.safetensors: {DAMAGED}"),
    (r"not a valid JSON file", f"config.json is no JSON: {DAMAGED}"),
    (
        r"backend tokenizer|vocab_file|load the tokenizer|tokenizer\.json",
        "its tokenizer is missing: copy tokenizer.json",
    ),
    (
        r"model type `.*?` but|Unrecognized model",
        "transformers has no such model_type: mend config.json",
    ),
)
"""What is to be done about a folder that transformers cannot load, by what it says."""


def reason(error: Exception) -> str:
    """Why a folder cannot be loaded, in one line and without advice that would run what is in it."""
    text = one_line(error) or type(error).__name__
    if isinstance(error, UnpicklingError):
        return "its weights are a pickle that holds more than tensors; give a folder with model.safetensors"
    if isinstance(error, json.JSONDecodeError):  # of the only file that ``damage`` leaves to transformers
        return f"tokenizer.json is no JSON ({text[:80]}): {DAMAGED}"
    if isinstance(error, EOFError):
        return f"its weights end too early: {DAMAGED}"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than config.json says: mend config.json, or copy both again"
    if "trust_remote_code" in text:
        return "it needs code of its own, which is not run; load it with transformers and give model and tokenizer"
    for words, remedy in _REMEDIES:
        if re.search(words, text):
            return f"{text[:120]}; {remedy}"
    return text[:300]
