"""Our files to compressed-tensors' own code, and its files to ours: every weight has the same value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from specstream.models.architecture.blocks import BlockTensor
from specstream.models.architecture.compat import dequantised
from specstream.models.hub.load import load_model
from specstream.models.runtime.rounding import rounded
from specstream.training.quantize import quantize
from tests.quantized_files import Way, write_quantized
from tests.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("compressed_tensors", minversion="0.20", reason="compressed-tensors is not installed")
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SCHEMES = {
    "int4": {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32},
    "int4-64": {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 64},
    "int4-channel": {"num_bits": 4, "symmetric": False, "strategy": "channel"},
    "int8": {"num_bits": 8, "symmetric": True, "strategy": "group", "group_size": 32},
    "int8-channel": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
}
FORMATS = [(name, "pack-quantized") for name in SCHEMES] + [
    (name, form) for name in ("int8", "int8-channel") for form in ("int-quantized", "naive-quantized")
]


def model_of(dtype: torch.dtype) -> Any:
    return tiny_model(seed=4, hidden_size=64, intermediate_size=128).to(dtype)


def parts_of(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{layer}."): each for name, each in tensors.items() if name.startswith(f"{layer}.")}


def layers_of(model: Any) -> list[str]:
    return [name for name, each in model.named_modules() if isinstance(getattr(each, "weight", None), BlockTensor)]


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_what_we_write_has_our_weights_to_others(bits: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    own, made = model_of(dtype), tmp_path / "made"
    own.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    quantize(str(tmp_path / "model"), bits, made)
    settings = QuantizationConfig.model_validate(json.loads((made / "config.json").read_text())["quantization_config"])
    read, tensors = BaseCompressor.get_value_from_registry(settings.format), load_file(made / "model.safetensors")
    ours = load_model(str(made), dtype="float32")[0]
    loaded = AutoModelForCausalLM.from_pretrained(made, dtype=dtype, **dequantised("compressed-tensors"))
    assert len(layers_of(ours)) == 14
    for layer in layers_of(ours):
        found = rounded(own.get_submodule(layer).weight, bits, dtype=dtype)
        weights = read.decompress(parts_of(tensors, layer), settings.config_groups["group_0"])["weight"]
        assert weights.dtype == dtype
        assert torch.equal(weights, found.weights().to(dtype))
        assert torch.equal(loaded.get_submodule(layer).weight, weights)
        off = (ours.get_submodule(layer).weight.dequantized() - found.weights()).abs()
        assert torch.all(off.view(*found.scales.shape, -1).amax(-1) <= (0 if bits == "int8" else found.scales / 136))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "form"), FORMATS)
def test_what_others_write_has_their_weights_to_us(name: str, form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**SCHEMES[name]), format=form)
    own, write = model_of(torch.float32), BaseCompressor.get_value_from_registry(form)
    expected = dict[str, Tensor]()

    def exchange(tensors: dict[str, Tensor]) -> None:
        for layer in {each.rpartition(".")[0] for each in tensors if each.endswith(".weight_scale")}:
            for part in parts_of(tensors, layer):
                del tensors[f"{layer}.{part}"]
            parts = write.compress(plain(own.get_submodule(layer).weight.detach().to(dtype), scheme.weights), scheme)
            tensors.update({f"{layer}.{part}": each for part, each in parts.items()})
            exact = {part: each.float() if part == "weight_scale" else each for part, each in parts.items()}
            expected[layer] = write.decompress(exact, scheme)["weight"]

    groups = {"config_groups": {"group_0": scheme}, "format": form, "ignore": ["lm_head"]}
    settings = QuantizationConfig(**groups, quantization_status="compressed").model_dump(mode="json")
    way = Way(method="compressed-tensors", layout="pack-quantized", dtype=dtype)
    write_quantized(tmp_path / "a", own, way, change=exchange, settings=settings)
    model = load_model(str(tmp_path / "a"), dtype="float32")[0]
    assert len(expected) == 14 and set(layers_of(model)) == set(expected)
    for layer, wanted in expected.items():
        off = (model.get_submodule(layer).weight.dequantized() - wanted).abs()
        assert torch.all(off <= allowed(wanted, scheme.weights, dtype))


def allowed(weights: Tensor, args: Any, dtype: torch.dtype) -> Tensor:
    """Scales of float32 are rounded to float16, and of four bits with zero points what is added to a group is."""
    most = torch.zeros_like(weights) if args.symmetric else weights.abs()
    steps = most.view(len(weights), -1, args.group_size or weights.shape[1]).amax(-1, keepdim=True) / 128
    rounding = weights.abs() / 2048 if dtype == torch.float32 else torch.zeros(())
    return steps.expand(*steps.shape[:2], weights[0].numel() // steps.shape[1]).flatten(1) + rounding


def plain(weight: Tensor, args: Any) -> dict[str, Tensor]:
    """A layer as its observer leaves it: weights, scales and zero points from the ends of each group's range."""
    grouped = weight.view(len(weight), -1, args.group_size or weight.shape[1])
    scales, zeros = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    return {"weight": weight, "weight_scale": scales.to(weight.dtype), "weight_zero_point": zeros}
