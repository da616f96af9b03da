"""Learning from what the frozen target says: its distributions in top-k form, and how far a draft is from them.

Of a distribution over the vocabulary the likeliest ``top_k`` tokens are kept, with the mass of all others beside them:
some hundred bytes a token, where the logits are some hundred kilobytes. They are computed once and kept on disk.

The losses compare distributions over those tokens and one class for all others. Tokens that the draft cannot say are
left out and a position counts with the mass of what is left: a draft is asked for the likeliest token it has, and the
less, the more the target wants one that it has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specstream.models.architecture.fingerprint import fingerprint
from specstream.training.data import Batch
from specstream.training.hidden_state_cache import HiddenStateCache

LEAST = 1e-6
"""Probabilities are at least so much inside logarithms."""


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
        most_gb: that the folder holds at most; None is no limit.
    """

    def __init__(
        self,
        model: Any,
        *,
        top_k: int,
        temperature: float = 1.0,
        folder: str | None = None,
        most_gb: float | None = None,
    ) -> None:
        self._model, self._temperature = model, temperature
        self._top_k = min(top_k, int(model.get_output_embeddings().weight.shape[0]))
        identity = f"{fingerprint(model)}/{model.dtype}/top {self._top_k} at {temperature}"
        self._kept = HiddenStateCache(folder, identity, most_gb)

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


def distance(name: str, logits: Tensor, said: Said, places: Tensor, temperature: float) -> Tensor:
    """The mean distance of a draft from its target, a scalar with its graph.

    Args:
        name: a key of ``LOSSES``.
        logits: the draft's, ``[positions, size]``.
        said: the target's distributions there.
        places: where the draft's logits have the target's top-k tokens, ``[positions, top_k]`` int64; -1 for nowhere.
        temperature: that of ``said``; the distance is scaled by its square, so that gradients keep their size.
    """
    inside = places >= 0
    logs = (logits.float() / temperature).log_softmax(-1).gather(1, places.clamp_min(0))
    q = torch.where(inside, logs.exp(), 0.0)
    q = torch.cat([q, (1 - q.sum(-1, keepdim=True)).clamp_min(LEAST)], -1)
    p = torch.cat([torch.where(inside, said.softened, 0.0), said.rest[:, None]], -1)
    return LOSSES[name](p, q).mean() * temperature**2


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(target || draft): the draft has to cover all that the target says."""
    mass = p.sum(-1, keepdim=True).clamp_min(LEAST)
    return (p * (_log(p / mass) - _log(q))).sum(-1)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(draft || target): the draft has to say nothing that the target does not."""
    mass = p.sum(-1, keepdim=True).clamp_min(LEAST)
    return mass[:, 0] * (q * (_log(q) - _log(p / mass))).sum(-1)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence: the mean of both to the mixture of the two."""
    mass = p.sum(-1, keepdim=True).clamp_min(LEAST)
    share = p / mass
    mixture = _log((share + q) / 2)
    return mass[:, 0] * ((share * (_log(share) - mixture)).sum(-1) + (q * (_log(q) - mixture)).sum(-1)) / 2


def tv(p: Tensor, q: Tensor) -> Tensor:
    """Total variation: what is missing from the acceptance rate, the sum of min(p, q)."""
    return p.sum(-1) - torch.minimum(p, q).sum(-1)


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(LEAST).log()


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "tv": tv,
}
