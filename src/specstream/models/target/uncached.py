"""Passes that recompute the whole context: ``use_cache=False``, as in transformers. Slow; for debugging a cache."""

from __future__ import annotations

from collections.abc import Sequence

from specstream.core.ports import Target, TargetSession
from specstream.core.prefix_cache import PrefixCache
from specstream.core.tree import TokenTree
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.session import HuggingFaceSession


class UncachedTarget(Target):
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

    def begin(self, prefixes: Sequence[Sequence[int]]) -> TargetSession:
        if self._target.family.chains_only:  # nothing but the state could say what was read
            return self._target.begin(prefixes)
        return UncachedSession(self._target.ready(), prefixes)

    begin_reading = begin


class UncachedSession(HuggingFaceSession):
    """The committed tokens of each row, which every pass reads into a new cache; drafts may branch from that."""

    ragged = False

    def __init__(self, target: HuggingFaceTarget, prefixes: Sequence[Sequence[int]]) -> None:
        super().__init__(target, prefixes, target.exactness, unread=True)
        self._texts = [list(prefix) for prefix in prefixes]

    def exact_of(self, row: int) -> str:
        return "rounding"  # a prompt pass of another length may run another kernel

    def reuse(self, prefixes: PrefixCache) -> None:
        """It has no keys and values to leave."""

    def read(self, most: int) -> bool:
        return False  # every pass reads it all

    def _read_anew(self, trees: Sequence[TokenTree]) -> None:
        if self._begun is not None:  # the pass goes on
            return
        self._trees, texts = trees, [text or [] for text in self._texts]
        self.cache = self._target.cache(texts)
        for row, text in enumerate(texts):
            self._read_all(row, text)
