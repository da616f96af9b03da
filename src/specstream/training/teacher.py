"""What the frozen target says at every token of an example, in top-k form, computed once and kept on disk.

Of a distribution over the vocabulary the likeliest ``top_k`` tokens are kept, with the mass of all others beside them:
some hundred bytes a token, where the logits are some hundred kilobytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specstream.models.architecture.fingerprint import fingerprint
from specstream.training.data import Batch
from specstream.training.hidden_state_cache import HiddenStateCache


@dataclass(frozen=True, kw_only=True)
class Said:
    """The target's distributions at the positions to be predicted of a batch, row by row.

    Attributes:
        tokens: ``[positions, top_k]`` int64, the likeliest first.
        probabilities: theirs, ``[positions, top_k]`` float32.
        softened: theirs at the temperature, likewise.
        rest: ``[positions]`` float32: the mass of all other tokens at the temperature.
    """

    tokens: Tensor
    probabilities: Tensor
    softened: Tensor
    rest: Tensor


class Teacher:
    """A frozen target that is asked what it says.

    Args:
        model: the target.
        top_k: tokens of a distribution that are kept; at most all there are.
        temperature: of the softened distributions.
        folder: keeps what was computed; None computes it each time.
    """

    def __init__(self, model: Any, *, top_k: int, temperature: float = 1.0, folder: str | None = None) -> None:
        self._model, self._temperature = model, temperature
        self._top_k = min(top_k, int(model.get_output_embeddings().weight.shape[0]))
        identity = f"{fingerprint(model)}/{model.dtype}/top {self._top_k} at {temperature}"
        self._kept = HiddenStateCache(folder, identity)

    def says(self, batch: Batch) -> Said:
        """Its distributions wherever the batch has a token to be predicted."""
        parts: dict[str, list[Tensor]] = {"tokens": [], "logs": [], "sums": []}
        for row, length in enumerate(batch.lengths):
            tokens, wanted = batch.tokens[row, :length], batch.mask[row, 1:length]
            found = self._kept.row(tokens, self._read)
            for name, part in parts.items():
                part.append(found[name][0, :-1][wanted])
        tokens, logs, sums = (torch.cat(part) for part in parts.values())
        softened = (logs.float() / self._temperature - sums[:, :1].float()).exp()
        rest = sums[:, 1].float()
        whole = softened.sum(-1) + rest  # not quite 1 where they were rounded
        return Said(
            tokens=tokens.long(),
            probabilities=logs.float().exp(),
            softened=softened / whole[:, None],
            rest=rest / whole,
        )

    @torch.no_grad()
    def _read(self, tokens: Tensor) -> dict[str, Tensor]:
        """``[1, length]`` -> ids, logarithms at temperature 1, and of the softened one the normaliser and the rest."""
        logits = self._model(input_ids=tokens, use_cache=False).logits.float()
        total = logits.logsumexp(-1, keepdim=True)  # as few looks at the whole vocabulary as there can be
        top = logits.topk(self._top_k)
        logs, normaliser = top.values - total, torch.zeros_like(total)
        if self._temperature != 1:
            normaliser = (logits / self._temperature).logsumexp(-1, keepdim=True) - total / self._temperature
        named = (logs / self._temperature - normaliser).exp().sum(-1, keepdim=True)
        sums = torch.cat([normaliser, (1 - named).clamp_min(0)], -1)
        return {"tokens": top.indices.int(), "logs": logs, "sums": sums}
