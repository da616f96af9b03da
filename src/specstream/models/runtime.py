"""How the passes of a model run: the kernels, not the mathematics.

``eager`` calls the model as it is. ``packed`` (CPU) lends every linear layer, for the time of a pass, a copy of its
weight in the blocked layout of oneDNN: half the time of ``nn.Linear`` for the few tokens of a pass, and the cost
hardly grows from 1 token to 8, which is where speculation lives. The model itself is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

RuntimeName = Literal["auto", "eager", "packed"]

_BATCH_HINT = 8  # tokens the packed layout is laid out for: the width of a usual tree


class Runtime:
    """Runs passes of one model.

    Args:
        model: a transformers model; never modified outside a pass.
        name: ``packed``, ``eager``, or ``auto`` for ``packed`` on a CPU that can and ``eager`` elsewhere.
    """

    def __init__(self, model: Any, name: RuntimeName = "auto") -> None:
        if name == "auto":
            name = "packed" if can_pack(model) else "eager"
        self.model = model
        self.name: str = name
        self._swaps = list(_packed_forwards(model)) if name == "packed" else []

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Inside, the model's linear layers run on the packed weights."""
        try:
            for module, forward in self._swaps:
                # Straight into __dict__: nn.Module.__setattr__ takes microseconds, a model has hundreds of layers.
                module.__dict__["forward"] = forward
            yield
        finally:
            for module, _ in self._swaps:
                module.__dict__.pop("forward", None)


def can_pack(model: Any) -> bool:
    """Whether the packed kernels exist here for this model's device and dtype."""
    if model.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    bf16 = model.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(model.dtype == torch.float32 or bf16)


def native_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype to run a checkpoint in: its own, but float32 on a CPU that has to emulate it.

    Without bf16 instructions four tokens in bf16 cost four times one (measured: docs/log.md), so that
    verification gains nothing; in float32 they cost about the same.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return dtype
    native = dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return dtype if native else torch.float32


def _packed_forwards(model: Any) -> Iterator[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    for module in model.modules():
        # Only plain layers: a subclass (LoRA, a quantised layer) or a hooked layer has a forward of its own.
        if hasattr(module, "_hf_hook") or "forward" in module.__dict__:
            continue
        if type(module) is nn.Linear:
            yield module, _packed(module.weight, module.bias)
        elif type(module) is Conv1D:
            yield module, _packed(module.weight.t(), module.bias)


def _packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    bias = None if bias is None else bias.detach()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _BATCH_HINT)

    def forward(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return result

    return forward
