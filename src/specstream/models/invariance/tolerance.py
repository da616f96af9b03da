"""How far apart logits may be that should be the same but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def tolerance(*dtypes: torch.dtype) -> float:
    """The relative error that rounding alone may cause: two orders of summation, through all layers.

    Args:
        dtypes: of the model and of its logits: one in half precision may have these in float32.
    """
    return 1e-3 if all(dtype.itemsize >= 4 for dtype in dtypes) else 0.1


def relative_errors(scored: Tensor, own: Tensor) -> Tensor:
    """``[branches, tokens]``: by how much each token's logits differ, relative to their spread.

    A constant added to all logits of a token changes no probability, so they are centred first. Callers look at the
    median token: a mixture of experts may send one elsewhere upon a rounding.
    """
    scored, own = scored.float(), own.float()
    own = own - own.mean(-1, keepdim=True)
    scored = scored - scored.mean(-1, keepdim=True)
    return torch.sqrt((scored - own).square().sum(-1) / own.square().sum(-1).clamp_min(1e-30))
