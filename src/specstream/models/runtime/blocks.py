"""Weights of few bits for our kernels: the same numbers and scales, in the order that vectors take them.

A block's weight is ``scale * q + least`` with an integer ``q`` of at most 8 bits, in every format here. What its bits
mean is the format's definition (ggml's ``ggml-common.h``); nothing is rounded: every weight keeps its value. The six
layouts and their order are described in ``kernels/blocks.h``. Numbers of two, three, five and six bits take six.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from specstream.models.runtime.rounding import GROUP, WEIGHTS_AT_ONCE, Integers

TOGETHER, SUPER = 16, 256
"""Outputs that stand together, and weights of a block of the K formats."""

_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Layout(IntEnum):
    """``enum Layout`` of the kernels."""

    NIBBLES32 = 0
    SIXES32 = 1
    BYTES32 = 2
    NIBBLES_K = 3
    SIXES_K = 4
    SIXES_LEAST_K = 5


def pack(kind: str, blocks: Tensor, columns: int) -> tuple[Layout, Tensor]:
    """A matrix in the kernels' layout.

    Args:
        kind: the format, as ggml calls it; one of ``KINDS``.
        blocks: ``[outputs, bytes]`` uint8, as they stand in the file.
        columns: inputs of the matrix; a multiple of the format's block.

    Returns:
        The layout and ``[outputs / 16, blocks, size]`` uint8; outputs are padded to whole sixteens.
    """
    layout, block, fields = KINDS[kind]

    def packed(rows: slice) -> Tensor:
        some = blocks[rows]
        return _together(*fields(some.reshape(len(some), columns // block, -1)), layout)

    return layout, _in_parts(packed, len(blocks), columns)


def pack_integers(integers: Integers) -> tuple[Layout, Tensor]:
    """The same of weights that were rounded here."""
    leasts = integers.leasts
    layout = Layout.BYTES32 if leasts is None else Layout.NIBBLES32

    def packed(rows: slice) -> Tensor:
        numbers, scales = integers.numbers[rows], integers.scales[rows]
        halves = [scales] if leasts is None else [scales, leasts[rows]]
        return _together(halves, numbers.view(*scales.shape, GROUP), layout)

    return layout, _in_parts(packed, *integers.numbers.shape)


def _in_parts(packed: Callable[[slice], Tensor], rows: int, columns: int) -> Tensor:
    """What ``packed`` makes of all rows, some sixteens at a time, in memory that is made once."""
    together = max(1, WEIGHTS_AT_ONCE // columns // TOGETHER) * TOGETHER
    values = torch.empty(0, dtype=torch.uint8)
    for start in range(0, rows, together):
        part = packed(slice(start, start + together))
        if not start:
            values = part.new_empty((-(-rows // TOGETHER), *part.shape[1:]))
        values[start // TOGETHER : start // TOGETHER + len(part)] = part
    return values


def _together(scales: Sequence[Tensor], numbers: Tensor, layout: Layout) -> Tensor:
    """``[rows, blocks, ..]`` of each -> ``[rows / 16, blocks, size]`` uint8.

    Args:
        scales: what belongs to a block, ``[rows, blocks]`` or ``[rows, blocks, n]``, in the struct's order.
        numbers: ``[rows, blocks, 32 or 256]``; of four or six bits without a sign, uint8, otherwise int8.
        layout: of the struct.
    """
    fields = [_bytes(_sixteens(each.reshape(*numbers.shape[:2], -1, 1))) for each in scales]
    steps = _bytes(_sixteens(_fours(numbers)))
    if layout == Layout.BYTES32:
        fields.append(steps ^ 128)
    else:
        fields.append((steps[..., 0::2, :] & 15) | (steps[..., 1::2, :] << 4))
    if layout in (Layout.SIXES32, Layout.SIXES_K, Layout.SIXES_LEAST_K):
        fours = (steps >> 4).view(*steps.shape[:2], -1, 4, steps.shape[3]) << torch.tensor(
            [0, 2, 4, 6], dtype=torch.uint8
        )[:, None]
        fields.append(fours.sum(3, dtype=torch.uint8))
    return torch.cat([each.flatten(2) for each in fields], -1)


def _fours(numbers: Tensor) -> Tensor:
    """Four neighbours are moved as one: ``[rows, blocks, n]`` int8 -> ``[rows, blocks, n / 4, 1]`` int32."""
    return numbers.contiguous().view(torch.int32)[..., None]


def _sixteens(values: Tensor) -> Tensor:
    """``[rows, blocks, n, 1]`` -> ``[rows / 16, blocks, n, 16]``, rows padded with zeros."""
    padded = functional.pad(values, (0, 0, 0, 0, 0, 0, 0, -len(values) % TOGETHER))
    return padded.view(-1, TOGETHER, *values.shape[1:3]).permute(0, 2, 3, 1).contiguous()


def _split(bytes_: Tensor, width: int, shifts: range | tuple[int, ...], mask: int) -> Tensor:
    """Fields of a few bits: of each ``width`` neighbours those at the first shift, then those at the next."""
    amounts = torch.tensor(list(shifts), dtype=torch.uint8)[:, None]
    return ((bytes_.reshape(*bytes_.shape[:-1], -1, 1, width) >> amounts) & mask).flatten(-3)


def _halves(bytes_: Tensor) -> Tensor:
    return bytes_.contiguous().view(torch.float16)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


Fields = tuple[list[Tensor], Tensor]
"""Scales and numbers of blocks; see ``_together``."""


def _nibbles32(blocks: Tensor, *, offset: int) -> Fields:
    scales, rest = _halves(blocks[..., :2]), blocks[..., 2:]
    if offset:
        least = scales * -offset
    else:
        least, rest = _halves(rest[..., :2]), rest[..., 2:]
    return [scales, least], _nibbles(rest)


def _q4_0(blocks: Tensor) -> Fields:
    return _nibbles32(blocks, offset=8)


def _q4_1(blocks: Tensor) -> Fields:
    return _nibbles32(blocks, offset=0)


def _nibbles(packed: Tensor) -> Tensor:
    return _split(packed, 16, (0, 4), 15)


def _five_bits(packed: Tensor) -> Tensor:
    """Four bytes of fifth bits, then the others."""
    return _nibbles(packed[..., 4:]) | (_split(packed[..., :4], 1, range(8), 1) << 4)


def _q5_0(blocks: Tensor) -> Fields:
    scales = _halves(blocks[..., :2])
    return [scales, scales * -16], _five_bits(blocks[..., 2:])


def _q5_1(blocks: Tensor) -> Fields:
    return [_halves(blocks[..., :2]), _halves(blocks[..., 2:4])], _five_bits(blocks[..., 4:])


def _q8_0(blocks: Tensor) -> Fields:
    return [_halves(blocks[..., :2])], blocks[..., 2:].view(torch.int8)


def _iq4_nl(blocks: Tensor) -> Fields:
    levels = torch.tensor(_IQ4_NL, dtype=torch.int8)
    return [_halves(blocks[..., :2])], levels[_nibbles(blocks[..., 2:]).int()]


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and eight mins of six bits in the twelve bytes of Q4_K and Q5_K."""
    scales, mins, above = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    return (
        torch.cat([scales & 63, (above & 15) | ((scales >> 2) & 48)], -1),
        torch.cat([mins & 63, (above >> 4) | ((mins >> 2) & 48)], -1),
    )


def _with_mins(units: Tensor, scales: Tensor, mins: Tensor, numbers: Tensor) -> Fields:
    """What a min counts is taken off, so its unit is below zero."""
    unit, least = _halves(units).unbind(-1)
    return [unit, -least, scales, mins], numbers


def _q2_k(blocks: Tensor) -> Fields:
    scales, numbers = blocks[..., :16], _split(blocks[..., 16:80], 32, (0, 2, 4, 6), 3)
    return _with_mins(blocks[..., 80:], scales & 15, scales >> 4, numbers)


def _q3_k(blocks: Tensor) -> Fields:
    above, below, packed = blocks[..., :32], blocks[..., 32:96], blocks[..., 96:108]
    high = _split(above, 32, range(8), 1) << 2
    numbers = (_split(below, 32, (0, 2, 4, 6), 3) | high) + (32 - 4)
    scales = _split(packed[..., :8], 8, (0, 4), 15) | (_split(packed[..., 8:], 4, (0, 2, 4, 6), 3) << 4)
    return [_halves(blocks[..., 108:]), scales.view(torch.int8) - 32], numbers


def _q4_k(blocks: Tensor) -> Fields:
    return _with_mins(blocks[..., :4], *_six_bits(blocks[..., 4:16]), _split(blocks[..., 16:], 32, (0, 4), 15))


def _q5_k(blocks: Tensor) -> Fields:
    scales, mins = (each.repeat_interleave(2, -1) for each in _six_bits(blocks[..., 4:16]))
    numbers = _split(blocks[..., 48:], 32, (0, 4), 15) | (_split(blocks[..., 16:48], 32, range(8), 1) << 4)
    return _with_mins(blocks[..., :4], scales, mins, numbers)


def _q6_k(blocks: Tensor) -> Fields:
    below, above, scales = blocks[..., :128], blocks[..., 128:192], blocks[..., 192:208]
    numbers = _split(below, 64, (0, 4), 15) | (_split(above, 32, (0, 2, 4, 6), 3) << 4)
    return [_halves(blocks[..., 208:]), scales.view(torch.int8)], numbers


KINDS: Mapping[str, tuple[Layout, int, Callable[[Tensor], Fields]]] = MappingProxyType(
    {
        "Q4_0": (Layout.NIBBLES32, 32, _q4_0),
        "Q4_1": (Layout.NIBBLES32, 32, _q4_1),
        "Q5_0": (Layout.SIXES32, 32, _q5_0),
        "Q5_1": (Layout.SIXES32, 32, _q5_1),
        "Q8_0": (Layout.BYTES32, 32, _q8_0),
        "IQ4_NL": (Layout.BYTES32, 32, _iq4_nl),
        "Q2_K": (Layout.SIXES_LEAST_K, SUPER, _q2_k),
        "Q3_K": (Layout.SIXES_K, SUPER, _q3_k),
        "Q4_K": (Layout.NIBBLES_K, SUPER, _q4_k),
        "Q5_K": (Layout.SIXES_LEAST_K, SUPER, _q5_k),
        "Q6_K": (Layout.SIXES_K, SUPER, _q6_k),
    }
)
"""The formats: their layout here, weights of a block, and what reads ``[rows, blocks, bytes]`` uint8."""
