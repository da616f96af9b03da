"""A frozen target in training: what it computes at examples, and drafts from its states put to work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.core.decode import decode
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.core.tree_shapes import rank_rates
from specstream.models.hub.load import load_model
from specstream.models.target.hf import HuggingFaceTarget
from specstream.training.config import TrainConfig
from specstream.training.data import Batch, Examples, load_examples
from specstream.training.trainee import Goal, drafted_figures

LIVE_NODES = 7
"""Drafted nodes of the trees in live decoding."""

RANKS = 8
"""Candidates of a depth whose rates a head comes with."""


def answer_counts(examples: Examples, size: int) -> Tensor:
    """How often each of ``size`` tokens is to be predicted."""
    counts = torch.zeros(size, dtype=torch.int64)
    for each in examples:
        counts += torch.bincount(torch.tensor(each.tokens[each.start :]), minlength=size)
    return counts


def frequent_tokens(counts: Tensor, size: int) -> Tensor:
    """The ids of the most frequent tokens, in order; of equally frequent ones the lower ids, which BPE made first."""
    return counts.argsort(descending=True, stable=True)[:size].sort().values


class Live:
    """Drafting as it will be: the target decodes so many held-out prompts with a drafter in every round.

    Answers have so many tokens at most. With 0 prompts nothing is measured.
    """

    def __init__(self, model: Any, tokenizer: Any, prompts: int, tokens: int) -> None:
        self._target = HuggingFaceTarget(model, exact=False) if prompts else None
        self._end = frozenset() if tokenizer.eos_token_id is None else frozenset({int(tokenizer.eos_token_id)})
        self._count, self._tokens = prompts, tokens

    def figures(self, drafter: Drafter, depth: int, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
        """``live_accepted_length``: tokens for each pass of the target, of some prompts, spread evenly."""
        if self._target is None or not prompts:
            return {}
        chosen = [prompts[at * len(prompts) // self._count] for at in range(min(self._count, len(prompts)))]
        rows = start_rows(
            chosen,
            range(len(chosen)),
            self._target.context_length,
            sampling=Sampling(),
            stopping=Stopping(max_new_tokens=self._tokens, eos_token_ids=self._end),
        )
        self._target.prepare(rows=len(chosen))
        for _ in decode(self._target, drafter, rows, speculation=Speculation(max_depth=depth), timings=Timings()):
            pass
        passes = sum(row.stats.target_passes for row in rows)
        return {"live_accepted_length": sum(row.stats.new_tokens for row in rows) / max(1, passes)}


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A target that is not trained, and what is trained on.

    Attributes:
        model: the target.
        tokenizer: its tokenizer.
        examples: the data.
        counts: how often each token is to be predicted.
        record: what a trained head says about its making: its data and its recipe.
        live: decodes with what is trained.
    """

    model: Any
    tokenizer: Any
    examples: Examples
    counts: Tensor
    record: dict[str, Any]
    live: Live

    def vocabulary(self, size: int | None) -> Tensor | None:
        """The most frequent tokens, as many as wanted; None for all."""
        return None if size is None else frequent_tokens(self.counts, size)


def read_frozen(config: TrainConfig, device: str, live_prompts: int, live_tokens: int) -> Frozen:
    """Load the target and read the data; random numbers begin at the seed."""
    model, tokenizer = load_model(config.model.target_model, dtype=config.model.dtype_on(device), device=device)
    model.requires_grad_(False)
    torch.manual_seed(config.training.seed)
    examples, _ = load_examples(config.data, tokenizer, config.training.seed)
    counts = answer_counts(examples, int(model.get_output_embeddings().weight.shape[0]))
    live = Live(model, tokenizer, live_prompts, live_tokens)
    data = {
        "files": [*config.data.files, *([config.data.dataset_name] if config.data.dataset_name else [])],
        "examples": len(examples),
        "answer_tokens": int(counts.sum()),
        "sha256": examples.fingerprint,
    }
    record = {"data": data, "recipe": config.model_dump(mode="json")}
    return Frozen(model=model, tokenizer=tokenizer, examples=examples, counts=counts, record=record, live=live)


def judged(batches: Iterable[Batch], ranks: Callable[[Batch], Tensor]) -> tuple[Tensor, list[list[int]]]:
    """Of held-out batches: the ranks ``[positions, depth]`` of the true tokens in the drafts, and the prompts."""
    found, prompts = list[Tensor](), list[list[int]]()
    for batch in batches:
        found.append(ranks(batch).cpu())
        prompts += batch.prompts
    return torch.cat(found), prompts


class HeadTrainee:
    """A head that learns what a frozen target says; a recipe adds the loss.

    Args:
        head: what is trained of it requires gradients.
        live: decodes with it.
    """

    goal = Goal(figure="accepted_length")

    def __init__(self, head: Any, live: Live) -> None:
        self._head, self._live = head, live

    def parameters(self) -> Iterable[nn.Parameter]:
        return (each for each in self._head.parameters() if each.requires_grad)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """How the head's drafts fare: on the target's answers, and in decoding itself."""
        ranks, prompts = judged(batches, self._ranks)
        rates = rank_rates(ranks, RANKS)
        self._head.details["rates"] = rates
        live = self._live.figures(self._drafter(rates), self._head.gamma, prompts)
        figures = {**drafted_figures(ranks), **live}
        self._head.details["figures"] = figures
        return figures

    def save(self, folder: Path) -> None:
        self._head.save(folder)

    def _ranks(self, batch: Batch) -> Tensor:
        """Of the true tokens in the drafts, ``[positions, depth]`` int64."""
        raise NotImplementedError

    def _drafter(self, rates: list[list[float]]) -> Drafter:
        """What drafts in decoding, with ``rates`` of ``rank_rates``."""
        raise NotImplementedError
