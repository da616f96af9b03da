"""GGUF blocks for our kernels: the same numbers and scales, in the order that vectors take them.

A block's weight is ``scale * q + least`` with an integer ``q`` of at most 8 bits, in every format here. What its bits
mean is the format's definition (ggml's ``ggml-common.h``); nothing is rounded: every weight keeps its value. The five
layouts and their order are described in ``kernels/blocks.h``. Numbers of two, three, five and six bits take a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

PART, SUPER = 64, 256
"""Weights of a part, the kernels' unit, and of a block of the K formats."""

WEIGHTS_AT_ONCE = 1 << 20
"""What quantising and packing make between of so many stays in the cache."""

_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Layout(IntEnum):
    """``enum Layout`` of the kernels."""

    NIBBLES32 = 0
    BYTES32 = 1
    BYTES_LEAST32 = 2
    NIBBLES_K = 3
    BYTES_K = 4


def pack(kind: str, blocks: Tensor, columns: int) -> tuple[Layout, Tensor]:
    """A matrix in the kernels' layout.

    Args:
        kind: the format, as ggml calls it; one of ``KINDS``.
        blocks: ``[outputs, bytes]`` uint8, as they stand in the file.
        columns: inputs of the matrix; a multiple of the format's block.

    Returns:
        The layout and ``[outputs, blocks, size]`` uint8.
    """
    layout, block, packed = KINDS[kind]
    rows, together = blocks.shape[0], max(1, WEIGHTS_AT_ONCE // columns)
    values = torch.empty(0, dtype=torch.uint8)
    for start in range(0, rows, together):
        some = blocks[start : start + together]
        part = packed(some.reshape(len(some), columns // block, -1))
        if not start:
            values = part.new_empty((rows, *part.shape[1:]))
        values[start : start + len(some)] = part
    return layout, values


def _split(bytes_: Tensor, width: int, shifts: range | tuple[int, ...], mask: int) -> Tensor:
    """Fields of a few bits: of each ``width`` neighbours those at the first shift, then those at the next."""
    amounts = torch.tensor(list(shifts), dtype=torch.uint8)[:, None]
    return ((bytes_.reshape(*bytes_.shape[:-1], -1, 1, width) >> amounts) & mask).flatten(-3)


def _halves(bytes_: Tensor) -> Tensor:
    return bytes_.contiguous().view(torch.float16)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _ordered(numbers: Tensor) -> Tensor:
    """``[.., n]`` -> ``[.., n / 64, 64]`` in the kernels' order; n is padded with zeros."""
    padded = functional.pad(numbers, (0, -numbers.shape[-1] % PART)).contiguous()
    pairs = padded.view(torch.int16).view(*numbers.shape[:-1], -1, 4, 8)  # one copy moves two numbers
    return pairs.transpose(-2, -1).flatten(-2).view(numbers.dtype)


def _paired(ordered: Tensor) -> Tensor:
    """Two numbers of four bits in a byte."""
    return ordered[..., : PART // 2] | (ordered[..., PART // 2 :] << 4)


def _by_part(values: Tensor) -> Tensor:
    """A value for each block of 32, ``[rows, blocks, 1]`` -> ``[rows, parts, 2]``."""
    flat = values.flatten(-2)
    return functional.pad(flat, (0, flat.shape[-1] % 2)).view(len(flat), -1, 2)


def _behind(parts: Tensor, least: Tensor) -> Tensor:
    """``[rows, parts, size]`` and, behind them in as many more of that size as they take, what is added to each 32."""
    size, leasts = parts.shape[-1], _bytes(_by_part(least)).flatten(-2)
    padded = functional.pad(leasts, (0, -leasts.shape[-1] % size))
    return torch.cat([parts, padded.view(len(parts), -1, size)], 1)


def _nibbles32(blocks: Tensor, *, offset: int) -> Tensor:
    scales, rest = _halves(blocks[..., :2]), blocks[..., 2:]
    if offset:
        least = scales * -offset
    else:
        least, rest = _halves(rest[..., :2]), rest[..., 2:]
    numbers = _ordered(_split(rest, 16, (0, 4), 15).flatten(-2))
    return _behind(torch.cat([_bytes(_by_part(scales)), _paired(numbers)], -1), least)


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibbles32(blocks, offset=8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles32(blocks, offset=0)


def _bytes32(scales: Tensor, numbers: Tensor) -> Tensor:
    return torch.cat([_bytes(_by_part(scales)), _bytes(_ordered(numbers.flatten(-2)))], -1)


def _five_bits(packed: Tensor) -> Tensor:
    """Four bytes of fifth bits, then the others."""
    return _split(packed[..., 4:], 16, (0, 4), 15) | (_split(packed[..., :4], 1, range(8), 1) << 4)


def _q5_0(blocks: Tensor) -> Tensor:
    return _bytes32(_halves(blocks[..., :2]), _five_bits(blocks[..., 2:]).view(torch.int8) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    parts = _bytes32(_halves(blocks[..., :2]), _five_bits(blocks[..., 4:]))
    return _behind(parts, _halves(blocks[..., 2:4]))


def _q8_0(blocks: Tensor) -> Tensor:
    return _bytes32(_halves(blocks[..., :2]), blocks[..., 2:])


def _iq4_nl(blocks: Tensor) -> Tensor:
    levels = torch.tensor(_IQ4_NL, dtype=torch.int8)
    return _bytes32(_halves(blocks[..., :2]), levels[_split(blocks[..., 2:], 16, (0, 4), 15).int()])


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and eight mins of six bits in the twelve bytes of Q4_K and Q5_K."""
    scales, mins, above = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    return (
        torch.cat([scales & 63, (above & 15) | ((scales >> 2) & 48)], -1),
        torch.cat([mins & 63, (above >> 4) | ((mins >> 2) & 48)], -1),
    )


def _q4_k(blocks: Tensor) -> Tensor:
    units, (scales, mins) = _halves(blocks[..., :4]), _six_bits(blocks[..., 4:16])
    numbers = _paired(_ordered(_split(blocks[..., 16:], 32, (0, 4), 15)))
    return torch.cat([_bytes(_signed(units)), scales, mins, numbers.flatten(-2)], -1)


def _signed(units: Tensor) -> Tensor:
    """What a min counts is taken off: scale and -min."""
    return torch.stack([units[..., 0], -units[..., 1]], -1)


def _bytes_k(units: Tensor, scales: Tensor, mins: Tensor | None, numbers: Tensor) -> Tensor:
    """Sixteen scales for 256 numbers, and sixteen mins; without these ``units`` is one."""
    if mins is None:
        units, mins = torch.cat([units, torch.zeros_like(units)], -1), _bytes(torch.zeros_like(scales))
    return torch.cat([_bytes(units), _bytes(scales), mins, _bytes(_ordered(numbers)).flatten(-2)], -1)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, numbers = blocks[..., :16], _split(blocks[..., 16:80], 32, (0, 2, 4, 6), 3)
    return _bytes_k(_signed(_halves(blocks[..., 80:])), scales & 15, scales >> 4, numbers)


def _q3_k(blocks: Tensor) -> Tensor:
    above, below, packed = blocks[..., :32], blocks[..., 32:96], blocks[..., 96:108]
    high = _split(above, 32, range(8), 1) << 2
    numbers = (_split(below, 32, (0, 2, 4, 6), 3) | high).view(torch.int8) - 4
    scales = _split(packed[..., :8], 8, (0, 4), 15) | (_split(packed[..., 8:], 4, (0, 2, 4, 6), 3) << 4)
    return _bytes_k(_halves(blocks[..., 108:]), scales.view(torch.int8) - 32, None, numbers)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, mins = (each.repeat_interleave(2, -1) for each in _six_bits(blocks[..., 4:16]))
    numbers = _split(blocks[..., 48:], 32, (0, 4), 15) | (_split(blocks[..., 16:48], 32, range(8), 1) << 4)
    return _bytes_k(_signed(_halves(blocks[..., :4])), scales, mins, numbers)


def _q6_k(blocks: Tensor) -> Tensor:
    below, above, scales = blocks[..., :128], blocks[..., 128:192], blocks[..., 192:208]
    numbers = _split(below, 64, (0, 4), 15) | (_split(above, 32, (0, 2, 4, 6), 3) << 4)
    return _bytes_k(_halves(blocks[..., 208:]), scales, None, numbers.view(torch.int8) - 32)


KINDS: Mapping[str, tuple[Layout, int, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {
        "Q4_0": (Layout.NIBBLES32, 32, _q4_0),
        "Q4_1": (Layout.NIBBLES32, 32, _q4_1),
        "Q5_0": (Layout.BYTES32, 32, _q5_0),
        "Q5_1": (Layout.BYTES_LEAST32, 32, _q5_1),
        "Q8_0": (Layout.BYTES32, 32, _q8_0),
        "IQ4_NL": (Layout.BYTES32, 32, _iq4_nl),
        "Q2_K": (Layout.BYTES_K, SUPER, _q2_k),
        "Q3_K": (Layout.BYTES_K, SUPER, _q3_k),
        "Q4_K": (Layout.NIBBLES_K, SUPER, _q4_k),
        "Q5_K": (Layout.BYTES_K, SUPER, _q5_k),
        "Q6_K": (Layout.BYTES_K, SUPER, _q6_k),
    }
)
"""The formats: their layout here, weights of a block, and what packs ``[rows, blocks, bytes]`` uint8."""
