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
from functools import partial
from typing import Any

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

WIDTH = 64
"""Tokens of a prompt that are read in a pass on a processor: at a multiple of them another prompt can go on."""

APART = 512
"""Tokens between the states of a prompt that the prefix cache is given, beside the last one and that where another text
began to differ. One may take 20 MB."""


@dataclass(eq=False)
class _Text:
    """One row.

    Attributes:
        tokens: that are committed.
        cache: of the model.
        read: tokens that it has read. More than there are until they are committed, fewer where some are read again.
        cached: tokens that another text had read.
        fork: tokens, in whole passes, up to which another text was the same: a third one may be.
        whole: whether each of its passes was as wide as those of every other text were there.
        kept: states for the prefix cache, by how many tokens they are of.
        states: of the cache, after how many tokens: the last two.
    """

    tokens: list[int]
    cache: compat.Cache
    read: int = 0
    cached: int = 0
    fork: int = 0
    whole: bool = True
    kept: dict[int, compat.KeptState] = field(default_factory=dict)
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
        self.prefixes, self._weights = prefixes, (self._target.weights, _sample(self._target.model))

    def retain(self, row: int, tokens: Sequence[int]) -> None:
        return  # an answer is read in passes of other widths

    def cached(self, row: int) -> int:
        return self._texts[row].cached

    @torch.inference_mode()
    def read(self, most: int) -> bool:
        """In passes of one width, so that a text's bits do not depend on what was known of it."""
        unread = [text for text in self._texts if text.read < len(text.tokens)]
        if unread:
            text, end = unread[0], len(unread[0].tokens)
            with self._passing():
                if self.prefixes is not None and not text.read:
                    self._go_on_from(text, self.prefixes)
                until = min(end, text.read + (most // self._width * self._width or most))
                while text.read < until:
                    self._read(text, until, self._width)
                    self._keep_state(text)
                if self.prefixes is not None and text.read == end and text.kept:
                    parts, known = partial(compat.token_parts, text.cache), text.tokens[: max(text.kept)]
                    self.prefixes.keep(self._target, self._weights, known, parts, text.kept)
                    text.kept = {}
        return any(text.read < len(text.tokens) for text in unread)

    @property
    def _width(self) -> int:
        return WIDTH if self.device.type == "cpu" else PREFILL_CHUNK

    def _go_on_from(self, text: _Text, prefixes: PrefixCache) -> None:
        """Put back the last state that another text had where this one is still the same."""
        pieces, length, state, known = prefixes.find_state(self._target, self._weights, text.tokens)
        text.fork = known // self._width * self._width
        if isinstance(state, compat.KeptState):
            parts = {key: torch.cat([piece[key] for piece in pieces], 1) for key in pieces[0]}
            state.restore(text.cache, parts)
            text.read = text.cached = length

    def _keep_state(self, text: _Text) -> None:
        """Copy the state of a prompt for other texts where they could go on from it."""
        text.whole &= text.read % self._width == 0
        last = text.read + self._width > len(text.tokens)
        if self.prefixes is not None and text.whole and (last or text.read == text.fork or text.read % APART == 0):
            text.kept[text.read] = compat.KeptState(text.cache, without_parts=True)

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


def _sample(model: Any) -> tuple[float, ...]:
    """Some numbers of every weight: what is changed through ``weight.data`` is counted nowhere."""
    weights = [weight.detach().flatten() for weight in model.parameters()]
    return tuple(torch.stack([weight[:: len(weight) // 64 + 1].double().sum() for weight in weights]).tolist())
