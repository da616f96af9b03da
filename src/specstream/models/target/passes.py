"""The passes of one model: from tokens to logits, or a part of the way through its layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from specstream.core.ports import Adapter
from specstream.errors import UsageError
from specstream.models.architecture.families import Family
from specstream.models.architecture.hidden_states import States, decoder_layers, tapped
from specstream.models.architecture.partial_forward import entering, run_lower, run_upper
from specstream.models.architecture.view import Stamp, version_of
from specstream.models.cache import TreeCache
from specstream.models.invariance.widths import Exactness
from specstream.models.runtime.runtime import Runtime
from specstream.models.target.graphs import StaticPasses
from specstream.models.target.layout import Layout, masks


class ModelPasses:
    """What a session asks of its target; ``HuggingFaceTarget`` makes all of it, and anew when the model changes.

    Attributes:
        model: the user's.
        view: the modules that passes run on (``view.py``).
        revision: how many times the model was found to be another one.
        lock: held while a pass runs.
        exactness: the widths to pad to; None pads nothing.
        passes: of fixed shape, where the runtime has them.
        invariant: whether a token has the same keys and values, bit by bit, however wide the passes are that read it.
        long_after: the length behind which a text is rotated with the second of two sets of factors, if there are two.
        rereads_at: that length, if all of the text is read anew with them, as the model's own ``generate`` does.
    """

    model: Any
    view: Any
    family: Family
    runtime: Runtime
    revision: int
    lock: AbstractContextManager[Any]
    exactness: Exactness | None
    passes: StaticPasses | None
    vocab_size: int
    invariant: bool
    long_after: int | None
    rereads_at: int | None
    _stamp: Stamp | None
    _embedding: tuple[Any, ...]

    def require(self, revision: int) -> None:
        """Refuse to go on with what was begun with another model.

        Raises:
            UsageError: the model was changed meanwhile.
        """
        there = self._stamp is None or self._stamp.holds()
        if revision != self.revision or self._embedding_kind() != self._embedding or not there:
            raise UsageError("the model was changed while it generated; start the generation again")

    @property
    def weights(self) -> tuple[int, int]:
        """What stays equal as long as they do: the revision, and the changes in place, as far as those are counted."""
        return self.revision, sum(map(version_of, self.model.parameters()))

    def _embedding_kind(self) -> tuple[Any, ...]:
        weight = self.view.get_input_embeddings().weight
        return weight.shape, weight.dtype, weight.device

    @property
    def context_length(self) -> int | None:
        return self.family.context_length

    def forward(
        self,
        cache: TreeCache,
        tokens: Tensor,
        layout: Layout,
        states: States | None = None,
        *,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """One pass: ``tokens`` ``[rows, width]`` -> logits ``[rows, width, vocab]``.

        One that reads a prompt gives ``logits_to_keep``: of so many tokens, the last; 0 for all.

        The pass leaves in ``states`` what went into the layers that are its keys.
        """
        if self.runtime.whole is not None and layout.plan is not None and logits_to_keep is None:
            return self.runtime.whole(tokens, self._positions(layout), cache, layout.plan, states)
        arguments = self._arguments(cache, layout)
        if logits_to_keep is not None and self.family.takes_logits_to_keep:
            arguments["logits_to_keep"] = logits_to_keep
        with (
            self.runtime.kernels(layout.plan, states),
            self.family.key_positions(layout.key_positions),
            tapped(self.view, self.layers if states else (), states or {}, self.runtime.stacked(layout.plan)),
        ):
            logits: Tensor = self.view(input_ids=tokens, **arguments).logits
        return logits

    def upper(self, cache: TreeCache, hidden: Tensor, layout: Layout, layer: int, adapter: Adapter) -> Tensor:
        """A pass that begins at ``layer``; see ``HiddenStates.branch``."""
        arguments = self._arguments(cache, layout)
        top = None if layout.plan is None else self.runtime.top(layer, adapter)
        if top is not None and layout.plan is not None:
            return top(hidden, arguments["position_ids"], cache, layout.plan)
        with (
            self.runtime.adapted(layout.plan, layer, adapter),
            self.family.key_positions(layout.key_positions),
        ):
            return run_upper(self.view, self.layers, layer, hidden, **arguments)

    def lower(self, cache: TreeCache, tokens: Tensor, layout: Layout, layer: int) -> Tensor:
        """A pass that ends before ``layer``: what goes into it, ``[rows, width, hidden]``."""
        with (
            self.runtime.partial(layout.plan, range(layer)),
            self.family.key_positions(layout.key_positions),
        ):
            return run_lower(self.view, self.layers, layer, tokens, **self._arguments(cache, layout))

    def finish(self, cache: TreeCache, hidden: Tensor, layout: Layout, layer: int, states: States) -> Tensor:
        """The rest of such a pass: logits ``[rows, width, vocab]``."""
        above = {each: kept for each, kept in states.items() if each > layer}
        nothing = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        with (
            self.runtime.partial(layout.plan, range(layer, len(self.layers)), above),
            self.family.key_positions(layout.key_positions),
            tapped(self.view, self.layers, above, self.runtime.stacked(layout.plan)),
            entering(self.layers, layer, hidden),
        ):
            logits: Tensor = self.view(input_ids=nothing, **self._arguments(cache, layout)).logits
        states.update({**above, layer: hidden})
        return logits

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The decoder layers that passes run through."""
        return decoder_layers(self.view)

    def _arguments(self, cache: TreeCache, layout: Layout) -> dict[str, Any]:
        """What the model's forward takes besides the tokens."""
        arguments: dict[str, Any] = {
            "attention_mask": masks(layout, self.family.windows, self.model.dtype) if layout.plan is None else None,
            self.family.cache_argument: cache,
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
