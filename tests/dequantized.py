"""What quantised layers compute, in plain arithmetic: the reference of the kernels that read few bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specstream.models.runtime.quantized import QuantizedWeight, embed_from
from specstream.models.runtime.rounding import GROUP


def restored(weight: QuantizedWeight) -> Tensor:
    """The weight that this stands for, ``[outputs, inputs]`` float32."""
    if weight.scales is not None:
        return weight.values * weight.scales[:, None]
    return embed_from(weight, torch.float32)(torch.arange(weight.outputs))


def rounded_weight(weight: Tensor, bits: str) -> Tensor:
    """A weight as our kernels round it, ``[outputs, inputs]`` float32.

    Four bits: of the scales that cover all of a group's range, 0.9 and 0.8 of it, the one of the least squared error.
    """
    inputs = weight.shape[-1]
    groups = functional.pad(weight.float(), (0, -inputs % GROUP)).unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    tried = list[Tensor]()
    for share in (1.0, 0.9, 0.8) if bits == "int4" else (1.0,):
        levels = 15 if bits == "int4" else 127
        covered = (high - low) * (share / 15) if bits == "int4" else torch.maximum(high, -low) / 127
        scales = covered.clamp_min(torch.finfo(torch.float16).smallest_normal).half().float()
        least = (low + (high - low) * ((1 - share) / 2)).half().float() if bits == "int4" else torch.zeros_like(low)
        tried.append(((groups - least) / scales).round().clamp(0 if bits == "int4" else -127, levels) * scales + least)
    found = torch.stack(tried)
    best = (found - groups).square().sum(-1, keepdim=True).argmin(0, keepdim=True)
    return found.gather(0, best.expand(1, *groups.shape))[0].flatten(-2)[..., :inputs]


def rounded_input(x: Tensor) -> Tensor:
    """An input as our kernels round it, ``[rows, inputs]`` float32: to eight bits, with a scale for each 32.

    Groups whose largest number is 1.5 times what those of the row are in the mean square have fifteen.
    """
    inputs = x.shape[-1]
    groups = functional.pad(x.float(), (0, -inputs % GROUP)).unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    two = largest.square() > 2.25 * largest.square().mean(-2, keepdim=True)
    levels = torch.where(two, 127.0 * 128, 127.0)
    scaled = groups * torch.where(largest > 0, levels / largest, 0)
    whole = (scaled + torch.where(scaled < 0, -0.5, 0.5)).trunc()
    return (whole * (largest / levels)).flatten(-2)[..., :inputs]
