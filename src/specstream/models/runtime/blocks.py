"""Weights of few bits for our kernels: numbers and scales in the order that vectors take them.

A block's weight is ``scale * q + least`` with an integer ``q`` of at most 8 bits, in every format here. What its bits
mean is the format's definition (ggml's ``ggml-common.h``); nothing is rounded: every weight keeps its value. The six
layouts and their order are described in ``kernels/blocks.h``. Numbers of two, three, five and six bits take six.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

import torch
from torch import Tensor

from specstream.models.runtime import native

TOGETHER, SUPER = 16, 256
"""Outputs that stand together, and weights of a block of the K formats."""


class Layout(IntEnum):
    """``enum Layout`` of the kernels."""

    NIBBLES32 = 0
    SIXES32 = 1
    BYTES32 = 2
    NIBBLES_K = 3
    SIXES_K = 4
    SIXES_LEAST_K = 5


KINDS: Mapping[str, Layout] = MappingProxyType(
    {
        "Q4_0": Layout.NIBBLES32,
        "Q4_1": Layout.NIBBLES32,
        "Q5_0": Layout.SIXES32,
        "Q5_1": Layout.SIXES32,
        "Q8_0": Layout.BYTES32,
        "IQ4_NL": Layout.BYTES32,
        "Q2_K": Layout.SIXES_LEAST_K,
        "Q3_K": Layout.SIXES_K,
        "Q4_K": Layout.NIBBLES_K,
        "Q5_K": Layout.SIXES_LEAST_K,
        "Q6_K": Layout.SIXES_K,
    }
)
"""The formats, as ggml calls them, and their layouts here."""

_NUMBERS = {kind: number for number, kind in enumerate([*KINDS, torch.float32, torch.bfloat16])}
"""``enum Kind`` of the kernels."""

_SIZES = {
    Layout.NIBBLES32: 64 + 32 * 8,
    Layout.SIXES32: 64 + 32 * 12,
    Layout.BYTES32: 32 + 32 * 16,
    Layout.NIBBLES_K: 64 + 2 * 8 * 16 + SUPER * 8,
    Layout.SIXES_K: 32 + 16 * 16 + SUPER * 12,
    Layout.SIXES_LEAST_K: 64 + 2 * 16 * 16 + SUPER * 12,
}
"""Bytes of a struct: sixteen outputs' next 32 or 256 weights."""


def pack(kind: str | torch.dtype, weights: Tensor, columns: int, layout: Layout) -> Tensor:
    """A matrix in the kernels' layout: blocks as they are in that of their kind, otherwise rounded.

    Args:
        kind: one of ``KINDS``, or float32 or bfloat16.
        weights: of a file ``[outputs, bytes]`` uint8, as they stand there; otherwise ``[outputs, columns]``.
        columns: inputs of the matrix; a multiple of the kind's block.
        layout: that of the kind; ``BYTES32``, the nearest integers of eight bits; or ``NIBBLES32``, of four those of
            the least squared error, for three shares of a group's range that its scale may cover.

    Returns:
        ``[outputs / 16, blocks, size]`` uint8; outputs are padded to whole sixteens, and inputs to whole blocks.
    """
    weights, outputs, each = weights.detach().contiguous(), len(weights), SUPER if layout >= Layout.NIBBLES_K else 32
    packed = torch.empty((-(-outputs // TOGETHER), -(-columns // each), _SIZES[layout]), dtype=torch.uint8)
    native.packing()(
        *(_NUMBERS[kind], weights.data_ptr(), layout, packed.data_ptr()),
        *(outputs, columns, torch.get_num_threads()),
    )
    return packed
