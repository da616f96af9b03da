"""A Hugging Face causal language model as a target: tree masks, positions, one forward pass per round."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from specstream.core.deferred import upload
from specstream.core.ports import Adapter, TargetSession
from specstream.core.tree import TokenTree
from specstream.models.cache import PADDING, TreeCache
from specstream.models.exactness import Exactness
from specstream.models.families import describe
from specstream.models.graphs import CudaCapture, StaticCache, StaticPasses, rounded_width
from specstream.models.layout import Layout, block_rows, chain_layout, lay_out, planned
from specstream.models.runtime import Quantization, Runtime, RuntimeName
from specstream.models.selftest import check_tree
from specstream.models.taps import States, decoder_layers, tapped
from specstream.models.upper import entering, run_lower, run_upper
from specstream.models.verdicts import Verdicts, once, verdicts_of

PREFILL_CHUNK = 512
"""Prompt tokens per pass: bounds the memory of the mask and of the activations."""


class HuggingFaceTarget:
    """Any decoder-only transformers model, unmodified.

    Args:
        model: a ``PreTrainedModel`` with a language-model head, in eval mode.
        runtime: how passes run; see ``Runtime``.
        exact: find, by a self-test before the first pass, the widths whose rows are bit-equal, and pad narrower
            passes up to them. False pads nothing (a draft's bits do not matter), nor does a mixture of experts.
        quantization: see ``Runtime``; for drafts.

    Raises:
        UnsupportedModelError: a model whose cache or attention cannot carry token trees.
    """

    def __init__(
        self, model: Any, *, runtime: RuntimeName = "auto", exact: bool = True, quantization: Quantization = "none"
    ) -> None:
        self.family = describe(model)
        self.model = model
        self.runtime = Runtime(model, runtime, self.family.layer_windows, quantization)
        self.vocab_size = int(model.get_input_embeddings().num_embeddings)
        self.exactness = self._exactness() if exact and not self.family.routed else None
        self.passes = self._static_passes() if self.runtime.static else None
        self._checked = False

    @property
    def context_length(self) -> int | None:
        return self.family.context_length

    def prepare(self, rows: int = 1, nodes: int = 0) -> None:
        """Run the self-tests, if they have not run yet; ``begin`` does so too.

        Args:
            rows: sequences of the batch to come.
            nodes: tokens of its largest tree. Shapes beyond these are tried when they first occur.

        Raises:
            UnsupportedModelError: the model does not follow a tree's mask and positions.
        """
        if not self._checked:
            once(self._verdicts, "tree", lambda: check_tree(self))
            self._checked = True
        if self.exactness is not None:
            self.exactness.calibrate(nodes)
            self.exactness.certify(rows, nodes)

    def begin(self, prefixes: Sequence[Sequence[int]]) -> HuggingFaceSession:
        """See ``Target.begin``."""
        self.prepare()
        return HuggingFaceSession(self, prefixes, self.exactness)

    def begin_beside(self, session: TargetSession, prefixes: Sequence[Sequence[int]]) -> HuggingFaceSession:
        """The same, with a copy of what a session over these prefixes holds, if that runs this very model.

        A copy in fewer bits that drafts for its model need not read prompts anew: the model's own keys and values are
        what its own come near to.
        """
        if not isinstance(session, HuggingFaceSession) or session._target.model is not self.model:
            return self.begin(prefixes)
        if self.passes is not None or session.cache.lengths != [len(prefix) for prefix in prefixes]:
            return self.begin(prefixes)
        self.prepare()
        return session.copy(self)

    def begin_unpadded(self, prefixes: Sequence[Sequence[int]], *, masked: bool = False) -> HuggingFaceSession:
        """The same without the self-tests and without padding; ``masked``: through the model's own attention only."""
        return HuggingFaceSession(self, prefixes, None, masked=masked)

    def forward(
        self,
        cache: TreeCache,
        tokens: Tensor,
        layout: Layout,
        states: States | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """One pass: ``tokens`` ``[rows, width]`` -> logits ``[rows, width, vocab]`` (``width`` 1 if ``last_only``).

        The pass leaves in ``states`` what went into the layers that are its keys.
        """
        whole = None if last_only else self.runtime.whole(layout.plan)
        if whole is not None and layout.plan is not None:
            return whole(tokens, self._positions(layout), cache, layout.plan, states)
        arguments = self._arguments(cache, layout)
        if last_only and self.family.takes_logits_to_keep:
            arguments["logits_to_keep"] = 1
        with (
            self.runtime.kernels(layout.plan, states),
            self.family.key_positions(layout.key_positions),
            tapped(self.model, self.layers if states else (), states or {}, self.runtime.stacked(layout.plan)),
        ):
            logits: Tensor = self.model(input_ids=tokens, **arguments).logits
        return logits

    def upper(self, cache: TreeCache, hidden: Tensor, layout: Layout, layer: int, adapter: Adapter) -> Tensor:
        """A pass that begins at ``layer``; see ``TargetSession.branch``."""
        arguments = self._arguments(cache, layout)
        top = None if layout.plan is None else self.runtime.top(layer, adapter)
        if top is not None and layout.plan is not None:
            return top(hidden, arguments["position_ids"], cache, layout.plan)
        with (
            self.runtime.adapted(layout.plan, layer, adapter),
            self.family.key_positions(layout.key_positions),
        ):
            return run_upper(self.model, self.layers, layer, hidden, **arguments)

    def lower(self, cache: TreeCache, tokens: Tensor, layout: Layout, layer: int) -> Tensor:
        """A pass that ends before ``layer``: what goes into it, ``[rows, width, hidden]``."""
        with (
            self.runtime.partial(layout.plan, range(layer)),
            self.family.key_positions(layout.key_positions),
        ):
            return run_lower(self.model, self.layers, layer, tokens, **self._arguments(cache, layout))

    def finish(self, cache: TreeCache, hidden: Tensor, layout: Layout, layer: int, states: States) -> Tensor:
        """The rest of such a pass: logits ``[rows, width, vocab]``."""
        above = {each: kept for each, kept in states.items() if each > layer}
        nothing = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        with (
            self.runtime.partial(layout.plan, range(layer, len(self.layers)), above),
            self.family.key_positions(layout.key_positions),
            tapped(self.model, self.layers, above, self.runtime.stacked(layout.plan)),
            entering(self.layers, layer, hidden),
        ):
            logits: Tensor = self.model(input_ids=nothing, **self._arguments(cache, layout)).logits
        states.update({**above, layer: hidden})
        return logits

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The model's decoder layers."""
        return decoder_layers(self.model)

    def _arguments(self, cache: TreeCache, layout: Layout) -> dict[str, Any]:
        """What the model's forward takes besides the tokens."""
        arguments: dict[str, Any] = {
            "attention_mask": self._masks(layout) if layout.plan is None else None,
            "past_key_values": cache,
            "use_cache": True,
        }
        if self.family.takes_positions:
            arguments["position_ids"] = self._positions(layout)
        return arguments

    def _positions(self, layout: Layout) -> Tensor:
        """Padding may stand beyond the last position; it is never read."""
        if self.context_length is None:
            return layout.positions
        return layout.positions.clamp(max=self.context_length - 1)

    def cache(self, prefixes: Sequence[Sequence[int]]) -> TreeCache:
        """An empty cache for a batch of these."""
        if self.passes is None or not prefixes:
            return TreeCache(len(prefixes))
        return self.passes.cache(len(prefixes), max(map(len, prefixes)))

    def _static_passes(self) -> StaticPasses:
        capture = CudaCapture(self.model.device) if self.runtime.name == "graphs" else None
        return StaticPasses(self.forward, self.model.device, capture, self.runtime.uncaptured)

    @cached_property
    def _verdicts(self) -> Verdicts | None:
        """What earlier self-tests found, opened with the first. Quantised, what tells the model from others is gone."""
        return None if self.runtime.quantized else verdicts_of(self.model, self.runtime.name)

    def _exactness(self) -> Exactness:
        text = self.model.config.get_text_config(decoder=True)
        return Exactness(
            self.begin_unpadded,
            self.vocab_size,
            self.context_length,
            dtype=self.model.dtype,
            activations=text.num_hidden_layers * text.hidden_size,
            simple=self.runtime.own_attention,
            alike=self.runtime.alike,
            one_width=self.runtime.static,
            verdicts=lambda: self._verdicts,
        )

    def _masks(self, layout: Layout) -> Tensor | dict[str | None, Tensor]:
        """Additive masks ``[rows, 1, width, reach]``, one for each kind of attention the family has."""
        distance = layout.positions[:, :, None] - layout.key_positions[:, None, :]
        masks: dict[str | None, Tensor] = {}
        for kind, window in self.family.windows.items():
            visible = layout.visible if window is None else layout.visible & (distance < window)
            mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=self.model.device)
            masks[kind] = mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)[:, None]
        return masks.get(None, masks)


class HuggingFaceSession:
    """A batch at work; see ``TargetSession``."""

    def __init__(
        self,
        target: HuggingFaceTarget,
        prefixes: Sequence[Sequence[int]],
        exactness: Exactness | None,
        *,
        masked: bool = False,
    ) -> None:
        self._target = target
        self._exactness = exactness
        self._masked = masked
        self._bits = [exactness is not None] * len(prefixes)
        self._exact_branches = False  # whether the trees of the last pass could have the bits on every branch
        # Shapes of passes of which a row committed a branch, until it is known whether such passes have the bits.
        self._branched: list[set[tuple[int, int, int]]] = [set() for _ in prefixes]
        self._width = 0
        self._states: States = {}
        self._begun: tuple[Sequence[TokenTree], int, Tensor] | None = (
            None  # trees, as far as which layer, what is there
        )
        self.cache = target.cache(prefixes)
        for row, prefix in enumerate(prefixes):
            self._prefill(row, prefix)

    @torch.inference_mode()
    def fork(self, rows: int, length: int, capacity: int) -> HuggingFaceSession:
        """See ``ProbeSession.fork``."""
        copy = HuggingFaceSession(self._target, [], self._exactness, masked=self._masked)
        copy.cache = self.cache.fork(rows, length, capacity)
        copy._bits, copy._branched = [self._exactness is not None] * rows, [set() for _ in range(rows)]
        return copy

    @torch.inference_mode()
    def copy(self, target: HuggingFaceTarget) -> HuggingFaceSession:
        """A session of another target of the same model, at the same place in the text."""
        copy = HuggingFaceSession(target, [], target.exactness, masked=self._masked)
        copy.cache = self.cache.copy()
        copy._bits, copy._branched = [False] * len(self._bits), [set() for _ in self._bits]
        return copy

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        device: torch.device = self._target.model.device
        return device

    @property
    def exact(self) -> str:
        return "bits" if all(self.exact_of(row) == "bits" for row in range(len(self._bits))) else "rounding"

    def exact_of(self, row: int) -> str:
        # Here and not where they were committed: a self-test is no part of what a pass costs.
        self._bits[row] = self._bits[row] and all(self._branches_agree(*shape) for shape in self._branched[row])
        self._branched[row].clear()
        return "bits" if self._bits[row] else "rounding"

    @torch.inference_mode()
    def score(self, trees: Sequence[TokenTree]) -> Tensor:
        width = self._pad(trees)
        if self._begun is not None:
            return self._go_on(trees, width)
        passes = self._target.passes
        if passes is not None and isinstance(self.cache, StaticCache):
            self._width = rounded_width(width)
            return passes.score(self.cache, trees, self._width, self._states)
        tokens, layout = self._plan(trees, width)
        return self._target.forward(self.cache, tokens, layout, self._states)

    @torch.inference_mode()
    def descend(self, trees: Sequence[TokenTree], layer: int) -> Tensor:
        tokens, layout = self._plan(trees, self._pad(trees))
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

    def _pad(self, trees: Sequence[TokenTree]) -> int:
        """The width of a pass over these trees."""
        width = max(len(tree) for tree in trees)
        if self._exactness is not None:
            longest = max(self.cache.lengths)
            width, certified = self._exactness.width(len(trees), width, longest, self.cache.capacity)
            self._bits = [bits and certified for bits in self._bits]
        return width

    def _plan(self, trees: Sequence[TokenTree], width: int) -> tuple[Tensor, Layout]:
        """The tokens of a pass and where they stand."""
        device = self._target.model.device
        self.cache.plan(width, device)
        tokens = torch.tensor([[*tree.tokens, *[PADDING] * (width - len(tree))] for tree in trees], device=device)
        layout = self._layout(trees, width)
        self._width, self._exact_branches = width, layout.plan is not None and self._target.runtime.exact_branches
        return tokens, layout

    def tap(self, layers: Collection[int]) -> None:
        count = len(self._target.layers)
        if unknown := [layer for layer in layers if not 0 <= layer <= count]:
            raise ValueError(f"cannot tap layer {unknown[0]} of a model of {count} layers")
        self._states.update(dict.fromkeys(layers))

    def states(self, layer: int) -> Tensor:
        kept = self._states.get(layer)
        if kept is None:
            raise ValueError(f"layer {layer} was not tapped before the last pass")
        return kept

    @torch.inference_mode()
    def branch(self, hidden: Tensor, layer: int, adapter: Adapter) -> Tensor:
        nodes = hidden.shape[1]
        self.cache.plan(nodes, hidden.device)
        layout = self._layout([TokenTree.chain([PADDING] * nodes)] * len(hidden), nodes)
        final = self._target.upper(self.cache, hidden, layout, layer, adapter)
        # Not only for tidiness: a masked slot meets a weight of zero in a later pass, and zero times NaN is NaN.
        self.cache.erase(range(layer, len(self._target.layers)), nodes)
        return final

    @torch.inference_mode()
    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        for row, path in enumerate(paths):
            if self._bits[row] and path[-1] != len(path) - 1:
                # A branch's nodes were not scored at the slots plain decoding has them at: another order of
                # summation, unless attention follows the paths.
                self._bits[row] = self._exact_branches
                self._branched[row].add((len(paths), self._width, self.cache.capacity))
        self.cache.commit(paths)

    def _branches_agree(self, rows: int, width: int, capacity: int) -> bool:
        assert self._exactness is not None
        return self._exactness.branches(rows, width, capacity)

    def rollback(self, lengths: Sequence[int]) -> None:
        self.cache.rollback(lengths)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        self.cache.keep(rows)
        self._bits = [self._bits[row] for row in rows]
        self._branched = [self._branched[row] for row in rows]

    @torch.inference_mode()
    def join(self, other: HuggingFaceSession) -> None:
        self.cache.join(other.cache)
        self._bits.extend(other._bits)
        self._branched.extend(other._branched)

    @torch.inference_mode()
    def _prefill(self, row: int, prefix: Sequence[int]) -> None:
        """Row by row, so that a row's keys and values do not depend on its neighbours."""
        device = self._target.model.device
        for start in range(0, len(prefix), PREFILL_CHUNK):
            chunk = TokenTree.chain(prefix[start : start + PREFILL_CHUNK])
            self.cache.plan(len(chunk), device, row)
            layout = self._layout([chunk], len(chunk), row)
            self._target.forward(self.cache, torch.tensor([chunk.tokens], device=device), layout, last_only=True)
            self.cache.lengths[row] += len(chunk)

    def _layout(self, trees: Sequence[TokenTree], width: int, row: int | None = None) -> Layout:
        """Positions and visibility of every node; padding continues each row as a chain."""
        committed = self.cache.lengths if row is None else [self.cache.lengths[row]]
        plan = None if self._masked else self._target.runtime.plan(trees, width, committed)
        if plan is not None:  # it says what a mask would say, and nobody would read the mask
            return planned(plan)
        if all(tree.is_chain for tree in trees):
            return chain_layout(upload(committed, self.device), width, self.cache.reach)
        return lay_out(upload(block_rows(trees, width, committed), self.device), width, self.cache.reach)[1]
