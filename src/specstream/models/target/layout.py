"""Where the nodes of a pass stand, and what they see: computed on the device from a few integers per row.

A captured graph has no numbers of the host in it but those of its shape. So everything that changes from pass to pass
comes in one block of integers, in one transfer: the row's length, and each node's token, depth and ancestors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from specstream.core.device.deferred import known_tokens
from specstream.core.tree import TokenTree
from specstream.models.cache import PADDING
from specstream.models.runtime.native import TreePlan

WORD = 32
"""Ancestors of a node that one integer of the block holds, a bit each."""


@dataclass(frozen=True)
class Layout:
    """Where the nodes of a pass stand.

    Attributes:
        positions: of the nodes, ``[rows, width]``.
        key_positions: of the slots, ``[rows, reach]``.
        visible: ``[rows, width, reach]`` bool, before any sliding window.
        plan: the same for the runtime's own attention, which needs no mask; the two above are then empty.
    """

    positions: Tensor
    key_positions: Tensor
    visible: Tensor
    plan: TreePlan | None


def planned(plan: TreePlan) -> Layout:
    """The layout of a pass on the runtime's own attention."""
    positions = plan.lengths[:, None] + plan.depths - 1
    nothing = positions.new_empty(0)
    return Layout(positions, nothing, nothing, plan)


def masks(
    layout: Layout, windows: Mapping[str | None, int | None], dtype: torch.dtype
) -> Tensor | dict[str | None, Tensor]:
    """Additive masks ``[rows, 1, width, reach]``, one for each kind of attention a family has.

    Args:
        layout: of the pass.
        windows: of each kind, most tokens that a node sees; None for no limit.
        dtype: of the model.
    """
    distance = layout.positions[:, :, None] - layout.key_positions[:, None, :]
    found: dict[str | None, Tensor] = {}
    for kind, window in windows.items():
        visible = layout.visible if window is None else layout.visible & (distance < window)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        found[kind] = mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
    return found.get(None, found)


def block_rows(trees: Sequence[TokenTree], width: int, lengths: Sequence[int]) -> list[list[int]]:
    """One line of integers per row: its length, then tokens, depths and ancestors of ``width`` nodes.

    Padding continues each row as a chain. Tokens that are still on the device are 0 here.
    """
    tokens = known_tokens(trees, width, PADDING)
    lines = []
    for tree, length, own in zip(trees, lengths, tokens, strict=True):
        depths, ancestors = _chain(width) if tree.is_chain else _tree(tree, width)
        lines.append([length, *own, *depths, *ancestors])
    return lines


def token_columns(block: Tensor, width: int) -> Tensor:
    """The tokens ``[rows, width]`` of a block, a view."""
    return block[:, 1 : 1 + width]


def lay_out(block: Tensor, width: int, reach: int) -> tuple[Tensor, Layout]:
    """The slots ``[rows, width]`` that the nodes are written to, and their layout, without a word to the host.

    Args:
        block: ``[rows, 1 + 2 * width + width * words]`` int64, from ``block_rows``.
        width: nodes per row.
        reach: slots that the pass sees.
    """
    length, depths = block[:, :1], block[:, 1 + width : 1 + 2 * width]
    words = block[:, 1 + 2 * width :].view(len(block), width, -1)
    nodes = torch.arange(width, device=block.device)
    ancestors = (words[:, :, nodes // WORD] >> (nodes % WORD)) & 1  # [rows, width, width]
    slots = torch.arange(reach, device=block.device).expand(len(block), -1)
    offset = slots - length  # which node stands at a slot; below 0 are committed tokens
    node = offset.clamp(0, width - 1)
    own = (offset >= 0) & (offset < width)
    positions = length + depths
    sees = ancestors.gather(2, node[:, None].expand(-1, width, -1)).bool()
    visible = (offset < 0)[:, None] | (own[:, None] & sees)
    key_positions = torch.where(own, positions.gather(1, node), slots)
    return length + nodes, Layout(positions, key_positions, visible, None)


def chain_layout(lengths: Tensor, width: int, reach: int) -> Layout:
    """What ``lay_out`` gives where every tree is a chain, by one comparison: for long prompts that is faster.

    Args:
        lengths: ``[rows]`` int64: committed tokens.
        width: nodes per row.
        reach: slots that the pass sees.
    """
    slots = torch.arange(reach, device=lengths.device).expand(len(lengths), -1)
    positions = lengths[:, None] + torch.arange(width, device=lengths.device)
    return Layout(positions, slots, slots[:, None] <= positions[:, :, None], None)


@lru_cache(maxsize=64)
def _chain(width: int) -> tuple[list[int], list[int]]:
    masks = [(1 << (node + 1)) - 1 for node in range(width)]
    return list(range(width)), _words(masks, width)


def _tree(tree: TokenTree, width: int) -> tuple[list[int], list[int]]:
    masks: list[int] = []
    for node, parent in enumerate(tree.parents):
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << node)
    size = len(tree)
    masks.extend((1 << (node + 1)) - 1 for node in range(size, width))
    return [*tree.depths, *range(size, width)], _words(masks, width)


def _words(masks: Sequence[int], width: int) -> list[int]:
    words = -(-width // WORD)
    return [mask >> (WORD * word) & ((1 << WORD) - 1) for mask in masks for word in range(words)]
