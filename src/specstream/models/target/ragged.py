"""Passes without padding: the trees of all rows one after another, whatever their sizes.

A batch in which one row has much to verify and the others have little would otherwise pay for as many nodes of every
row. Only our own stack of layers can do without (``Runtime.ragged``); its rows have the same bits either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specstream.core.tree import TokenTree
from specstream.models.architecture.hidden_states import States
from specstream.models.cache import PADDING
from specstream.models.runtime.native import TreePlan
from specstream.models.target.layout import Layout, planned


def fill(sizes: Sequence[int], total: int) -> list[int] | None:
    """Nodes of each row that are ``total`` together, none fewer than its tree's or more than the largest tree's.

    Returns:
        None where a pass with padding has no more of them.
    """
    counts, widest, left = list(sizes), max(sizes), total - sum(sizes)
    if total >= widest * len(counts):
        return None
    for row, size in enumerate(counts):
        counts[row] += min(left, widest - size)
        left -= counts[row] - size
    return counts


def pack(trees: Sequence[TokenTree], counts: Sequence[int], plan: TreePlan) -> tuple[Tensor, Layout]:
    """The tokens ``[1, nodes of all rows]`` of a packed pass, and where they stand.

    Args:
        trees: of the rows.
        counts: nodes of each.
        plan: of these, packed.
    """
    tokens = [
        token
        for tree, count in zip(trees, counts, strict=True)
        for token in (*tree.tokens, *[PADDING] * (count - len(tree)))
    ]
    inside = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    layout = planned(plan)
    return torch.tensor([tokens]), replace(layout, positions=layout.positions[inside][None])


def unpack(packed: Tensor, places: Tensor) -> Tensor:
    """``[1, nodes of all rows, size]`` -> ``[rows, width, size]``; behind a row's own nodes its last one again."""
    return packed[0].index_select(0, places.reshape(-1)).view(*places.shape, packed.shape[-1])


def unpack_all(states: States, places: Tensor) -> None:
    """The same of each layer's."""
    for layer, state in states.items():
        if state is not None:
            states[layer] = unpack(state, places)
