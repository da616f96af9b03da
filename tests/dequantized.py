"""What the weights of a quantised layer stand for: the reference of the kernels that read them."""

from __future__ import annotations

import torch
from torch import Tensor

from specstream.models.runtime.quantized import QuantizedWeight


def restored(weight: QuantizedWeight) -> Tensor:
    """The weight that this stands for, ``[outputs, inputs]`` float32."""
    if weight.bits == "int8":
        return weight.values * weight.scales[:, None]
    scales = weight.values[..., :4].contiguous().view(torch.float32)
    nibbles = torch.cat([weight.values[..., 4:] & 15, weight.values[..., 4:] >> 4], -1)
    return ((nibbles.float() - 8) * scales).flatten(1)[:, : weight.inputs]
