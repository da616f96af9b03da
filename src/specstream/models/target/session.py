"""A batch at work on a Hugging Face model: which passes it makes, and what of them it keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.core.ports import Adapter, PromptWatcher
from specstream.core.prefix_cache import PrefixCache
from specstream.core.sampling import Finder
from specstream.core.tree import TokenTree
from specstream.models.architecture.hidden_states import States
from specstream.models.architecture.rotary import reading_prompt
from specstream.models.cache import PADDING
from specstream.models.invariance.widths import Exactness
from specstream.models.runtime import native
from specstream.models.runtime.native import tree_plan
from specstream.models.runtime.waiting import watched
from specstream.models.target.graphs import StaticCache, rounded_width
from specstream.models.target.layout import Layout, block_rows, chain_layout, lay_out, planned
from specstream.models.target.passes import ModelPasses
from specstream.models.target.ragged import fill, pack, unpack, unpack_all

PREFILL_CHUNK = 512
"""Prompt tokens per pass of a library's kernels: bounds the memory of the mask and of the activations."""


_STATES = "states"
"""What the prefix cache keeps beside keys and values, by this name: tapped states ``[layers, tokens, hidden]``."""


class HuggingFaceSession:
    """A batch at work; see ``TargetSession``.

    Attributes:
        masked: whether its passes run through the model's own attention only.
    """

    prefixes: PrefixCache | None = None
    chains_only = False
    masked = False

    def __init__(
        self,
        target: ModelPasses,
        prefixes: Sequence[Sequence[int]],
        exactness: Exactness | None,
        *,
        unread: bool = False,
    ) -> None:
        self._target, self._revision = target, target.revision
        self._exactness = exactness
        self._bits = [exactness is not None] * len(prefixes)
        self._exact_branches = False  # whether the trees of the last pass could have the bits on every branch
        # Shapes of passes of which a row committed a branch, until it is known whether such passes have the bits.
        self._branched: list[set[tuple[int, int, int]]] = [set() for _ in prefixes]
        self._shape = 0, 0  # rows and nodes of the last pass, as they were certified
        self._states: States = {}
        self._reads: tuple[int, ...] = ()  # layers that are tapped while prompts are read
        self._read_states: list[list[Tensor]] = [[] for _ in prefixes]  # of every row, ``[tokens, layers, hidden]``
        self._prompts = [len(prefix) + 1 for prefix in prefixes]  # tokens; the last is read with the first tree
        # The texts that are to be read anew behind a length; None for those that are longer already.
        turn = target.rereads_at or 0
        self._texts = [list(prefix) if len(prefix) < turn else None for prefix in prefixes]
        self._trees: Sequence[TokenTree] = ()
        self._begun: tuple[Sequence[TokenTree], int, Tensor] | None = (
            None  # trees, as far as which layer, what is there
        )
        self.cache = target.cache(prefixes)
        self._cached, self._weights = [0] * len(prefixes), (0, 0)
        self._watchers = dict[int, PromptWatcher]()
        # Row by row, so that a row's keys and values do not depend on its neighbours.
        self._unread = deque((row, prefix) for row, prefix in enumerate(prefixes) if prefix)
        while not unread and self.read(PREFILL_CHUNK):
            pass

    @torch.inference_mode()
    def fork(self, rows: int, length: int, capacity: int) -> HuggingFaceSession:
        """See ``ProbeSession.fork``."""
        copy = HuggingFaceSession(self._target, [], self._exactness)
        copy.cache = self.cache.fork(rows, length, capacity)
        copy._bits, copy._branched = [self._exactness is not None] * rows, [set() for _ in range(rows)]
        copy._texts, copy._prompts, copy._cached = [None] * rows, [length + 1] * rows, [0] * rows
        copy._read_states = [[] for _ in range(rows)]
        return copy

    @torch.inference_mode()
    def copy(self, target: ModelPasses) -> HuggingFaceSession:
        """A session of another target of the same model, at the same place in the text."""
        copy = HuggingFaceSession(target, [], target.exactness)
        copy.cache = self.cache.copy()
        copy._bits, copy._branched = [False] * len(self._bits), [set() for _ in self._bits]
        copy._texts = [text and list(text) for text in self._texts]
        copy._prompts, copy._cached = list(self._prompts), [0] * len(self._bits)
        copy._read_states = [[] for _ in self._bits]
        return copy

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        device: torch.device = self._target.model.device
        return device

    @property
    def finder(self) -> Finder:
        """See ``TargetSession``."""
        return native.KernelFinder() if self._target.runtime.kind == "native" else Finder()

    @property
    def exact(self) -> str:
        return "bits" if all(self.exact_of(row) == "bits" for row in range(len(self._bits))) else "rounding"

    def exact_of(self, row: int) -> str:
        # Here and not where they were committed: a self-test is no part of what a pass costs.
        self._bits[row] = self._bits[row] and all(self._branches_agree(*shape) for shape in self._branched[row])
        self._branched[row].clear()
        return "bits" if self._bits[row] else "rounding"

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Around what runs passes: no other session's at the same time, and of the model that this one began with."""
        with self._target.lock, watched(self.device):
            self._target.require(self._revision)
            yield

    @torch.inference_mode()
    def read(self, most: int) -> bool:
        if not self._unread:
            return False
        row, prefix = self._unread[0]
        reuses = self.prefixes is not None and row not in self._watchers
        known = self._fill(row, prefix) if reuses and not self.cache.lengths[row] else {}
        done, chunk = self.cache.lengths[row], min(most, self._chunk)
        if self._bits[row] and chunk < self._chunk and done + chunk < len(prefix):
            # Plain decoding reads this in one pass: a narrower one may run other kernels.
            self._bits[row] = self._target.invariant
        self._read(row, prefix[done : done + chunk], self._prompts[row])
        now = self.cache.parts(row, done, done + 1)
        if any(not torch.equal(part, now[key]) for key, part in known.items()):
            self._begin_anew(row)
        elif self.cache.lengths[row] == len(prefix):
            self._unread.popleft()
            self.retain(row, prefix)
        return bool(self._unread)

    def watch(self, row: int, watch: PromptWatcher) -> None:
        self._watchers[row] = watch

    def reuse(self, prefixes: PrefixCache) -> None:
        if self._target.invariant:
            self.prefixes, self._weights = prefixes, self._target.weights

    def cached(self, row: int) -> int:
        return self._cached[row]

    @torch.inference_mode()
    def retain(self, row: int, tokens: Sequence[int]) -> None:
        if self.prefixes is None or (self._reads and not self._read_states[row]):  # of an answer there are no states
            return
        # Without plain decoding's bits an answer has not those that it is read with.
        length = self.cache.lengths[row] if self.exact_of(row) == "bits" else self._prompts[row] - 1
        self.prefixes.keep(self._owner, self._weights, tokens[:length], partial(self._parts, row))

    @property
    def _owner(self) -> Hashable:
        """Whose keys and values, with states of which layers beside them."""
        return self._target, self._reads

    def _parts(self, row: int, start: int, end: int) -> dict[Any, Tensor]:
        """What the prefix cache keeps of a row's tokens."""
        parts: dict[Any, Tensor] = {**self.cache.parts(row, start, end)}
        if self._reads:
            parts[_STATES] = torch.cat(self._read_states[row])[start:end].transpose(0, 1)
        return parts

    def _fill(self, row: int, prefix: Sequence[int]) -> dict[Any, Tensor]:
        """Reuse what is known of a prompt's first tokens, but for the last of these.

        That one is read again: it looks at all others, and comes out otherwise where the weights are not what they
        were. Versions tell nothing of ``weight.data``.

        Returns:
            What is known of the token that is read again.
        """
        assert self.prefixes is not None
        at, last, found = 0, dict[Any, Tensor](), self.prefixes.find(self._owner, self._weights, prefix)
        counts = [next(iter(parts.values())).shape[1] for parts in found]
        self.cache.reserve(sum(counts))
        states = list[Tensor]()
        for parts, count in zip(found, counts, strict=True):
            own = {key: part for key, part in parts.items() if key != _STATES}
            states += [part.transpose(0, 1) for key, part in parts.items() if key == _STATES]
            self.cache.fill(row, at, own)
            at, last = at + count, {key: part[:, -1:] for key, part in own.items()}
        self.cache.lengths[row] = self._cached[row] = max(0, at - 1)
        self._read_states[row] = [torch.cat(states)[:-1]] if states else []
        return last

    def _begin_anew(self, row: int) -> None:
        """Read a prompt from its first token on: the weights are not those that its prefix was read with."""
        assert self.prefixes is not None
        self.prefixes.forget(self._owner)
        self.cache.lengths[row] = self._cached[row] = 0
        self._read_states[row] = []

    @property
    def _chunk(self) -> int:
        """Prompt tokens per pass: as many as the kernels of decoding take, where those read prompts."""
        runtime, widest = self._target.runtime, native.MOST_ROWS
        return widest if runtime.own_attention(1, widest) and runtime.alike(1, widest) else PREFILL_CHUNK

    def _read(self, row: int, tokens: Sequence[int], prompt: int) -> None:
        """One pass over tokens of a prompt of ``prompt`` tokens."""
        chunk = TokenTree.chain(tokens)
        self.cache.plan(len(chunk), self.device, row)
        layout = self._layout([chunk], len(chunk), row)
        watch, done, states = self._watchers.get(row), self.cache.lengths[row], dict.fromkeys(self._reads)
        with self._passing(), reading_prompt(prompt):
            ids, kept = torch.tensor([chunk.tokens], device=self.device), 0 if watch else 1
            logits = self._target.forward(self.cache, ids, layout, states, logits_to_keep=kept)
        if self._reads:
            self._read_states[row].append(torch.stack([each[0] for each in states.values() if each is not None], 1))
        self.cache.lengths[row] += len(chunk)
        if watch is not None:
            watch(logits[0], done)

    @torch.inference_mode()
    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        with self._passing():
            self._read_anew(trees)
            return self._score(trees)

    def _score(self, trees: Sequence[TokenTree]) -> Tensor:
        self._read_states = [[] for _ in trees]
        if (counts := self._packed(trees)) is not None:
            return self._score_packed(trees, counts)
        passes, cache = self._target.passes, self.cache
        if passes is not None and isinstance(cache, StaticCache) and self._begun is None:
            self._shape = cache.rows, rounded_width(self._pad(trees, cache.rows))
            return passes.score(cache, trees, self._shape[1], self._states)
        width = self._pad(trees, len(trees))
        if self._begun is not None:
            return self._go_on(trees, width)
        tokens, layout = self._plan(trees, width)
        return self._target.forward(self.cache, tokens, layout, self._states)

    @property
    def hidden_states(self) -> HuggingFaceSession:
        """See ``TargetSession``."""
        return self

    @property
    def ragged(self) -> bool:
        """See ``TargetSession``."""
        return self._target.runtime.ragged and not self.masked

    def _packed(self, trees: Sequence[TokenTree]) -> list[int] | None:
        """How many nodes of each row a packed pass has; None where it would save nothing, or other bits would come."""
        sizes = [len(tree) for tree in trees]
        total, certified = sum(sizes), True
        if total == max(sizes) * len(sizes) or self._begun is not None or not self.ragged:
            return None
        if self._exactness is not None:
            longest = max(self.cache.lengths)
            total, certified = self._exactness.width(1, total, longest, self.cache.capacity)
        own = self._target.runtime.own_attention(1, total)
        return fill(sizes, total) if certified and own else None

    def _score_packed(self, trees: Sequence[TokenTree], counts: Sequence[int]) -> Tensor:
        """A pass in which each row has so many nodes and no more."""
        self.cache.plan(max(counts), self.device)
        plan = tree_plan(trees, max(counts), self.cache.lengths).packed(counts)
        self._shape, self._exact_branches = (1, sum(counts)), self._target.runtime.exact_branches
        logits = self._target.forward(self.cache, *pack(trees, counts, plan), self._states)
        places = plan.places
        unpack_all(self._states, places)
        return unpack(logits, places)

    @torch.inference_mode()
    def descend(self, trees: Sequence[TokenTree], layer: int) -> Tensor:
        with self._passing():
            self._read_anew(trees)
            tokens, layout = self._plan(trees, self._pad(trees, len(trees)))
            hidden = self._target.lower(self.cache, tokens, layout, layer)
        self._begun = trees, layer, hidden
        return hidden

    def _go_on(self, trees: Sequence[TokenTree], width: int) -> Tensor:
        """The rest of a pass that was begun, over what is left of its trees."""
        assert self._begun is not None
        whole, layer, hidden = self._begun
        self._begun = None
        places = [tree.places_in(full) for tree, full in zip(trees, whole, strict=True)]
        self.cache.gather(places, range(layer))
        rest = hidden.new_zeros((len(trees), width, hidden.shape[-1]))
        for row, own in enumerate(places):
            rest[row, : len(own)] = hidden[row, list(own)]
        _, layout = self._plan(trees, width)
        return self._target.finish(self.cache, rest, layout, layer, self._states)

    def _pad(self, trees: Sequence[TokenTree], rows: int) -> int:
        """The width of a pass of so many rows over these trees."""
        width = max(len(tree) for tree in trees)
        if self._exactness is not None:
            longest = max(self.cache.lengths)
            width, certified = self._exactness.width(rows, width, longest, self.cache.capacity)
            self._bits = [bits and certified for bits in self._bits]
        return width

    def _plan(self, trees: Sequence[TokenTree], width: int) -> tuple[Tensor, Layout]:
        """The tokens of a pass and where they stand."""
        device = self._target.model.device
        self.cache.plan(width, device)
        tokens = torch.tensor([[*tree.tokens, *[PADDING] * (width - len(tree))] for tree in trees], device=device)
        layout = self._layout(trees, width)
        self._shape = len(trees), width
        self._exact_branches = layout.plan is not None and self._target.runtime.exact_branches
        return tokens, layout

    def tap(self, layers: Collection[int]) -> None:
        self._check(layers, len(self._target.layers))
        self._states.update(dict.fromkeys(layers))

    def tap_prompts(self, layers: Collection[int]) -> None:
        self._check(layers, len(self._target.layers) - 1)
        self._reads = tuple(sorted(set(layers)))

    def _check(self, layers: Collection[int], last: int) -> None:
        if unknown := [layer for layer in layers if not 0 <= layer <= last]:
            raise ValueError(f"cannot tap layer {unknown[0]} of a model of {len(self._target.layers)} layers")

    def prompt_states(self, row: int, layers: Sequence[int]) -> Tensor:
        read = self._read_states[row]
        if not read or not set(layers) <= set(self._reads):
            embeddings: Tensor = self._target.model.get_input_embeddings().weight
            return embeddings.new_empty((0, len(layers), embeddings.shape[-1]))
        return torch.cat(read)[:, [self._reads.index(layer) for layer in layers]]

    def states(self, layer: int) -> Tensor:
        kept = self._states.get(layer)
        if kept is None:
            raise ValueError(f"layer {layer} was not tapped before the last pass")
        return kept

    @torch.inference_mode()
    def branch(self, hidden: Tensor, layer: int, adapter: Adapter, rows: Sequence[int] | None = None) -> Tensor:
        if rows is None or len(rows) == len(self._bits):
            return self._branch(hidden, layer, adapter)
        if self._branches_ragged(hidden, layer, adapter):
            return self._branch_ragged(hidden, layer, adapter, rows)
        if len(rows) == 1 and not isinstance(self.cache, StaticCache):
            return self._branch(hidden, layer, adapter, rows[0])
        every = hidden.new_zeros((len(self._bits), *hidden.shape[1:]))
        every[list(rows)] = hidden
        return self._branch(every, layer, adapter)[list(rows)]

    def _branch(self, hidden: Tensor, layer: int, adapter: Adapter, row: int | None = None) -> Tensor:
        """Of every row, or of one."""
        nodes = hidden.shape[1]
        self.cache.plan(nodes, hidden.device, row)
        layout = self._layout([TokenTree.chain([PADDING] * nodes)] * len(hidden), nodes, row)
        with self._passing():
            final = self._target.upper(self.cache, hidden, layout, layer, adapter)
        # Not only for tidiness: a masked slot meets a weight of zero in a later pass, and zero times NaN is NaN.
        self.cache.erase(range(layer, len(self._target.layers)), nodes)
        return final

    def _branches_ragged(self, hidden: Tensor, layer: int, adapter: Adapter) -> bool:
        """Whether a branch of these nodes may leave out the other rows."""
        runtime, total = self._target.runtime, hidden.shape[0] * hidden.shape[1]
        return self.ragged and runtime.own_attention(1, total) and runtime.top(layer, adapter) is not None

    def _branch_ragged(self, hidden: Tensor, layer: int, adapter: Adapter, rows: Sequence[int]) -> Tensor:
        """Of some rows; the others have no node in the pass."""
        asked, nodes = list(rows), hidden.shape[1]
        counts = [nodes if row in rows else 0 for row in range(len(self._bits))]
        self.cache.plan(nodes, hidden.device)
        chains = [TokenTree.chain([PADDING] * nodes)] * len(counts)
        layout = planned(tree_plan(chains, nodes, self.cache.lengths).packed(counts))
        layout = replace(layout, positions=layout.positions[asked].view(1, -1))
        with self._passing():
            final = self._target.upper(self.cache, hidden.reshape(1, -1, hidden.shape[-1]), layout, layer, adapter)
        self.cache.erase(range(layer, len(self._target.layers)), nodes)
        return final.view_as(hidden)

    @torch.inference_mode()
    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        for row, path in enumerate(paths):
            if self._bits[row] and path[-1] != len(path) - 1:
                # A branch's nodes were not scored at the slots plain decoding has them at: another order of
                # summation, unless attention follows the paths.
                self._bits[row] = self._exact_branches
                self._branched[row].add((*self._shape, self.cache.capacity))
        for text, tree, path in zip(self._texts, self._trees, paths, strict=False):
            if text is not None:
                text.extend(tree.tokens[node] for node in path)
        self.cache.commit(paths)

    def _branches_agree(self, rows: int, width: int, capacity: int) -> bool:
        assert self._exactness is not None
        with self._target.lock:  # it may run passes of its own
            return self._exactness.branches(rows, width, capacity)

    def rollback(self, lengths: Sequence[int]) -> None:
        self.cache.rollback(lengths)
        self._texts = [text and text[:length] for text, length in zip(self._texts, lengths, strict=True)]

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        self.cache.keep(rows)
        self._bits = [self._bits[row] for row in rows]
        self._branched = [self._branched[row] for row in rows]
        self._texts = [self._texts[row] for row in rows]
        self._prompts, self._cached = ([each[row] for row in rows] for each in (self._prompts, self._cached))
        self._read_states = [self._read_states[row] for row in rows]

    @torch.inference_mode()
    def join(self, other: HuggingFaceSession) -> None:
        self.cache.join(other.cache)
        self._bits.extend(other._bits)
        self._branched.extend(other._branched)
        self._texts.extend(other._texts)
        self._prompts.extend(other._prompts)
        self._cached.extend(other._cached)
        self._read_states.extend([] for _ in other._cached)

    def _read_anew(self, trees: Sequence[TokenTree]) -> None:
        """Read the texts again that end where the model changes the rotations of all that it has read."""
        turn = self._target.rereads_at
        if turn is None:
            return
        self._trees = trees
        for row, text in enumerate(self._texts):
            if text is not None and len(text) >= turn:
                self._texts[row] = None
                self.cache.rollback([0 if each == row else length for each, length in enumerate(self.cache.lengths)])
                self._read_all(row, text)

    def _read_all(self, row: int, text: Sequence[int]) -> None:
        for start in range(0, len(text), self._chunk):
            self._read(row, text[start : start + self._chunk], len(text) + 1)

    def _layout(self, trees: Sequence[TokenTree], width: int, row: int | None = None) -> Layout:
        """Positions and visibility of every node; padding continues each row as a chain."""
        committed = self.cache.lengths if row is None else [self.cache.lengths[row]]
        plan = None if self.masked else self._target.runtime.plan(trees, width, committed)
        if plan is not None:  # it says what a mask would say, and nobody would read the mask
            return planned(plan)
        if all(tree.is_chain for tree in trees):
            return chain_layout(upload(committed, self.device), width, self.cache.reach)
        return lay_out(upload(block_rows(trees, width, committed), self.device), width, self.cache.reach)[1]
