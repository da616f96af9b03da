"""Linear layers on weights of one byte, of four bits, or in the blocks of a GGUF file.

int8: each output of a linear layer has a scale of its own, ``max |w| / 127``. int4: each 64 neighbours have one, chosen
of a few for the least squared error. The input keeps 16 bits, so that the outliers which spoil 8-bit activations
(Dettmers et al., arXiv 2208.07339) cost nothing. Passes wait for memory: here is half as much to read, or a quarter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from specstream.models.runtime import native
from specstream.models.runtime.blocks import WEIGHTS_AT_ONCE, pack

Bits = Literal["int8", "int4", "blocks"]

LEVELS = 127
"""-128 is left out: the kernels' sums have room for 127 in both directions."""

BLOCK, BLOCK_BYTES = 64, 36
"""Weights of a block of four bits, and its size: a float32 scale, then byte i holds weight i and weight i + 32."""

CLIPPINGS = (1.0, 0.9, 0.8)
"""Shares of a block's largest weight that its scale may fit: the small ones gain what the largest loses."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A linear layer's weight.

    Attributes:
        bits: how it is kept.
        values: int8: ``[outputs, inputs]`` int8. int4: ``[outputs, blocks, 36]`` uint8, the kernels' ``Block4``. Of
            ``blocks`` ``[outputs, blocks, size]`` uint8.
        scales: int8: ``[outputs]`` float32; ``values * scales`` is the weight. Otherwise empty.
        inputs: how many there are.
        layout: of blocks; see ``blocks.py``.
    """

    bits: Bits
    values: Tensor
    scales: Tensor
    inputs: int
    layout: int = 0

    @property
    def outputs(self) -> int:
        return int(self.values.shape[0])

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


def quantize(weight: Tensor, bits: Bits = "int8") -> QuantizedWeight:
    """A floating-point weight ``[outputs, inputs]`` in fewer bits."""
    outputs, inputs = weight.shape
    blocks = -(-inputs // BLOCK)
    if bits == "int8":
        values = torch.empty((outputs, inputs), dtype=torch.int8)
    else:
        values = torch.empty((outputs, blocks, BLOCK_BYTES), dtype=torch.uint8)
    scales = torch.empty(outputs if bits == "int8" else 0, dtype=torch.float32)
    together = max(1, WEIGHTS_AT_ONCE // inputs)
    for start in range(0, outputs, together):
        rows = slice(start, start + together)
        part = weight[rows].detach().float()
        if bits == "int8":
            scales[rows] = _unit(part, LEVELS)[:, 0]
            values[rows] = (part / scales[rows, None]).round_()
        else:
            padded = torch.nn.functional.pad(part, (0, blocks * BLOCK - inputs))
            values[rows] = _blocks(padded.view(-1, blocks, BLOCK))
    return QuantizedWeight(bits, values, scales, inputs)


def of_blocks(kind: str, blocks: Tensor, columns: int) -> QuantizedWeight:
    """A weight that is quantised already, on the blocks of a GGUF file; the arguments are those of ``pack``."""
    layout, values = pack(kind, blocks, columns)
    return QuantizedWeight("blocks", values, torch.empty(0), columns, layout)


def _unit(weights: Tensor, levels: float) -> Tensor:
    return weights.abs().amax(-1, keepdim=True).clamp_min(1e-30) / levels


def _blocks(weights: Tensor) -> Tensor:
    """``[outputs, blocks, 64]`` float32 -> ``[outputs, blocks, 36]`` uint8."""
    full = _unit(weights, 7.5)
    best, scales, least = torch.empty(0), torch.empty(0), torch.empty(0)
    for clipping in CLIPPINGS:
        scale = full * clipping
        rounded = (weights / scale).round_().clamp_(-8, 7)
        error = (rounded * scale - weights).square_().sum(-1, keepdim=True)
        if not len(best):
            best, scales, least = rounded, scale, error
            continue
        better = error < least
        best, scales = torch.where(better, rounded, best), torch.where(better, scale, scales)
        least = torch.minimum(error, least)
    levels = (best + 8).to(torch.uint8)
    packed = levels[..., : BLOCK // 2] | (levels[..., BLOCK // 2 :] << 4)
    return torch.cat([scales.contiguous().view(torch.uint8), packed], -1)


def linear(weight: QuantizedWeight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear layer on such a weight, for inputs of any floating dtype ``[..., inputs]``.

    Without our kernels it is PyTorch's own product with bytes; four bits need the kernels.
    """
    outputs, inputs = weight.outputs, weight.inputs
    bias = None if bias is None else bias.detach().contiguous()
    bias_address = None if bias is None else bias.data_ptr()
    built = native.available()

    def forward(x: Tensor) -> Tensor:
        if not built or x.dtype not in (torch.bfloat16, torch.float32):
            rows, scales = x.reshape(-1, inputs), weight.scales.to(x.dtype)
            y: Tensor = torch._weight_int8pack_mm(rows, weight.values, scales).view(*x.shape[:-1], outputs)
            return y if bias is None else y + bias
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        beside = weight.layout if weight.bits == "blocks" else weight.scales.data_ptr()
        native.kernel("linear", x.dtype, weight.bits)(
            *(x.data_ptr(), weight.values.data_ptr(), beside, bias_address, y.data_ptr()),
            *(x.numel() // inputs, outputs, inputs, torch.get_num_threads()),
        )
        return y

    return forward


def embed_from(weight: QuantizedWeight, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What an embedding makes of token ids, int64 of any shape, from blocks: their rows in ``dtype``, bf16 or f32."""
    read, inputs = native.kernel("rows", dtype, "blocks"), weight.inputs

    def forward(tokens: Tensor) -> Tensor:
        tokens = tokens.contiguous()
        rows = torch.empty((*tokens.shape, inputs), dtype=dtype)
        addresses = tokens.data_ptr(), rows.data_ptr()
        read(weight.values.data_ptr(), weight.layout, *addresses, tokens.numel(), inputs)
        return rows

    return forward
