"""How the passes of a model run: the kernels, not the mathematics.

``eager`` calls the model as it is. ``native`` (CPU) lends every linear layer, for the time of a pass, a kernel of our
own on the layer's own weights: they are read once, so that eight tokens cost little more than one, which is where
speculation lives. ``packed`` (CPU, without a compiler) lends them copies of the weights in oneDNN's blocked layout. The
model itself is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from specstream.errors import UsageError
from specstream.models import native

RuntimeName = Literal["auto", "eager", "native", "packed"]

_BATCH_HINT = 8  # tokens the packed layout is laid out for: the width of a usual tree


class Runtime:
    """Runs passes of one model.

    Args:
        model: a transformers model; never modified outside a pass.
        name: ``native``, ``packed``, ``eager``, or ``auto`` for the first of them that works here.

    Raises:
        UsageError: a runtime that does not exist for this model's device and dtype.
        NoKernelsError: ``native`` was asked for and cannot be built.
    """

    def __init__(self, model: Any, name: RuntimeName = "auto") -> None:
        if name == "auto":
            name = _choose(model)
        elif name != "eager" and not _on_cpu(model):
            raise UsageError(
                f"runtime is {name!r}, which runs float32 and bfloat16 on the CPU, and the model is {model.dtype} on "
                f"{model.device}; give auto"
            )
        self.model = model
        self.name: str = name
        make = {"native": native.linear, "packed": _packed}.get(name)
        self._swaps = [] if make is None else list(_linear_forwards(model, make))

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


def _choose(model: Any) -> Literal["eager", "native", "packed"]:
    if not _on_cpu(model):
        return "eager"
    return "native" if native.available() else "packed"


def _on_cpu(model: Any) -> bool:
    """Whether the CPU kernels take this model's device and dtype."""
    if model.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    bf16 = model.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(model.dtype == torch.float32 or bf16)


def native_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype to run a checkpoint in: its own, where kernels for it exist, else float32.

    Without our kernels and without bf16 instructions, four tokens in bf16 cost four times one (docs/log.md).
    """
    if device.type != "cpu" or dtype == torch.float32:
        return dtype
    fast = dtype == torch.bfloat16 and (native.available() or torch.cpu._is_avx512_bf16_supported())
    return dtype if fast else torch.float32


Forward = Callable[[Tensor], Tensor]


def _linear_forwards(
    model: Any, make: Callable[[Tensor, Tensor | None], Forward]
) -> Iterator[tuple[nn.Module, Forward]]:
    for module in model.modules():
        # Only plain layers: a subclass (LoRA, a quantised layer) or a hooked layer has a forward of its own.
        if hasattr(module, "_hf_hook") or "forward" in module.__dict__:
            continue
        if type(module) is nn.Linear:
            yield module, make(module.weight, module.bias)
        elif type(module) is Conv1D:
            yield module, make(module.weight.t().contiguous(), module.bias)


def _packed(weight: Tensor, bias: Tensor | None) -> Forward:
    bias = None if bias is None else bias.detach()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _BATCH_HINT)

    def forward(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return result

    return forward
