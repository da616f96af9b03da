"""LoRA adapters in PEFT's format (Hu et al., arXiv 2106.09685): checked, and merged into a base model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from specstream.environment import require
from specstream.errors import UsageError, one_line, shown
from specstream.models.architecture.blocks import called, unquantised
from specstream.models.hub.catalog import on_disk
from specstream.models.hub.gguf_header import is_gguf
from specstream.models.hub.load import config_in

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def peft_for(what: str) -> Any:
    """PEFT.

    Args:
        what: needs it.

    Raises:
        MissingPackageError: it is not installed.
    """
    return require("peft", "train", what)


def with_adapters(model: Any, config: Any) -> Any:
    """A model that PEFT wraps, without transformers' warning of an attribute that PEFT reads, which no caller can mend.

    Args:
        model: a transformers model, whose layers are replaced.
        config: of PEFT.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return peft_for("a LoRA adapter").get_peft_model(model, config)


def check_adapter(name: str, path: str, base: str) -> None:
    """Refuse what is no adapter, before a model is loaded for it.

    Args:
        name: that it is served by.
        path: its folder.
        base: the model that it is for, as an argument.

    Raises:
        UsageError: so it is, or the model is quantised.
        ModelNotFoundError: nothing answers to the model's name.
        MissingPackageError: there is no PEFT.
    """
    peft_for("a LoRA adapter")
    folder, said = Path(path).expanduser(), _said(name, path)
    try:
        kind = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        why = getattr(error, "strerror", None) or "it is no JSON object"
        wanted = repr(str(folder / "best")) if (folder / "best" / _CONFIG).is_file() else "the folder of an adapter"
        raise UsageError(f"{said}, whose {_CONFIG} cannot be read ({why}); give {wanted}") from None
    if kind != "LORA":
        raise UsageError(f"{said}, an adapter of the kind {shown(kind)}; give one of the kind LORA")
    if not (folder / _WEIGHTS).is_file():
        raise UsageError(f"{said}, which has no {_WEIGHTS}; save it as safetensors")
    found = on_disk(base)
    if found is not None and is_gguf(str(found)):
        raise _quantised(said, "gguf")
    if found is not None and (settings := getattr(config_in(str(found), base), "quantization_config", None)):
        raise _quantised(said, str(settings["quant_method"]))


def _said(name: str, path: str) -> str:
    return f"lora_modules is {f'{name}={path}'!r}"


def _quantised(said: str, source: str) -> UsageError:
    return UsageError(
        f"{said}, and the model is {called(source)}, whose weights take no adapter; give {unquantised(source)}, "
        "and quantization where that is wanted"
    )


def merge_adapter(model: Any, name: str, path: str) -> Any:
    """The model with an adapter merged into its weights, in their dtype: what PEFT's ``merge_and_unload`` makes.

    Args:
        model: a transformers model, which becomes the merged one.
        name: of the adapter, for errors.
        path: its folder.

    Raises:
        UsageError: the adapter belongs to another model.
    """
    peft = peft_for("a LoRA adapter")
    from safetensors import safe_open

    folder = Path(path).expanduser()
    try:
        with safe_open(folder / _WEIGHTS, framework="pt") as file:
            stored = {key for key in file.keys() if "lora_" in key}  # noqa: SIM118  # it is no mapping
        wrapped = with_adapters(model, peft.PeftConfig.from_pretrained(folder))
        wanted = {key for key in peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False) if "lora_" in key}
        if stored != wanted:
            raise ValueError(f"{min(stored ^ wanted)} is in one of both only")
        wrapped.load_adapter(folder, "default")
    except Exception as error:  # of PEFT, torch or safetensors: the folder's fault each time
        raise UsageError(
            f"{_said(name, path)}, which does not fit the model {shown(model.config.name_or_path)} "
            f"({one_line(error)[:200]}); give an adapter that was trained for it"
        ) from error
    return wrapped.merge_and_unload().eval()
