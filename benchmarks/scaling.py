"""``python -m benchmarks.scaling``: the arithmetic of docs/scaling.md: bytes, operations, assumptions.

A pass over ``rows`` answers, ``width`` tokens of each, reads the weights once and each row's keys and values once,
however many tokens are verified, and computes ``rows * width`` tokens. It takes as long as the slower of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import typer

from benchmarks.report import aligned

BYTES = 2
"""Of a weight, a key or a value: bfloat16."""


MEMORY, BANDWIDTH, FLOPS = 80e9, 3.35e12, 989e12
"""Of one H100, by its data sheet: bytes, bytes a second, dense bfloat16 operations a second."""

MEMORY_SHARE, BANDWIDTH_SHARE, FLOPS_SHARE = 0.9, 0.8, 0.5
"""How much of that weights and caches may take, and a decoder reaches."""

REDUCE_SECONDS = 10e-6
"""Of one all-reduce between the GPUs of a node, of which a layer has two."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder."""

    parameters: float
    layers: int
    kv_heads: int
    head_size: int

    @property
    def weight_bytes(self) -> float:
        return self.parameters * BYTES

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_size * BYTES


LLAMA_8B = Shape(parameters=8.03e9, layers=32, kv_heads=8, head_size=128)
LLAMA_70B = Shape(parameters=70.6e9, layers=80, kv_heads=8, head_size=128)


def reads(shape: Shape, gpus: int, rows: float, context: float) -> float:
    """Seconds that a pass reads for."""
    return (shape.weight_bytes + rows * context * shape.cache_bytes) / (gpus * BANDWIDTH * BANDWIDTH_SHARE)


def computes(shape: Shape, gpus: int, tokens: float) -> float:
    """Seconds that so many tokens are computed for."""
    return 2 * shape.parameters * tokens / (gpus * FLOPS * FLOPS_SHARE)


def pass_seconds(shape: Shape, gpus: int, rows: float, context: float, width: int = 1) -> float:
    """Of one pass over ``rows`` answers with ``context`` tokens each, ``width`` new tokens of each."""
    shared = 0.0 if gpus == 1 else 2 * shape.layers * REDUCE_SECONDS
    slower = max(reads(shape, gpus, rows, context), computes(shape, gpus, rows * width))
    return slower + shared


def rows_that_fit(shape: Shape, gpus: int, context: float) -> int:
    """Answers whose keys and values fit beside the weights; 0 if the weights do not."""
    free = gpus * MEMORY * MEMORY_SHARE - shape.weight_bytes
    return max(0, int(free / (context * shape.cache_bytes)))


def gain(shape: Shape, gpus: int, rows: int, context: float, drafts: int, emitted: float) -> float:
    """Tokens a second with ``drafts`` drafted tokens of which ``emitted`` a pass come out, over plain decoding.

    The drafting itself is free here, as lookup and heads nearly are.
    """
    plain = pass_seconds(shape, gpus, rows, context)
    return emitted * plain / pass_seconds(shape, gpus, rows, context, drafts + 1)


def last_row_that_pays(shape: Shape, gpus: int, context: float, drafts: int, emitted: float) -> int:
    """The most rows with which drafting is no loss, of those that fit."""
    most = rows_that_fit(shape, gpus, context)
    paying = (rows for rows in range(most, 0, -1) if gain(shape, gpus, rows, context, drafts, emitted) >= 1)
    return next(paying, 0)


def answers_a_second(
    shape: Shape, gpus: int, rows: int, prompt: int, answer: int, drafts: int = 0, emitted: float = 1
) -> float:
    """Answers that one engine finishes: each prompt is computed once, its answer decoded beside the other rows'.

    Args:
        shape: of the model.
        gpus: of the engine.
        rows: answers side by side.
        prompt: tokens of each prompt.
        answer: tokens of each answer.
        drafts: drafted tokens of a pass.
        emitted: tokens that a pass emits.
    """
    step = pass_seconds(shape, gpus, rows, prompt + answer / 2, drafts + 1)
    return 1 / (answer / emitted * step / rows + computes(shape, gpus, prompt))


def fleet() -> list[list[str]]:
    """What 1, 8, 64 and 1000 GPUs answer."""
    load = rows, prompt, answer = 64, 500, 300
    cells = [["GPUs", "model", "engines", "rows each", "plain tokens/s each", "answers/s", "with 2 tokens a pass"]]
    for total, shape, gpus, name in (
        (1, LLAMA_8B, 1, "8B"),
        (8, LLAMA_8B, 1, "8B"),
        (8, LLAMA_70B, 8, "70B"),
        (64, LLAMA_70B, 8, "70B"),
        (1000, LLAMA_8B, 1, "8B"),
        (1000, LLAMA_70B, 8, "70B"),
    ):
        engines = total // gpus
        speed = rows / pass_seconds(shape, gpus, rows, prompt + answer / 2)
        plain = answers_a_second(shape, gpus, *load)
        drafted = answers_a_second(shape, gpus, *load, drafts=4, emitted=2)
        shown = f"{engines} x {gpus} GPU{'s' if gpus > 1 else ''}"
        figures = (f"{each:.0f}" for each in (speed, engines * plain, engines * drafted))
        cells.append([str(total), name, shown, str(rows), *figures])
    return cells


def paying() -> list[list[str]]:
    """Up to how many rows four drafted tokens pay on one H100 with the 8B."""
    cells = [["context", "rows that fit", "1.3 tokens a pass", "2", "3"]]
    for context in (256, 512, 1024, 2048, 8192):
        rows = [last_row_that_pays(LLAMA_8B, 1, context, 4, emitted) for emitted in (1.3, 2.0, 3.0)]
        cells.append([str(context), str(rows_that_fit(LLAMA_8B, 1, context)), *map(str, rows)])
    return cells


def scaling() -> None:
    """Print both tables."""
    print(aligned(fleet()))
    print()
    print(aligned(paying()))


if __name__ == "__main__":
    typer.run(scaling)
