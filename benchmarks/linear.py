"""Our linear layer beside the memory and beside a float32 matrix product: what a pass of few rows can cost at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from benchmarks.beside import Outcome, Settings
from specstream.engine.contestants import by_turn, in_turn
from specstream.models.runtime import native

OUTPUTS, INPUTS = 8960, 1536
COPIES = 12
"""Matrices used in turn, 27.5 MB each in bfloat16: more than any cache holds."""

ROUNDS = 15
ROWS = 8


def read_time(settings: Settings) -> Outcome:
    """Seconds of our layer with one row over seconds of reading its weights, medians in turn."""
    weights = _weights()
    layers = [native.linear(weight, None) for weight in weights]
    row = torch.randn(1, INPUTS, dtype=torch.bfloat16)
    layer, read = _in_turn(
        [
            [partial(each, row) for each in layers],
            [partial(torch.sum, weight.view(torch.float32)) for weight in weights],
        ]
    )
    size = weights[0].nbytes / 1e9
    text = f"1 row {layer * 1e3:.3f} ms ({size / layer:.1f} GB/s), reading {read * 1e3:.3f} ms ({size / read:.1f} GB/s)"
    return Outcome(value=layer / read, text=text, details={"layer_seconds": layer, "read_seconds": read})


def products(settings: Settings) -> Outcome:
    """Multiply-adds a second of our layer with eight rows over those of float32 with eight and with many rows."""
    weights = _weights()
    layers = [native.linear(weight, None) for weight in weights]
    rows, many = torch.randn(ROWS, INPUTS, dtype=torch.bfloat16), torch.randn(512, INPUTS)
    floats = weights[0].float()
    layer, few, large = _in_turn(
        [
            [partial(each, rows) for each in layers],
            [partial(torch.nn.functional.linear, rows.float(), weight.float()) for weight in weights[:1]],
            [partial(torch.nn.functional.linear, many, floats)],
        ]
    )
    work = OUTPUTS * INPUTS / 1e9
    rates = {
        "ours": ROWS * work / layer,
        f"sgemm, {ROWS} rows": ROWS * work / few,
        "sgemm, 512 rows": 512 * work / large,
    }
    text = ", ".join(f"{name} {rate:.1f} G multiply-adds/s" for name, rate in rates.items())
    return Outcome(value=rates["ours"] / rates["sgemm, 512 rows"], text=text, details=rates)


def _weights() -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    shape = (OUTPUTS, INPUTS)
    return [torch.randn(shape, generator=chance).to(torch.bfloat16) for _ in range(COPIES)]


def _in_turn(contestants: Sequence[Sequence[Callable[[], object]]]) -> list[float]:
    """The median seconds of each contestant's calls; in every round each makes one on each of its matrices."""

    def timed(calls: Sequence[Callable[[], object]]) -> float:
        started = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - started) / len(calls)

    ways = {str(at): lambda _, calls=calls: timed(calls) for at, calls in enumerate(contestants)}
    with torch.inference_mode():
        turns = [turn.values() for turn in by_turn(in_turn(ways, [None], rounds=ROUNDS))]
    return [median(turn[name] for turn in turns) for name in ways]
