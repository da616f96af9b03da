"""Floating-point weights as integers of eight or four bits for a checkpoint, with a scale for each 32 neighbours.

The groups are those of GGUF's Q8_0 and Q4_1, and compressed-tensors allows them, so they run on our kernels. Here four
bits have an integer zero point; what is rounded for the kernels alone (``kernels/packing.cpp``) has any least weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 32
"""Neighbours with a scale in common."""

CLIPPINGS = (1.0, 0.9, 0.8)
"""Shares of a group's range that its scale may cover: the small weights gain what the largest lose."""

WEIGHTS_AT_ONCE = 1 << 20
"""What rounding makes between of so many stays in the cache."""


@dataclass(frozen=True)
class Integers:
    """A weight is ``scales * (numbers - zeros)``, in groups of 32 of an output.

    Attributes:
        numbers: ``[outputs, inputs]``, inputs padded with zero weights to whole groups. Eight bits: int8 from -127 to
            127. Four bits: uint8 from 0 to 15.
        scales: ``[outputs, groups]`` float16.
        zeros: ``[outputs, groups]`` uint8 from 0 to 15; None for eight bits, where they are 0.
    """

    numbers: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    def weights(self) -> Tensor:
        """What they stand for, ``[outputs, inputs]`` float32, padding included."""
        numbers = self.numbers.float().view(*self.scales.shape, GROUP)
        return (
            self.scales.float()[..., None] * (numbers - (0 if self.zeros is None else self.zeros[..., None]))
        ).flatten(-2)


def rounded(weight: Tensor, bits: Literal["int8", "int4"], *, dtype: torch.dtype = torch.float16) -> Integers:
    """Integers for ``[outputs, inputs]`` floating-point weights; of four bits those of the least squared error.

    Args:
        weight: the weights.
        bits: of each.
        dtype: scales are numbers of this dtype too, as others keep them in that of the model.
    """
    outputs, inputs = weight.shape
    groups = -(-inputs // GROUP)
    numbers = torch.empty((outputs, groups * GROUP), dtype=torch.int8 if bits == "int8" else torch.uint8)
    scales = torch.empty((outputs, groups), dtype=torch.float16)
    zeros = None if bits == "int8" else torch.empty((outputs, groups), dtype=torch.uint8)
    together = max(1, WEIGHTS_AT_ONCE // inputs)
    for start in range(0, outputs, together):
        rows = slice(start, start + together)
        part = functional.pad(weight[rows].detach().float(), (0, groups * GROUP - inputs)).view(-1, groups, GROUP)
        if zeros is None:
            found, scales[rows] = _eight(part, dtype)
        else:
            found, scales[rows], zeros[rows] = _four(part, dtype)
        numbers[rows] = found.flatten(-2)
    return Integers(numbers, scales, zeros)


_LEAST = torch.finfo(torch.float16).smallest_normal
"""No scale is smaller: float16 has fewer bits below."""


def _eight(weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scales = _scales(weights.abs().amax(-1) / 127, dtype)
    return (weights / scales.float()[..., None]).round_().clamp_(-127, 127), scales


def _four(weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    low, high = weights.amin(-1).clamp_max(0), weights.amax(-1).clamp_min(0)  # 0 is a number
    best = list[Tensor]()
    for clipping in CLIPPINGS:
        scales = _scales((high - low) * (clipping / 15), dtype)
        units = scales.float()
        zeros = (-low * clipping / units).round_().clamp_(0, 15)
        below = -units * zeros
        numbers = ((weights - below[..., None]) / units[..., None]).round_().clamp_(0, 15)
        error = (numbers * units[..., None] + below[..., None] - weights).square_().sum(-1)
        tried = [numbers, scales, zeros, error]
        better = error < best[3] if best else torch.ones_like(error, dtype=torch.bool)
        best = [_either(better, *pair) for pair in zip(tried, best or tried, strict=True)]
    return best[0], best[1], best[2]


def _scales(wanted: Tensor, dtype: torch.dtype) -> Tensor:
    return wanted.clamp_min(_LEAST).to(dtype).half()


def _either(choice: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(choice[..., None] if new.dim() > choice.dim() else choice, new, old)
