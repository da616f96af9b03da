"""Tokens that were drafted on an accelerator and stay there: a round asks the device once, at its end.

A draft model's step needs the token of the step before, and the target's pass needs them all; none of them needs the
host. So a chain may carry its tokens as a tensor. They come to the host together with the verdict on them, in one
transfer; whoever asks for them earlier pays with a transfer of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from specstream.core.sampling import NO_CHOICE, checked
from specstream.core.tree import TokenTree


def asynchronous(device: torch.device) -> bool:
    """Whether the host runs ahead of this device, so that every question to it is a wait."""
    return device.type == "cuda"


def upload(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor on the device, from numbers of the host, without waiting for the device."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    # Pinned memory goes back to PyTorch's pool only when the copy is done.
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drafted:
    """What was drafted for the rows of a batch.

    Attributes:
        tokens: ``[rows, depth]`` int64; rows may use fewer than ``depth``.
        proposals: the distributions they were drawn from, ``[rows, depth, vocab]`` float32; None if they were chosen.
        sound: ``[rows, depth]`` bool: the distribution was one, not NaN; None if nothing was drawn.
    """

    tokens: Tensor
    proposals: Tensor | None = None
    sound: Tensor | None = None


class DeferredChain(TokenTree):
    """A chain whose drafted tokens are on the device; for everyone else a ``TokenTree``.

    Args:
        drafted: shared by all rows of the batch.
        row: whose turn it is.
        count: how many of the row's drafted tokens the chain has.
        root: the token before them; None if the first of them is the root.
    """

    def __init__(self, drafted: Drafted, row: int, count: int, root: int | None) -> None:
        size = count + (root is not None)
        fields = {"parents": tuple(range(-1, size - 1)), "drafts": drafted, "row": row, "count": count, "root": root}
        self.__dict__.update(fields)  # the base class is frozen

    drafts: Drafted
    row: int
    count: int
    root: int | None

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        return self._rooted(self.drafts.tokens[self.row, : self.count].tolist())

    @cached_property
    def proposals(self) -> Mapping[int, Tensor]:
        drawn = self.drafts.proposals
        return {} if drawn is None else {node: drawn[self.row, node] for node in range(self.count)}

    def resolve(self, tokens: Sequence[int], sound: Sequence[int]) -> None:
        """Here are the row's drafted tokens, and whether each was drawn from a distribution.

        Raises:
            NumericalError: one was not.
        """
        for fine in sound[: self.count]:
            checked(0 if fine else NO_CHOICE)
        self.__dict__["tokens"] = self._rooted(tokens[: self.count])

    def _rooted(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(tokens) if self.root is None else (self.root, *tokens)


def shared_drafts(trees: Sequence[TokenTree]) -> Drafted | None:
    """What was drafted on the device for this batch, if that is all that was and its trees are in the order of rows."""
    deferred = [(row, tree) for row, tree in enumerate(trees) if isinstance(tree, DeferredChain)]
    if not deferred:
        return None
    first = deferred[0][1]
    same = all(
        tree.drafts is first.drafts and tree.row == row and (tree.root is None) == (first.root is None)
        for row, tree in deferred
    )
    alone = all(isinstance(tree, DeferredChain) or not tree.drafted for tree in trees)
    return first.drafts if same and alone and len(first.drafts.tokens) == len(trees) else None


def place(trees: Sequence[TokenTree], tokens: Tensor) -> None:
    """Write what is deferred into ``tokens`` ``[rows, width]``, where 0 stands for it."""
    drafts = shared_drafts(trees)
    if drafts is None:
        return
    at = next(tree.root is not None for tree in trees if isinstance(tree, DeferredChain))
    depth = min(drafts.tokens.shape[1], tokens.shape[1] - at)
    # Rows that drafted less get tokens behind their tree, which nothing sees.
    tokens[:, at : at + depth] = drafts.tokens[:, :depth]


def known_tokens(trees: Sequence[TokenTree], width: int, padding: int = 0) -> list[list[int]]:
    """Each row's tokens as far as the host has them, ``padding`` for the others and behind the tree."""
    deferred = shared_drafts(trees) is not None
    rows = []
    for tree in trees:
        waits = deferred and isinstance(tree, DeferredChain) and "tokens" not in tree.__dict__
        tokens = [] if waits and tree.root is None else [tree.root] if waits else list(tree.tokens)  # type: ignore[attr-defined]
        rows.append(tokens + [padding] * (width - len(tokens)))
    return rows


def fetch(trees: Sequence[TokenTree], values: Tensor) -> list[list[int]]:
    """``values`` ``[rows, n]`` as lists, and with them, in the same transfer, the tokens of the trees.

    Raises:
        NumericalError: a token was drafted from NaN.
    """
    drafts, count = shared_drafts(trees), values.shape[1]
    if drafts is not None:
        sound = torch.ones_like(drafts.tokens) if drafts.sound is None else drafts.sound
        values = torch.cat([values, drafts.tokens, sound.to(values.dtype)], 1)
    rows: list[list[int]] = values.tolist()
    if drafts is not None:
        depth = drafts.tokens.shape[1]
        for tree, row in zip(trees, rows, strict=True):
            if isinstance(tree, DeferredChain):
                tree.resolve(row[count : count + depth], row[count + depth :])
    return [row[:count] for row in rows]
