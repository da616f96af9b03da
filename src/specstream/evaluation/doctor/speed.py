"""How fast this machine reads memory and multiplies, in about five seconds, and what passes cost by that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from specstream.evaluation.doctor.facts import dtype_name
from specstream.models.runtime import native

SECONDS = 5.0
"""Of all measurements together, what they are made of included."""

LARGE = 1 << 28
"""Bytes that are read to see how fast memory is: more than caches hold."""

INPUTS = 2048
"""Of the layer whose weights those are."""

ROWS = 8
"""Rows of a pass that checks seven drafted tokens."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured.

    Attributes:
        device: where.
        threads: of torch.
        read: bytes a second.
        read_by: in words, what read.
        products: multiply-adds a second of a linear layer on ``ROWS`` rows, with weights that caches hold on a CPU.
        products_by: in words, whose.
        float32: multiply-adds a second of torch's own product of float32 matrices.
        seconds: that it took.
    """

    device: str
    threads: int
    read: float
    read_by: str
    products: float
    products_by: str
    float32: float
    seconds: float


@torch.inference_mode()
def speed(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS) -> Speed:
    """Measure it; each figure is that of the fastest call.

    Args:
        device: where passes run.
        dtype: that they run in.
        seconds: to stop after, on the whole.
    """
    started = time.perf_counter()
    own = device.type == "cpu" and native.available()
    size, square = (1024, 1024) if device.type == "cpu" else (8192, 4096)
    place: Any = {"dtype": dtype, "device": device}

    if own:
        large = torch.ones(LARGE // INPUTS // dtype.itemsize, INPUTS, **place)
        read = partial(native.linear(large, None), torch.ones(1, INPUTS, **place))
    else:  # torch adds up float32 as fast as memory gives it, and 16 bits more slowly
        large = torch.ones(LARGE // 4, dtype=torch.float32, device=device)
        read = partial(torch.sum, large)
    once = _fastest(read, device, started + seconds / 2)
    del large, read
    small, x = torch.ones(size, size, **place), torch.ones(ROWS, size, **place)
    product = partial(native.linear(small, None), x) if own else partial(functional.linear, x, small)
    rows = _fastest(product, device, started + seconds * 0.75)
    matrix = torch.ones(square, square, dtype=torch.float32, device=device)
    whole = _fastest(partial(torch.matmul, matrix, matrix), device, started + seconds)
    whose = f"our kernel in {dtype_name(dtype)}" if own else f"torch in {dtype_name(dtype)}"
    return Speed(
        device=str(device),
        threads=torch.get_num_threads(),
        read=LARGE / once,
        read_by=f"{f'{whose} on 1 row' if own else 'torch, a sum'}, over {LARGE / 1e6:.0f} MB",
        products=ROWS * size * size / rows,
        products_by=f"{whose} on {ROWS} rows",
        float32=square**3 / whole,
        seconds=time.perf_counter() - started,
    )


def pass_costs(model: str, parameters: int, weights: int, measured: Speed) -> dict[str, Any]:
    """What passes cost by that: predicted from the weights alone, not measured.

    A pass waits for memory or for arithmetic, whichever takes longer.

    Args:
        model: whose.
        parameters: that a pass reads.
        weights: bytes of those.
        measured: the machine.

    Returns:
        The first three, seconds of passes of ``one`` and of ``eight`` nodes, the ``ratio`` of the two, and as
        ``break_even`` how many of the drafted tokens must be accepted on average before speculation pays at all.
    """
    one = weights / measured.read
    eight = max(one, ROWS * parameters / measured.products)
    costs = {"one": one, "eight": eight, "ratio": eight / one, "break_even": eight / one - 1}
    return {"model": model, "bytes": weights, "parameters": parameters, **costs}


def _fastest(run: Callable[[], torch.Tensor], device: torch.device, deadline: float) -> float:
    """Seconds of the fastest call until then; three calls at least."""
    best, calls = float("inf"), 0
    while calls < 3 or time.perf_counter() < deadline:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, calls = min(best, time.perf_counter() - started), calls + 1
    return best
