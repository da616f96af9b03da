"""A model's linear layers in eight or four bits, written as a checkpoint that others load too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from specstream.errors import UnsupportedModelError, UsageError, must_be
from specstream.files.atomic import path_of, refuse_address
from specstream.models.architecture.compat import is_text_model
from specstream.models.hub.catalog import resolve
from specstream.models.hub.load import config_in, load_model
from specstream.models.hub.packed import compressed
from specstream.models.hub.schemes import refuse_quantised
from specstream.models.runtime.rounding import GROUP, rounded
from specstream.reporting import step
from specstream.training.checkpoints import check_replaceable, replace_folder

Bits = Literal["int8", "int4"]


def quantize(model: str, bits: Bits, output: str | Path) -> Path:
    """Write a model with its linear layers in fewer bits, as ``compressed-tensors`` stores them (pack-quantized).

    Groups of 32 weights have a scale in the model's dtype, those of four bits a zero point too. The embedding, the
    language-model head, and layers whose inputs are no multiple of 32 stay as they are. The numbers are those of
    ``rounding.rounded``.

    Args:
        model: a catalog name, a local folder or a hub id.
        bits: ``int8`` or ``int4``.
        output: a folder, which must not be there.

    Returns:
        The folder, which ``SpeculativeEngine`` takes as a model.

    Raises:
        UsageError: other bits, a model that is no name, an output that is there, or too little space on the disk.
        ModelNotFoundError: nothing answers to the name.
        UnsupportedModelError: a model that is quantised already, or without plain linear layers.
    """
    must_be(bits in ("int8", "int4"), "bits", bits, "int8 or int4")
    path_of("model", model, "a catalog name, a local folder or a hub id")
    folder = path_of("output", output, "a folder").absolute()
    refuse_address(output, "output")
    if folder.exists():
        raise UsageError(f"output is {str(output)!r}, which is there already; give a new folder")
    check_replaceable(Path(output), "config.json", "output")
    place = resolve(model)
    refuse_quantised(place, "model", model, "which is quantised already")
    config = config_in(place, model)
    if not is_text_model(config):
        raise UnsupportedModelError(
            f"model is {model!r}, a {config.model_type}, and only causal language models are quantised"
        )
    _require_space(folder, Path(place))
    loaded, tokenizer = load_model(model, dtype=config.dtype or torch.float32, device="cpu")
    layers = _layers(loaded)
    if not layers:
        raise UnsupportedModelError(
            f"model is {model!r}, a {config.model_type}, which has no plain linear layers; give another one"
        )

    def fill(partial: Path) -> None:
        loaded.config.quantization_config = _settings(loaded, layers, bits)
        loaded.config.save_pretrained(partial)
        loaded.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        save_torch_state_dict(_tensors(loaded, layers, bits), partial, metadata={"format": "pt"})
        # safetensors makes its files readable by the owner alone, which a shared models folder cannot use.
        for weights in partial.glob("*.safetensors"):
            shutil.copymode(partial / "config.json", weights)

    replace_folder(folder, fill)
    return folder


def _require_space(folder: Path, place: Path) -> None:
    """The weights in 16 bits are more than they take here."""
    free, needed = (
        shutil.disk_usage(folder.parent).free,
        sum(each.stat().st_size for each in place.glob("*.safetensors")),
    )
    if free < needed:
        raise UsageError(
            f"output is {str(folder)!r}, where {free / 1e9:.1f} GB are free and up to {needed / 1e9:.1f} GB needed; "
            "give a folder on another disk"
        )


def _layers(model: Any) -> dict[str, nn.Linear]:
    """The layers to quantise by their names."""
    head = model.get_output_embeddings()
    return {
        name: each
        for name, each in model.named_modules()
        if type(each) is nn.Linear and each is not head and each.in_features % GROUP == 0
    }


def _tensors(model: Any, layers: dict[str, nn.Linear], bits: Bits) -> dict[str, Tensor]:
    """All that the file holds; a layer's own numbers are given back once it is quantised."""
    found, done = dict[str, Tensor](), list[str]()
    with step(lambda: f"quantising, {len(done)} of {len(layers)} layers"):
        for name, layer in layers.items():
            dtype = layer.weight.dtype
            parts = compressed(rounded(layer.weight, bits, dtype=dtype), dtype)
            found |= {f"{name}.{part}": each for part, each in parts.items()}
            layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
            done.append(name)
    return found | dict(_rest(model, layers))


def _rest(model: Any, layers: dict[str, nn.Linear]) -> Iterator[tuple[str, Tensor]]:
    """What stays as it is; of two names of one matrix the first."""
    seen, gone = set[int](), {f"{name}.weight" for name in layers}
    for name, each in model.state_dict(keep_vars=True).items():
        if name not in gone and id(each) not in seen:
            seen.add(id(each))
            yield name, each.detach()


def _settings(model: Any, layers: dict[str, nn.Linear], bits: Bits) -> dict[str, Any]:
    """The ``quantization_config``."""
    weights = {
        "num_bits": 8 if bits == "int8" else 4,
        "type": "int",
        "symmetric": bits == "int8",
        "strategy": "group",
        "group_size": GROUP,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    kept = [name for name, each in model.named_modules() if type(each) is nn.Linear and name not in layers]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": kept,
    }
