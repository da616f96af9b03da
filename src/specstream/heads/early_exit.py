"""The early exit of streams: how likely a drafted token is after its parent, told before the upper layers run.

Bhendawade et al. (arXiv 2402.11131), section 3.1.3: the state that goes into the layer where streams start passes a
low-rank adapter, the model's final norm and its own head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from specstream.models.architecture.partial_forward import FinalNorm


class EarlyExit(nn.Module):
    """The adapter: ``up`` starts at zero, so an untrained exit reads the state as the model reads its last one.

    Args:
        hidden: of the states.
        rank: of the adapter.
        norm: the model's final norm; it is not one of the exit's parameters.
    """

    def __init__(self, hidden: int, rank: int, norm: FinalNorm) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, hidden) / hidden**0.5)
        self.up = nn.Parameter(torch.zeros(hidden, rank))
        self._norm = norm

    def forward(self, states: Tensor) -> Tensor:
        """What goes into the head: ``[rows, nodes, hidden]`` -> the same shape and dtype."""
        down, up = self.down.to(states.dtype), self.up.to(states.dtype)
        return self._norm(states + functional.linear(functional.linear(states, down), up))
