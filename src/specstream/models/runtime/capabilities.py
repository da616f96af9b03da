"""What runs here: the instruction level, our kernels, and the dtype, the runtime and the draft's bits that follow.

Loading asks for the dtype, ``Runtime`` for the runtime and drafts for their quantisation, all of one function, so that
no two of them can disagree. Each answer comes with its reason, for ``specstream doctor``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch

from specstream.environment import level
from specstream.models.runtime import native
from specstream.models.runtime.compiled import Kernels

RuntimeName = Literal["auto", "eager", "native", "packed", "graphs", "static"]
Quantization = Literal["none", "int8", "int4"]

LARGE_DRAFT = 256_000_000
"""Parameters from which on a draft's step waits for memory even where weights are bytes."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Choice(Generic[T]):
    """An answer and, in words, why it is this one."""

    value: T
    reason: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What runs on a device, for models of one dtype.

    Attributes:
        level: the instruction level that this process goes by.
        kernels: our own, with where they come from or why they are missing.
        dtype: to compute in.
        runtime: for a model in that dtype.
        quantization: of a draft in that dtype on that runtime.
        refused: each runtime and each quantisation that does not run here, with the reason.
    """

    level: str
    kernels: Kernels
    dtype: Choice[torch.dtype]
    runtime: Choice[RuntimeName]
    quantization: Choice[Quantization]
    refused: Mapping[str, str]


def capabilities(
    device: torch.device,
    dtype: torch.dtype,
    *,
    keep_dtype: bool = False,
    runtime: RuntimeName = "auto",
    draft_parameters: int = 0,
) -> Capabilities:
    """What runs here.

    Args:
        device: the models'.
        dtype: a checkpoint's own.
        keep_dtype: it was asked for, or the model is loaded in it: no other is chosen.
        runtime: one that was asked for; ``auto`` is the fastest that runs.
        draft_parameters: how large the draft is whose quantisation is asked for.

    Raises:
        UsageError: ``SPECSTREAM_CPU`` cannot be followed.
    """
    if device.type == "cpu":
        kernels = native.kernels()
    else:  # nobody waits for a compiler there
        kernels = Kernels(state="missing", reason=f"they run on the CPU, not on {device}")
    asked = Choice(value=dtype, reason="as asked for")
    computed = asked if keep_dtype else _dtype(device, dtype, kernels)
    refused = _refused(device, computed.value, kernels)
    running = _runtime(runtime, refused, kernels)
    return Capabilities(
        level=level().name,
        kernels=kernels,
        dtype=computed,
        runtime=running,
        quantization=_quantization(running.value, draft_parameters),
        refused=refused,
    )


def _dtype(device: torch.device, own: torch.dtype, kernels: Kernels) -> Choice[torch.dtype]:
    """Without our kernels and without bf16 instructions, four tokens in bf16 cost four times one.

    Measured in docs/experiments/0002-linear-layer-without-bf16-instructions.md.
    """
    if device.type != "cpu":
        return Choice(value=own, reason=f"the checkpoint's own, on {device}")
    if own == torch.float32:
        return Choice(value=own, reason="the checkpoint's own")
    if own != torch.bfloat16:
        return Choice(value=torch.float32, reason=f"{own} is not computed natively on a CPU")
    if kernels.library is not None:
        return Choice(value=own, reason="the checkpoint's own, which our kernels compute")
    if level().bf16:
        return Choice(value=own, reason="the checkpoint's own, for which this processor has instructions")
    return Choice(value=torch.float32, reason=f"without our kernels {level().name} would emulate bfloat16")


def _refused(device: torch.device, dtype: torch.dtype, kernels: Kernels) -> dict[str, str]:
    refused = dict[str, str]()
    if device.type != "cuda":
        refused["graphs"] = f"it runs on CUDA, and the model is on {device}"
    if device.type != "cpu":
        why = f"it runs on the CPU, and the model is on {device}"
        return refused | dict.fromkeys(("native", "packed", "int8", "int4"), why)
    if kernels.library is None:
        refused |= dict.fromkeys(("native", "int4"), kernels.reason)
    if dtype not in (torch.float32, torch.bfloat16):
        why = f"it runs float32 and bfloat16 on the CPU, and the model is {dtype} on {device}"
        refused |= dict.fromkeys(("native", "packed"), why)
        if dtype == torch.float64:
            refused["int8"] = refused["int4"] = why
    elif not torch._C._has_mkldnn:
        refused["packed"] = "this build of torch has no oneDNN"
    elif dtype == torch.bfloat16 and not _onednn_has_bf16():
        refused["packed"] = f"oneDNN has no bfloat16 on {level().name}"
    return refused


def _onednn_has_bf16() -> bool:
    """On x86 from AVX512 on. Where only ``SPECSTREAM_CPU`` is lower, oneDNN itself may not know."""
    held = level().libraries.get("ONEDNN_MAX_CPU_ISA", "").startswith("AVX2")
    return not held and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _runtime(asked: RuntimeName, refused: Mapping[str, str], kernels: Kernels) -> Choice[RuntimeName]:
    if asked != "auto":
        return Choice(value=asked, reason="as asked for")
    if "graphs" not in refused:
        return Choice(value="graphs", reason="CUDA replays captured passes")
    if "native" not in refused:
        return Choice(value="native", reason=f"our kernels for {level().name} ({kernels.state})")
    if "packed" not in refused:
        return Choice(value="packed", reason=f"oneDNN, for want of our kernels: {refused['native']}")
    return Choice(value="eager", reason=f"the model as it is: native, {refused['native']}; packed, {refused['packed']}")


def _quantization(runtime: RuntimeName, parameters: int) -> Choice[Quantization]:
    """Four bits lose 5 % of a draft's tokens, and a third of a large one's step."""
    if runtime != "native":
        return Choice(value="none", reason=f"fewer bits are faster on our kernels only, and the runtime is {runtime}")
    if parameters >= LARGE_DRAFT:
        return Choice(value="int4", reason=f"a draft of {parameters:,} parameters waits for memory")
    return Choice(value="int8", reason=f"half the memory traffic of 16 bits; int4 from {LARGE_DRAFT:,} parameters on")
