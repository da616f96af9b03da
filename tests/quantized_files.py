"""Tiny quantised checkpoints: integers packed one by one, as the formats say, and the weights they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.tiny import tiny_tokenizer

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How to quantise: the method, its bits, the group (0 for one an output), and what else tells layouts apart."""

    method: str
    bits: int = 4
    group: int = 32
    symmetric: bool = False
    layout: str = ""
    dtype: torch.dtype = torch.float16


WAYS = {
    "awq-32": Way(method="awq"),
    "awq-channel": Way(method="awq", group=0),
    "gptq-v1": Way(method="gptq", layout="gptq"),
    "gptq-v2-64": Way(method="gptq", layout="gptq_v2", group=64),
    "gptq-sym-channel": Way(method="gptq", layout="gptq", symmetric=True, group=0),
    "gptq-8": Way(method="gptq", bits=8, layout="gptq", symmetric=True),
    "ct-32": Way(method="compressed-tensors", layout="pack-quantized"),
    "ct-sym-64": Way(method="compressed-tensors", layout="pack-quantized", symmetric=True, group=64),
    "ct-bf16-128": Way(method="compressed-tensors", layout="pack-quantized", group=128, dtype=torch.bfloat16),
    "ct-zeros-in-bytes": Way(method="compressed-tensors", layout="pack-quantized, zeros in bytes"),
    "ct-8": Way(method="compressed-tensors", bits=8, layout="pack-quantized", symmetric=True),
    "ct-8-channel": Way(method="compressed-tensors", bits=8, layout="pack-quantized", symmetric=True, group=0),
    "ct-bytes": Way(method="compressed-tensors", bits=8, layout="int-quantized", symmetric=True, group=0),
}


def write_quantized(
    folder: Path,
    model: Any,
    way: Way,
    *,
    seed: int = 0,
    change: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Write a folder of a model whose linear layers are quantised, but for its head.

    Args:
        folder: made, and filled.
        model: a transformers model in float32.
        way: how.
        seed: of the integers' rounding, which is random here: any integers are a checkpoint.
        change: the tensors of the file before they are written.
        settings: of ``quantization_config``, in place of the usual ones.

    Returns:
        ``[outputs, inputs]`` float32 by layer: ``scale * (number - zero)``.
    """
    chance = torch.Generator().manual_seed(seed)
    head, expected = model.get_output_embeddings(), dict[str, Tensor]()
    tensors = {name: each.detach().to(way.dtype) for name, each in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            numbers, scales, zeros = rounded(module.weight.detach(), way, chance)
            group = module.in_features // scales.shape[1]
            spread = [each.repeat_interleave(group, 1) for each in (scales.float(), zeros)]
            expected[name] = spread[0] * (numbers - spread[1])
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{part}": each for part, each in stored(numbers, scales, zeros, way).items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    change(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: each.contiguous() for name, each in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": str(way.dtype)[6:]}
    config["quantization_config"] = settings_of(way) | (settings or {})
    (folder / "config.json").write_text(json.dumps(config))
    model.generation_config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return expected


def rounded(weight: Tensor, way: Way, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers ``[outputs, inputs]``, scales and zeros ``[outputs, groups]``: unsigned, any in the range among them."""
    outputs, inputs = weight.shape
    groups, most = inputs // (way.group or inputs), (1 << way.bits) - 1
    scales = (weight.abs().view(outputs, groups, -1).amax(-1) / (most / 2)).to(way.dtype)
    middle = (most + 1) // 2
    zeros = middle + torch.randint(-3, 4, (outputs, groups), generator=chance)
    zeros[0], zeros[1] = 0, most
    if way.symmetric:
        zeros = torch.full_like(zeros, middle)
    spread = [each.repeat_interleave(inputs // groups, 1) for each in (scales.float(), zeros)]
    numbers = (weight / spread[0] + spread[1]).round().clamp(0, most).long()
    numbers[:2, :8] = torch.tensor([0, most, 0, most, most, 0, 1, most - 1])
    return numbers, scales, zeros


def stored(numbers: Tensor, scales: Tensor, zeros: Tensor, way: Way) -> dict[str, Tensor]:
    """The tensors of a layer by their names."""
    if way.method == "awq":
        order = lambda values: values.view(len(values), -1, 8)[..., list(AWQ_ORDER)].flatten(1)  # noqa: E731
        packed = {"qweight": words(order(numbers.t()), 4), "qzeros": words(order(zeros.t()), 4)}
        return packed | {"scales": scales.t()}
    if way.method == "gptq":
        kept = (zeros - 1) % (1 << way.bits) if way.layout == "gptq" else zeros
        packed = {"qweight": words(numbers, way.bits).t(), "qzeros": words(kept.t(), way.bits)}
        group = numbers.shape[1] // scales.shape[1]
        own = torch.tensor([at // group for at in range(numbers.shape[1])], dtype=torch.int32)
        return packed | {"scales": scales.t(), "g_idx": own, "bias": torch.zeros(len(numbers), dtype=way.dtype)}
    middle = 1 << (way.bits - 1)
    if way.layout == "int-quantized":
        return {"weight": (numbers - middle).to(torch.int8), "weight_scale": scales}
    found = {"weight_packed": words(numbers, way.bits), "weight_scale": scales}
    if not way.symmetric:
        in_bytes = way.layout.endswith("bytes")
        found["weight_zero_point"] = (zeros - middle).to(torch.int8) if in_bytes else words(zeros.t(), way.bits).t()
    return found | {"weight_shape": torch.tensor(numbers.shape)}


def words(numbers: Tensor, bits: int) -> Tensor:
    """``[n, count]`` -> ``[n, words]`` int32, the first of a word's numbers in its lowest bits."""
    together = 32 // bits
    found = torch.zeros(len(numbers), -(-numbers.shape[1] // together), dtype=torch.int64)
    for at in range(numbers.shape[1]):
        found[:, at // together] |= numbers[:, at] << (bits * (at % together))
    return (found - (found >= 1 << 31) * (1 << 32)).to(torch.int32)


def settings_of(way: Way) -> dict[str, Any]:
    """The ``quantization_config`` that such a checkpoint has."""
    size = way.group or -1
    if way.method == "awq":
        return {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": size, "zero_point": True}
    if way.method == "gptq":
        own = {"bits": way.bits, "group_size": size, "sym": way.symmetric, "desc_act": False}
        return {"quant_method": "gptq", "checkpoint_format": way.layout, **own}
    weights = {"num_bits": way.bits, "type": "int", "symmetric": way.symmetric, "dynamic": False}
    weights |= {"strategy": "group", "group_size": way.group} if way.group else {"strategy": "channel"}
    layout = way.layout.partition(",")[0]
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
    }
