"""Where nodes stand and what they see: by integers for the device, by one comparison for chains, and spelled out."""

from __future__ import annotations

import pytest
import torch

from specstream.core.tree import TokenTree
from specstream.models.target.layout import Layout, block_rows, chain_layout, lay_out

LENGTHS = [20, 0, 7]
BRANCHY = TokenTree((3, 4, 5, 6, 7, 8), (-1, 0, 1, 0, 3, 3))
TREES = [BRANCHY, TokenTree.chain([3, 4]), TokenTree.merge(3, [[4, 5], [6]])]
CHAINS = [TokenTree.chain([3] * length) for length in (6, 2, 1)]


def by_integers(trees: list[TokenTree], width: int, reach: int) -> Layout:
    return lay_out(torch.tensor(block_rows(trees, width, LENGTHS)), width, reach)[1]


def agree(one: Layout, other: Layout) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("positions", "key_positions", "visible")
    )


@pytest.mark.parametrize("width", [6, 8, 40])
def test_every_node_sees_what_is_committed_and_its_own_path(width: int) -> None:
    found = by_integers(TREES, width, 64)
    for row, (tree, length) in enumerate(zip(TREES, LENGTHS, strict=True)):
        for node in range(len(tree)):
            path = tree.path(node)
            slots = {*range(length), *(length + each for each in path)}
            assert set(found.visible[row, node].nonzero()[:, 0].tolist()) == slots
            assert found.positions[row, node] == length + len(path) - 1
            assert found.key_positions[row, length + node] == length + len(path) - 1
        assert found.key_positions[row, :length].tolist() == list(range(length))


@pytest.mark.parametrize("width", [6, 8, 40])
def test_chains_by_one_comparison(width: int) -> None:
    assert agree(chain_layout(torch.tensor(LENGTHS), width, 64), by_integers(CHAINS, width, 64))
    assert not agree(chain_layout(torch.tensor(LENGTHS), width, 64), by_integers(TREES, width, 64))
