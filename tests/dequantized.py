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
