"""One sequence being decoded: its tokens, its source of chance, its rules, its counts, and its share of a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specstream.core.ports import DrafterChoice, PromptWatcher
from specstream.core.sampling import Sampling
from specstream.core.stats import RowStats
from specstream.core.stopping import Stopping
from specstream.core.tree import TokenTree
from specstream.errors import UsageError

Watcher = Callable[[Tensor, Sequence[int]], None]
"""``(logits [n, vocab] that n emitted tokens were chosen from, those tokens)``, before any stop cuts them."""

Known = Callable[[Sequence[int]], Sequence[int]]
"""A row's tokens -> tokens that a rule of its sampling leaves hardly a choice but to emit next; perhaps none."""


@dataclass(kw_only=True, eq=False)
class Row:
    """One sequence being decoded.

    Attributes:
        index: its place among the rows that were started together.
        tokens: the prompt and what was emitted.
        prompt_length: tokens of the prompt.
        cached: tokens of the prompt whose keys and values were there from earlier texts.
        generator: its own source of chance, on the CPU.
        sampling: how its tokens are chosen.
        stopping: when it ends.
        repeats: whether its seed has to give the same tokens again, so that its trees may not depend on the clock.
        watch: shown the logits of every emitted token; None for nobody.
        watch_prompt: shown those of the prompt as it is read.
        expected: a text that it may come to say, for drafters that copy, behind the end of its prompt.
        known: drafts for nothing, before any drafter is asked; None where no rule of its sampling can.
        choice: which drafter was chosen for its batch; None where there was no choice.
        calibrations: what the policy keeps of it.
        finish_reason: ``stop``, ``length``, or ``error``; None while it runs.
        error: what went wrong with this row alone.
    """

    index: int
    tokens: list[int]
    prompt_length: int
    generator: torch.Generator
    sampling: Sampling
    stopping: Stopping
    cached: int = 0
    repeats: bool = False
    watch: Watcher | None = None
    watch_prompt: PromptWatcher | None = None
    expected: Sequence[int] = ()
    known: Known | None = None
    choice: DrafterChoice | None = None
    calibrations: dict[tuple[str, bool], Any] = field(default_factory=dict, repr=False)
    stats: RowStats = field(default_factory=RowStats)
    finish_reason: str | None = None
    error: Exception | None = None
    exact: str = "bits"

    @property
    def emitted(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    def left(self, context_length: int | None) -> int:
        """Tokens that it may still emit."""
        left = self.stopping.max_new_tokens - (len(self.tokens) - self.prompt_length)
        return left if context_length is None else min(left, context_length - len(self.tokens))


@dataclass(frozen=True, kw_only=True)
class Round:
    """One row's share of one pass.

    Attributes:
        row: whose.
        tokens: what was emitted, after any stop has cut it: accepted drafts, then a token of the target's own.
        tree: what was scored.
        path: the accepted nodes of it, the root first.
        drafter: who drafted it; None for nobody, or where that is not known.
    """

    row: Row
    tokens: tuple[int, ...]
    tree: TokenTree
    path: tuple[int, ...]
    drafter: str | None


def start_rows(
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    context_length: int | None,
    *,
    sampling: Sampling,
    stopping: Stopping,
) -> list[Row]:
    """Rows ready to decode, each with a generator of its own.

    Args:
        prompts: tokens of each.
        seeds: of each row's generator.
        context_length: the most tokens that a sequence of the target may have, None for no limit.
        sampling: how tokens of all rows are chosen. A row may be given another before it is decoded.
        stopping: when rows end; the same holds for it.

    Raises:
        UsageError: an empty prompt, or one that leaves no room in the model's context.
    """
    rows = []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        name = "the prompt" if len(prompts) == 1 else f"prompt {index}"
        if not prompt:
            raise UsageError(f"{name} is empty; give at least one token")
        if context_length is not None and len(prompt) >= context_length:
            raise UsageError(
                f"{name} has {len(prompt)} tokens and the model's context holds {context_length}; shorten it"
            )
        rows.append(
            Row(
                index=index,
                tokens=list(prompt),
                prompt_length=len(prompt),
                generator=torch.Generator().manual_seed(seed),
                sampling=sampling,
                stopping=stopping,
            )
        )
    return rows
