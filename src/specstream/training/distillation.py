"""How far a draft is from its target: the losses of distillation, by name.

They compare distributions over the target's top-k tokens and one class for all others. Tokens that the draft cannot
say are left out and a position counts with the mass of what is left: a draft is asked for the likeliest token it has,
and the less, the more the target wants one that it has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from specstream.training.teacher import Said

LEAST = 1e-6
"""Probabilities are at least so much inside logarithms."""


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
