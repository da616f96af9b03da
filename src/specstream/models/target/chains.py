"""A batch at work on a model that cannot carry token trees: each row has passes of its own, over one chain.

Most of these keep a state of what they have read in some layers (Mamba, the gated delta rule of Qwen3-Next and Qwen3.5,
the convolutions of LFM2). No token can be cut off it. So it is copied before a pass that may read rejected tokens, and
put back behind it; what was accepted since is read once more, at the beginning of the next pass. A pass over a few more
tokens costs little where speculation pays at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specstream.core.ports import TargetSession
from specstream.core.prefix_cache import PrefixCache
from specstream.core.tree import TokenTree
from specstream.models.architecture import compat
from specstream.models.runtime.waiting import watched
from specstream.models.target.passes import ModelPasses
from specstream.models.target.session import PREFILL_CHUNK

SPACING = 16
"""Tokens that are read again at most: behind so many, and at every draft, a state is copied."""


@dataclass(eq=False)
class _Text:
    """One row.

    Attributes:
        tokens: that are committed.
        cache: of the model.
        read: tokens that it has read. More than there are until they are committed, fewer where some are read again.
        states: of the cache, after how many tokens: the last two.
    """

    tokens: list[int]
    cache: compat.Cache
    read: int = 0
    states: deque[tuple[int, compat.KeptState]] = field(default_factory=lambda: deque(maxlen=2))

    def keep_state(self) -> None:
        """Copy the state, unless it is the one that was put back."""
        if not self.states or self.states[-1][0] != self.read:
            self.states.append((self.read, compat.KeptState(self.cache)))

    def return_to(self, length: int, empty: compat.Cache) -> None:
        """Forget what is read beyond so many tokens, and so as much more as no state was kept of."""
        del self.tokens[length:]
        if self.read <= length:
            return
        while self.states and self.states[-1][0] > length:
            self.states.pop()
        if self.states:
            self.read, state = self.states[-1]
            state.restore(self.cache)
        else:
            self.read, self.cache = 0, empty


class ChainSession(TargetSession):
    """A batch at work; see ``TargetSession``.

    Its rows are ``exact`` but for rounding: in these layers a pass over one token runs other code than a wider one.

    Args:
        target: the model and its passes.
        prefixes: tokens of each row that are committed.
        unread: whether ``read`` is to read them.
    """

    chains_only = True

    def __init__(self, target: ModelPasses, prefixes: Sequence[Sequence[int]], *, unread: bool = False) -> None:
        self._target, self._revision = target, target.revision
        self._texts = [_Text(list(prefix), self._empty()) for prefix in prefixes]
        self._trees: Sequence[TokenTree] = ()
        while not unread and self.read(PREFILL_CHUNK):
            pass

    @property
    def device(self) -> torch.device:
        device: torch.device = self._target.model.device
        return device

    @property
    def ragged(self) -> bool:
        return True

    @property
    def exact(self) -> str:
        return "rounding"

    def exact_of(self, row: int) -> str:
        return "rounding"

    def reuse(self, prefixes: PrefixCache) -> None:
        return  # a state in the middle of a text would have to be kept for each prefix

    def retain(self, row: int, tokens: Sequence[int]) -> None:
        return

    @torch.inference_mode()
    def read(self, most: int) -> bool:
        unread = [text for text in self._texts if text.read < len(text.tokens)]
        if unread:
            with self._passing():
                self._read(unread[0], len(unread[0].tokens), min(most, PREFILL_CHUNK))
        return any(text.read < len(text.tokens) for text in unread)

    @torch.inference_mode()
    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        """Raises ValueError for a tree with branches."""
        if not all(tree.is_chain for tree in trees):
            raise ValueError("this model scores chains only; give trees without branches")
        self._trees = trees
        with self._passing():
            scored = [self._score(text, tree) for text, tree in zip(self._texts, trees, strict=True)]
        logits = scored[0].new_zeros((len(scored), max(map(len, scored)), scored[0].shape[-1]))
        for row, own in enumerate(scored):
            logits[row, : len(own)] = own
        return logits

    @torch.inference_mode()
    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        for text, tree, path in zip(self._texts, self._trees, paths, strict=True):
            text.tokens.extend(tree.tokens[node] for node in path)
            text.return_to(len(text.tokens), self._empty())

    @torch.inference_mode()
    def rollback(self, lengths: Sequence[int]) -> None:
        for text, length in zip(self._texts, lengths, strict=True):
            text.return_to(length, self._empty())

    def keep(self, rows: Sequence[int]) -> None:
        self._texts = [self._texts[row] for row in rows]

    def join(self, other: ChainSession) -> None:
        self._texts.extend(other._texts)

    @torch.inference_mode()
    def repeat(self, rows: int) -> None:
        """Take its one row so many times."""
        (text,) = self._texts
        state = compat.KeptState(text.cache)
        self._texts = [_Text(list(text.tokens), self._empty(), text.read) for _ in range(rows)]
        for each in self._texts:
            state.restore(each.cache)

    def _empty(self) -> compat.Cache:
        return compat.state_cache(self._target.view)

    @contextmanager
    def _passing(self) -> Iterator[None]:
        with self._target.lock, watched(self.device):
            self._target.require(self._revision)
            yield

    def _read(self, text: _Text, end: int, most: int) -> None:
        """One pass of up to so many tokens, no further than to ``end``."""
        tokens = text.tokens[text.read : min(end, text.read + most)]
        self._pass(text, tokens, 1)

    def _score(self, text: _Text, tree: TokenTree) -> Tensor:
        """Logits ``[nodes, vocab]``."""
        while len(text.tokens) - text.read > SPACING:
            self._read(text, len(text.tokens), PREFILL_CHUNK)
        if len(tree) > 1 or not text.states or len(text.tokens) - text.states[-1][0] >= SPACING:
            text.keep_state()
        return self._pass(text, [*text.tokens[text.read :], *tree.tokens], len(tree))

    def _pass(self, text: _Text, tokens: Sequence[int], kept: int) -> Tensor:
        """The logits of the last ``kept`` of these tokens, ``[kept, vocab]``."""
        target, family = self._target, self._target.family
        arguments = {"logits_to_keep": kept} if family.takes_logits_to_keep else {}
        ids = torch.tensor([tokens], device=self.device)
        with target.runtime.kernels():
            logits: Tensor = target.view(
                input_ids=ids, use_cache=True, **{family.cache_argument: text.cache}, **arguments
            ).logits
        text.read += len(tokens)
        return logits[0, -kept:]
