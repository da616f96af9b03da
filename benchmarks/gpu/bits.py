"""Which widths of a pass give bit-equal rows, by the self-test and by comparing all of them."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.models import NAMES, load, prompts_for, target_of
from benchmarks.gpu.options import Options
from benchmarks.gpu.records import Records
from specstream.core.tree import TokenTree
from specstream.models.invariance.widths import WIDTHS

CONTEXT, READ, NODES = 72, 48, 17
BATCHES = (8, 32)


def bits(records: Records, options: Options) -> None:
    kinds = [(name, torch.bfloat16) for name in NAMES] + [("smollm2", torch.float32)]
    for name, dtype in kinds[-1:] if options.tiny else kinds:
        what = f"{name} {str(dtype).removeprefix('torch.')} {options.captured}"
        records.measure(f"self-test {what}", partial(_self_test, name, dtype, options))
        records.measure(f"widths {what}", partial(_widths, name, dtype, options))
        load.cache_clear()


def _self_test(name: str, dtype: torch.dtype, options: Options) -> dict[str, Any]:
    """What a user's first generations wait for, and what comes of it."""
    target = target_of(load(name, options, dtype), options.captured)
    exactness, seconds = target.exactness, {}
    assert exactness is not None
    for rows in (1,) if options.tiny else (1, *BATCHES):
        started = time.perf_counter()
        target.prepare(rows=rows, nodes=NODES)
        options.wait()
        seconds[f"rows {rows}"] = round(time.perf_counter() - started, 3)
    certified = {f"{rows}x{width} in {blocks}": agree for (rows, width, blocks), agree in exactness._certified.items()}
    widths = list(exactness._widths)
    return {"model": name, "base": exactness.base, "widths": widths, "certified": certified, "seconds": seconds}


def _widths(name: str, dtype: torch.dtype, options: Options) -> dict[str, Any]:
    """Classes of widths by the bits of the first ``READ`` rows; and whether batches have those of one row."""
    target = target_of(load(name, options, dtype), options.captured, exact=False)
    (tokens,) = prompts_for(name, options, 1, CONTEXT + WIDTHS[-1])
    widths = WIDTHS[:4] if options.tiny else WIDTHS
    read = {width: _read(target, tokens, width, 1)[:, :READ] for width in widths}
    table = {f"{one}": [_equal_rows(read[one][0], read[other][0]) for other in widths] for one in widths}
    beside = {}
    for rows in (2,) if options.tiny else BATCHES:
        for width in (1, 8, 24) if not options.tiny else (1,):
            batch, alone = _read(target, tokens, width, rows), _read(target, tokens, width, 1)
            beside[f"{rows}x{width}"] = {
                "rows that are the first row": sum(torch.equal(row, batch[0]) for row in batch),
                "nodes that are those of one row": _equal_rows(batch[0], alone[0]),
                "of": batch.shape[1],
            }
    return {"model": name, "of": READ, "columns": list(widths), "table": table, "beside": beside}


def _read(target: Any, tokens: list[int], width: int, rows: int) -> Tensor:
    """Logits ``[rows, nodes, vocab]`` of the tokens behind the context, read ``width`` at a time."""
    session = target.begin_unpadded([tokens[:CONTEXT]] * rows)
    found, count = [], 16 if rows > 1 else WIDTHS[-1]
    for start in range(CONTEXT, CONTEXT + max(count, width), width):
        chain = TokenTree.chain((tokens[start:] + tokens)[:width])
        found.append(session.score([chain] * rows))
        session.commit([range(width)] * rows)
    return torch.cat(found, 1)[:, :count]


def _equal_rows(one: Tensor, other: Tensor) -> int:
    """How many nodes have equal bits."""
    count = min(len(one), len(other))
    return int((one[:count] == other[:count]).all(-1).sum())
