"""What the loop knows of the thing it trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from specstream.training.data import Batch


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The figure of an evaluation that says which checkpoint is best.

    Attributes:
        figure: its name.
        rises: whether more is better.
    """

    figure: str
    rises: bool = True

    def better(self, new: float, old: float | None) -> bool:
        return old is None or (new > old if self.rises else new < old)


class Trainee(Protocol):
    """Something that can be trained; one file each in ``recipes``."""

    goal: Goal

    def parameters(self) -> Iterable[nn.Parameter]:
        """What is trained, always in the same order. Everything else is frozen."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a scalar with its graph, and its parts by name for the log."""

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures on held-out examples; acceptance, where the thing drafts."""

    def save(self, folder: Path) -> None:
        """Write what users load: never a half of it elsewhere, as the loop moves the whole folder into place."""


def drafted_figures(ranks: Tensor, top_k: int = 4) -> dict[str, float]:
    """How drafts would fare on text that the target wrote itself, from where each true token stood in the drafts.

    Args:
        ranks: ``[positions, depth]`` int64: the rank (0 is the likeliest) of the true token in the draft for that
            depth, of which any number too large to be accepted may stand for "not among them".
        top_k: candidates per depth that ``top{k}`` counts.

    Returns:
        ``top1_j`` and ``top{k}_j`` for every depth j from 1, ``accepted_length``: tokens per target pass of a chain of
        first choices, the target's own token among them, and ``accepted_length_top{k}``, of the full tree.
    """
    figures: dict[str, float] = {}
    for name, limit in (("top1", 1), (f"top{top_k}", top_k)):
        hits = (ranks < limit).double()
        for depth, share in enumerate(hits.mean(0).tolist(), 1):
            figures[f"{name}_{depth}"] = share
        suffix = "" if limit == 1 else f"_{name}"
        figures[f"accepted_length{suffix}"] = 1.0 + float(hits.cumprod(1).sum(1).mean())
    return figures


def token_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of the tokens to be predicted: ``logits`` ``[rows, width, vocab]``, float32 inside."""
    wanted = batch.tokens[:, 1:].masked_fill(~batch.mask[:, 1:], -100)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted.flatten())
