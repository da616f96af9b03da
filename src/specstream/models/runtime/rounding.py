"""Floating-point weights as integers of eight or four bits, with a scale for each 32 neighbours.

The groups are those of GGUF's Q8_0 and Q4_1, and compressed-tensors allows them, so they run on our kernels and
stand in a checkpoint. A zero point is an integer too, as compressed-tensors has it.
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
"""What rounding and packing make between of so many stays in the cache."""


@dataclass(frozen=True)
class Integers:
    """A weight is ``scales * (numbers - zeros)``, in groups of 32 of an output.

    Attributes:
        numbers: ``[outputs, inputs]``, inputs padded with zero weights to whole groups. Eight bits: int8 from -127 to
            127. Four bits: uint8 from 0 to 15.
        scales: ``[outputs, groups]`` float16.
        zeros: ``[outputs, groups]`` uint8 from 0 to 15; None for eight bits, where it is 0.
    """

    numbers: Tensor
    scales: Tensor
    zeros: Tensor | None

    def weights(self) -> Tensor:
        """What they stand for, ``[outputs, inputs]`` float32, padding included."""
        numbers = self.numbers.float().view(*self.scales.shape, GROUP)
        if self.zeros is not None:
            numbers = numbers - self.zeros[..., None]
        return (numbers * self.scales.float()[..., None]).flatten(-2)


def rounded(weight: Tensor, bits: Literal["int8", "int4"]) -> Integers:
    """Integers for ``[outputs, inputs]`` floating-point weights; of four bits those of the least squared error."""
    outputs, inputs = weight.shape
    groups = -(-inputs // GROUP)
    numbers = torch.empty((outputs, groups * GROUP), dtype=torch.int8 if bits == "int8" else torch.uint8)
    scales = torch.empty((outputs, groups), dtype=torch.float16)
    zeros = None if bits == "int8" else torch.empty((outputs, groups), dtype=torch.uint8)
    together = max(1, WEIGHTS_AT_ONCE // inputs)
    for start in range(0, outputs, together):
        rows = slice(start, start + together)
        part = functional.pad(weight[rows].detach().float(), (0, groups * GROUP - inputs)).view(-1, groups, GROUP)
        found, scale, zero = _eight(part) if bits == "int8" else _four(part)
        numbers[rows], scales[rows] = found.flatten(-2), scale
        if zeros is not None:
            zeros[rows] = zero
    return Integers(numbers, scales, zeros)


_LEAST = torch.finfo(torch.float16).smallest_normal
"""No scale is smaller: float16 has fewer bits below."""


def _eight(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scales = (weights.abs().amax(-1) / 127).clamp_min(_LEAST).half()
    return (weights / scales.float()[..., None]).round_().clamp_(-127, 127), scales, torch.zeros(0)


def _four(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = weights.amin(-1).clamp_max(0), weights.amax(-1).clamp_min(0)
    best: tuple[Tensor, ...] | None = None
    for clipping in CLIPPINGS:
        scales = ((high - low) * (clipping / 15)).clamp_min(_LEAST).half()
        units = scales.float()[..., None]
        zeros = (-low[..., None] * clipping / units).round_().clamp_(0, 15)
        numbers = (weights / units).round_().add_(zeros).clamp_(0, 15)
        error = ((numbers - zeros) * units - weights).square_().sum(-1)
        tried = numbers, scales, zeros[..., 0], error
        if best is None:
            best = tried
            continue
        better = error < best[3]
        best = tuple(
            torch.where(better.view(*better.shape, *[1] * (new.dim() - 2)), new, old)
            for new, old in zip(tried, best, strict=True)
        )
    assert best is not None
    return best[0], best[1], best[2]
