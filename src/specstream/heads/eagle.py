"""An EAGLE-3 head that others trained: one decoder layer drafts token by token, from states of three of the target's.

After Li et al., "EAGLE-3" (arXiv 2503.01840). What goes into some of the target's layers (the taps) at a position is
made one state by ``fc``. The layer reads it beside the embedding of the token behind the position, sees all positions
before, and its output says the token after that. Drafting goes on with that output in place of the target's states.
Folders: ``published.py``; the authors call the layer ``midlayer``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specstream.errors import UnsupportedModelError
from specstream.heads.published import GAMMA, Layer, Memory, PublishedHead, depth_of, settings_of
from specstream.models.architecture.hidden_states import decoder_layers

KIND = "eagle3"

NORMS = {
    "token_norm": "input_layernorm",
    "state_norm": "hidden_norm",
    "mlp_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm?",
    "key_norm": "self_attn.k_norm?",
}


class EagleHead(PublishedHead):
    """The head; see ``PublishedHead`` for the errors.

    Args:
        model: its base.
        folder: of the head, or a hub id.

    Attributes:
        gamma: the deepest draft.
    """

    kind = KIND
    layer: Layer

    def __init__(self, model: Any, folder: str | Path) -> None:
        settings, inner = settings_of(folder, KIND, ("fc_norm",))
        if (count := int(inner.get("num_hidden_layers", 1))) != 1:
            raise UnsupportedModelError(f"the head in {str(folder)!r} has {count} layers; give one of one layer")
        self._before, self._normed = bool(settings.get("norm_before_residual")), bool(settings.get("norm_output"))
        written = settings.get("eagle_config") or {}
        taps = settings.get("eagle_aux_hidden_state_layer_ids") or written.get("eagle_aux_hidden_state_layer_ids")
        layers = len(decoder_layers(model))  # the authors' choice, and vLLM's where none is written
        super().__init__(model, folder, taps or (2, layers // 2, layers - 3), inner, NORMS)
        self.gamma = depth_of(settings, GAMMA)

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any) -> EagleHead:
        """The head in a folder, for this model."""
        return cls(model, folder)

    def take_rest(self, left: dict[str, Tensor]) -> None:
        self._take_norm(self, "taps_norm", left, "input_norm?")

    def combined(self, states: Tensor) -> Tensor:
        """One state of those at the taps: ``[n, taps, hidden]`` -> ``[n, width]``, float32."""
        joined, norm = states.float().flatten(1), getattr(self, "taps_norm", None)
        return self.run(self.combine, joined if norm is None else norm(joined))

    def step(self, hidden: Tensor, tokens: Tensor, positions: Tensor, memories: Sequence[tuple[Memory, int]]) -> Tensor:
        """The layer over nodes of several rows, one row behind the other.

        Args:
            hidden: of each node, ``combined`` or what ``fed_back`` makes of an output: ``[n, width]``.
            tokens: the token behind each, ``[n]`` int64.
            positions: ``[n]`` int64.
            memories: of each row, and how many of the nodes are its; they are appended.

        Returns:
            Outputs ``[n, width]``, not normed.
        """
        layer: Any = self.layers[0]
        normed = layer.state_norm(hidden)
        residual = normed if self._before else hidden
        x = torch.cat([layer.token_norm(self.embedded(tokens)), normed], -1)
        query, key, value = (self.parted(self.run(each, x)) for each in (layer.query, layer.key, layer.value))
        query, key = (
            self.turned(layer.norm(name, each), positions) for name, each in (("query_norm", query), ("key_norm", key))
        )
        counts, seen = [count for _, count in memories], list[Tensor]()
        parts = zip(memories, *(torch.split(each, counts) for each in (query, key, value)), strict=True)
        for (memory, _), *own in parts:
            memory.append(*own[1:])
            seen.append(memory.attend(own[0], causal=True))
        hidden = residual + self.run(layer.output, torch.cat(seen))
        return hidden + self.mlp(layer, layer.mlp_norm(hidden))

    def logits(self, output: Tensor) -> Tensor:
        """Over the tokens of ``vocabulary``: ``[n, width]`` -> ``[n, drafted]``, float32."""
        return self.logits_of(output)

    def fed_back(self, output: Tensor) -> Tensor:
        """What the next step reads in place of the target's states."""
        fed: Tensor = self.final_norm(output) if self._normed else output
        return fed
