"""Linear layers on weights of eight bits, of four, or in the blocks of a GGUF file.

Each 32 neighbours have a scale, and those of four bits a zero point. The input is rounded to eight bits, with a scale
for each 32 too, and groups with outliers to fifteen: those spoil 8-bit activations (Dettmers et al., arXiv 2208.07339).
Passes wait for memory: here is half as much to read, or a third.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from specstream.models.architecture.blocks import BlockTensor
from specstream.models.runtime import native
from specstream.models.runtime.blocks import KINDS, Layout, pack


@dataclass(frozen=True)
class QuantizedWeight:
    """A linear layer's weight.

    Attributes:
        values: ``[outputs / 16, blocks, size]`` uint8 in the kernels' layout; without them ``[outputs, inputs]`` int8.
        outputs: how many there are.
        inputs: likewise.
        layout: see ``blocks.py``; it means nothing without kernels.
        scales: ``[outputs]`` float32 without kernels, ``values * scales`` is the weight; otherwise None.
    """

    values: Tensor
    outputs: int
    inputs: int
    layout: Layout
    scales: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)


_LAYOUTS = {"int8": Layout.BYTES32, "int4": Layout.NIBBLES32}


def quantize(weight: Tensor, bits: Literal["int8", "int4"] = "int8") -> QuantizedWeight:
    """A weight ``[outputs, inputs]``, of a floating dtype or in blocks, in fewer bits; four need the kernels."""
    if not native.available():
        own = weight.detach().float()
        scales = own.abs().amax(1).clamp_min(1e-30) / 127
        values = (own / scales[:, None]).round().to(torch.int8)
        return QuantizedWeight(values, len(own), own.shape[1], Layout.BYTES32, scales)
    if isinstance(weight, BlockTensor):
        return _packed(weight.kind, weight.blocks, weight.shape[1], _LAYOUTS[bits])
    own = weight if weight.dtype in (torch.float32, torch.bfloat16) else weight.float()
    return _packed(own.dtype, own, own.shape[1], _LAYOUTS[bits])


def of_blocks(kind: str, blocks: Tensor, columns: int) -> QuantizedWeight:
    """A weight that is quantised already, on the blocks of a GGUF file; the arguments are those of ``pack``."""
    return _packed(kind, blocks, columns, KINDS[kind])


def _packed(kind: str | torch.dtype, weights: Tensor, columns: int, layout: Layout) -> QuantizedWeight:
    return QuantizedWeight(pack(kind, weights, columns, layout), len(weights), columns, layout)


def linear(weight: QuantizedWeight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear layer on such a weight, for inputs of any floating dtype ``[..., inputs]``.

    Without our kernels it is PyTorch's own product with bytes.
    """
    outputs, inputs = weight.outputs, weight.inputs
    bias = None if bias is None else bias.detach().contiguous()

    def forward(x: Tensor) -> Tensor:
        if x.dtype not in (torch.bfloat16, torch.float32) or weight.scales is not None:
            product = _other(weight, x)
            return product if bias is None else product + bias
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        native.kernel("linear", x.dtype, "blocks")(
            *(x.data_ptr(), weight.values.data_ptr(), weight.layout),
            *(None if bias is None else bias.data_ptr(), y.data_ptr()),
            *(x.numel() // inputs, outputs, inputs, torch.get_num_threads()),
        )
        return y

    return forward


def _other(weight: QuantizedWeight, x: Tensor) -> Tensor:
    """Of float16, which our kernels do not take, or without them."""
    if weight.scales is None:
        return linear(weight, None)(x.float()).to(x.dtype)
    rows = x.reshape(-1, weight.inputs)
    y: Tensor = torch._weight_int8pack_mm(rows, weight.values, weight.scales.to(x.dtype))
    return y.view(*x.shape[:-1], weight.outputs)


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
