"""Weights of one byte for drafts: half the memory traffic of bf16, and the output cannot change, only the acceptance.

Each output of a linear layer has a scale of its own, ``max |w| / 127``; the input keeps 16 bits, so that the outliers
which spoil 8-bit activations (Dettmers et al., arXiv 2208.07339) cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specstream.models import native

LEVELS = 127
"""-128 is left out: the kernels' sums have room for 127 in both directions."""

_ROWS_AT_ONCE = 4096  # bounds the float32 copy while a large vocabulary is quantised


@dataclass(frozen=True)
class Int8Weight:
    """A linear layer's weight.

    Attributes:
        values: ``[outputs, inputs]`` int8.
        scales: ``[outputs]`` float32; ``values * scales`` is the weight.
    """

    values: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


def quantize(weight: Tensor) -> Int8Weight:
    """A floating-point weight ``[outputs, inputs]``, each row rounded to 127 levels on either side of zero."""
    values = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], dtype=torch.float32)
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = weight[rows].detach().float()
        scales[rows] = part.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
        values[rows] = (part / scales[rows, None]).round_()
    return Int8Weight(values, scales)


def linear(weight: Int8Weight, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear layer on such a weight, for inputs of any floating dtype ``[..., inputs]``.

    Without our kernels it is PyTorch's own product of the same kind.
    """
    outputs, inputs = weight.values.shape
    bias = None if bias is None else bias.detach().contiguous()
    bias_address = None if bias is None else bias.data_ptr()
    built = native.available()

    def forward(x: Tensor) -> Tensor:
        if not built or x.dtype not in (torch.bfloat16, torch.float32):
            y: Tensor = torch._weight_int8pack_mm(x.reshape(-1, inputs), weight.values, weight.scales.to(x.dtype)).view(
                *x.shape[:-1], outputs
            )
            return y if bias is None else y + bias
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        native.kernel("linear", x.dtype, quantized=True)(
            *(x.data_ptr(), weight.values.data_ptr(), weight.scales.data_ptr(), bias_address, y.data_ptr()),
            *(x.numel() // inputs, outputs, inputs, torch.get_num_threads()),
        )
        return y

    return forward
