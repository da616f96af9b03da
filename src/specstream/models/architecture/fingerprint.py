"""What tells one base from another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

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
        flat = weight.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, SAMPLES, dtype=torch.float64).long()
        values = flat[places.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(weight.shape)}{values.tolist()}".encode())
    return digest.hexdigest()[:16]
