"""What tells one base from another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from specstream.models.architecture.blocks import BlockTensor

SAMPLES = 64
"""Values of every matrix that are looked at."""


def fingerprint(model: Any) -> str:
    """What tells one base from another: a hash over every matrix' name and shape and some of its values.

    The values are rounded to bfloat16 first, so that a checkpoint has one fingerprint in float32 and in bfloat16. Any
    fine-tuning of the base changes it; to compute it costs milliseconds.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for name, weight in sorted(model.named_parameters(), key=lambda named: named[0]):
        if weight.ndim < 2:
            continue
        values = _samples(weight.detach()).to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(weight.shape)}{values.tolist()}".encode())
    return digest.hexdigest()[:16]


def _samples(weight: Tensor) -> Tensor:
    """Values at places that are evenly spread, ``[SAMPLES]``; of blocks, only those that they are in are read."""
    places = torch.linspace(0, weight.numel() - 1, SAMPLES, dtype=torch.float64).long()
    if isinstance(weight, BlockTensor):
        return weight.at(places)
    return weight.reshape(-1)[places.to(weight.device)]
