"""A DFlash head that others trained: some layers draft a whole block in one pass (arXiv 2602.06036).

What goes into some of the target's layers (the taps) at a position is made one state by ``fc`` and a norm, and each of
the head's layers makes a key and a value of it. A block is the last token and masks behind it. It sees all positions
before and itself, in both directions; the output at a mask says the token at its place. Folders: ``published.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.errors import UnsupportedModelError
from specstream.heads.published import Memory, PublishedHead, read_weights, settings_of

KIND = "dflash"

NORMS = {
    "input_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm?",
    "key_norm": "self_attn.k_norm?",
}


class DFlashHead(PublishedHead):
    """The head; see ``PublishedHead`` for the errors.

    Args:
        model: its base.
        folder: of the head, or a hub id.

    Attributes:
        gamma: the deepest draft.
    """

    kind = KIND
    state_norm: nn.Module

    def __init__(self, model: Any, folder: str | Path) -> None:
        settings, inner = settings_of(folder, KIND, ())
        authors = settings.get("dflash_config") or {}
        taps = settings.get("aux_hidden_state_layer_ids")
        if taps is None:  # the authors count the embedding's output as 0, and name outputs
            taps = [layer + 1 for layer in authors.get("target_layer_ids") or ()]
        mask, size = (settings.get(name, authors.get(name)) for name in ("mask_token_id", "block_size"))
        if not taps or mask is None or size is None:
            raise UnsupportedModelError(
                f"the head in {str(folder)!r} does not say its layers, its mask token or its block size; "
                "give another head"
            )
        self._mask, self._size = int(mask), int(size)
        self._first = 0 if settings.get("sample_from_anchor") else 1  # the first place of a block that drafts
        super().__init__(model, read_weights(folder), taps, inner, NORMS)
        self.gamma = self._size - self._first

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any) -> DFlashHead:
        """The head in a folder, for this model."""
        return cls(model, folder)

    def take_rest(self, left: dict[str, Tensor]) -> None:
        self._take_norm(self, "state_norm", left, "hidden_norm")

    def read(
        self, memories: Sequence[Sequence[Memory]], counts: Sequence[int], states: Tensor, positions: Tensor
    ) -> None:
        """Append keys and values of committed positions of several rows, one row behind the other.

        Args:
            memories: of each row, one for each layer.
            counts: positions of each row.
            states: at the taps, ``[n, taps, hidden]``.
            positions: ``[n]`` int64.
        """
        hidden = self.state_norm(self.run(self.combine, states.float().flatten(1)))
        for at, layer in enumerate(self.layers):
            pairs = zip(
                *(torch.split(each, list(counts)) for each in self._keys(layer, hidden, positions)), strict=True
            )
            for own, (key, value) in zip(memories, pairs, strict=True):
                own[at].append(key, value)

    def logits(self, roots: Tensor, positions: Tensor, memories: Sequence[Sequence[Memory]], depth: int) -> Tensor:
        """What blocks behind rows' last tokens draft, over the tokens of ``vocabulary``.

        Args:
            roots: the last token of each row, ``[rows]`` int64.
            positions: theirs, of the same shape.
            memories: of each row and layer: of all positions before; left as they are.
            depth: at most ``gamma``.

        Returns:
            ``[rows, depth, drafted]``, float32.
        """
        rows, size = len(roots), self._size  # a shorter block would be one that it was not trained on
        tokens = torch.cat([roots[:, None], roots.new_full((rows, size - 1), self._mask)], 1)
        places = (positions[:, None] + torch.arange(size, device=roots.device)).flatten()
        hidden = self.embedded(tokens.flatten())
        for at, layer in enumerate(self.layers):
            normed = layer.input_norm(hidden)  # type: ignore[operator]
            key, value = self._keys(layer, normed, places)
            query = self.turned(layer.norm("query_norm", self.parted(self.run(layer.query, normed))), places)  # type: ignore[operator,arg-type]
            seen = list[Tensor]()
            for own, *parts in zip(memories, *(torch.split(each, size) for each in (query, key, value)), strict=True):
                length = own[at].length
                own[at].append(*parts[1:])
                seen.append(own[at].attend(parts[0], causal=False))
                own[at].length = length
            hidden = hidden + self.run(layer.output, torch.cat(seen))  # type: ignore[arg-type]
            hidden = hidden + self.mlp(layer, layer.mlp_norm(hidden))  # type: ignore[operator,arg-type]
        drafting = torch.unflatten(hidden, 0, (rows, size))[:, self._first : self._first + depth]
        return self.logits_of(drafting)

    def _keys(self, layer: Any, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        key, value = (self.parted(self.run(each, hidden)) for each in (layer.key, layer.value))
        return self.turned(layer.norm("key_norm", key), positions), value
