"""Passes that recompute the whole context: ``use_cache=False``, as in transformers. Slow; for debugging a cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from specstream.core.ports import Adapter
from specstream.core.tree import TokenTree
from specstream.models.cache import PADDING
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.session import HuggingFaceSession


class UncachedTarget:
    """A target that keeps tokens instead of keys and values."""

    def __init__(self, target: HuggingFaceTarget) -> None:
        self._target = target

    @property
    def context_length(self) -> int | None:
        return self._target.context_length

    @property
    def rereads_at(self) -> int | None:
        """See ``HuggingFaceTarget``: here every pass reads all of a text anew."""
        return self._target.long_after

    def prepare(self, rows: int = 1, nodes: int = 0) -> None:
        """Without a cache there is nothing to test."""

    def begin(self, prefixes: Sequence[Sequence[int]]) -> UncachedSession:
        return UncachedSession(self._target, prefixes)

    begin_reading = begin

    def begin_idle(self, rows: int, length: int) -> UncachedSession:
        return self.begin([[PADDING] * length] * rows)


class UncachedSession:
    """The committed tokens of each row; every pass starts from them anew."""

    exact = "rounding"  # a prompt pass of another length may run another kernel
    ragged = False

    def __init__(self, target: HuggingFaceTarget, prefixes: Sequence[Sequence[int]]) -> None:
        self._target = target
        self._tokens = [list(prefix) for prefix in prefixes]
        self._trees: Sequence[TokenTree] = ()
        self._tapped: set[int] = set()
        self._pass: HuggingFaceSession | None = None
        self._begun = False

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        device: torch.device = self._target.model.device
        return device

    @property
    def hidden_states(self) -> UncachedSession:
        """See ``TargetSession``."""
        return self

    def read(self, most: int) -> bool:
        return False  # every pass reads it all

    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        self._trees = trees
        session = self._pass if self._begun and self._pass is not None else self._fresh()
        self._begun = False
        return session.score(trees)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        for tokens, tree, path in zip(self._tokens, self._trees, paths, strict=True):
            tokens.extend(tree.tokens[node] for node in path)
        if self._pass is not None:  # it may be asked to branch
            self._pass.commit(paths)

    def rollback(self, lengths: Sequence[int]) -> None:
        for tokens, length in zip(self._tokens, lengths, strict=True):
            del tokens[length:]
        if self._pass is not None:
            self._pass.rollback(lengths)

    def tap(self, layers: Collection[int]) -> None:
        self._tapped.update(layers)

    def states(self, layer: int) -> Tensor:
        if self._pass is None:
            raise ValueError(f"layer {layer} was not tapped before the last pass")
        return self._pass.states(layer)

    def descend(self, trees: Sequence[TokenTree], layer: int) -> Tensor:
        self._begun = True
        return self._fresh().descend(trees, layer)

    def _fresh(self) -> HuggingFaceSession:
        self._pass = self._target.begin(self._tokens)
        self._pass.tap(self._tapped)
        return self._pass

    def branch(self, hidden: Tensor, layer: int, adapter: Adapter, rows: Sequence[int] | None = None) -> Tensor:
        if self._pass is None:
            raise ValueError("nothing was scored yet, so there is nothing to branch from")
        return self._pass.branch(hidden, layer, adapter, rows)

    def keep(self, rows: Sequence[int]) -> None:
        self._tokens = [self._tokens[row] for row in rows]
        if self._pass is not None:
            self._pass.keep(rows)

    def join(self, other: UncachedSession) -> None:
        if self._pass is not None:  # it may be asked to branch
            self._pass.join(self._target.begin(other._tokens))
        self._tokens.extend(other._tokens)

    def exact_of(self, row: int) -> str:
        return self.exact
