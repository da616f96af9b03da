"""The native attention against plain formulas in float64, and its promise about bits."""

from __future__ import annotations

import pytest
import torch

from specstream.core.tree import TokenTree
from specstream.models.runtime import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

ROWS, HEADS, KV_HEADS, NODES, DIM, SLOTS = 2, 6, 2, 6, 32, 64
BRANCHY = TokenTree((1, 2, 3, 4, 5, 6), (-1, 0, 0, 1, 2, 3))
CHAIN = TokenTree.chain([1, 2, 3, 4, 5, 6])
LENGTHS = [20, 33]


@pytest.fixture(autouse=True, params=[(32, [20, 33]), (64, [140, 600]), (128, [127, 700])], ids=str)
def scene(request, monkeypatch):
    """Short contexts; long ones, which are looked at in parts by heads that share keys; sizes with their own code."""
    dim, lengths = request.param
    for name, value in {"DIM": dim, "LENGTHS": lengths, "SLOTS": max(lengths) + 31}.items():
        monkeypatch.setitem(globals(), name, value)


def tensors(dtype, seed=0):
    chance = torch.Generator().manual_seed(seed)
    query = torch.randn(ROWS, NODES, HEADS, DIM, generator=chance).to(dtype).transpose(1, 2)
    keys, values = (torch.randn(ROWS, KV_HEADS, SLOTS, DIM, generator=chance).to(dtype) for _ in range(2))
    return query, keys, values


def formula(query, keys, values, trees, window, softcap):
    """[rows, nodes, heads, dim]: what each node sees, spelled out."""
    out = torch.empty(ROWS, NODES, HEADS, DIM, dtype=torch.float64)
    for row, tree in enumerate(trees):
        for node in range(NODES):
            path = tree.path(node)
            slots = [*range(LENGTHS[row]), *(LENGTHS[row] + ancestor for ancestor in path)]
            slots = slots[-window:] if window else slots
            for head in range(HEADS):
                k, v = (t[row, head // (HEADS // KV_HEADS), slots].double() for t in (keys, values))
                scores = k @ query[row, head, node].double() * DIM**-0.5
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                out[row, node, head] = scores.softmax(0) @ v
    return out


@pytest.mark.parametrize("window", [0, 1, 4, 25, 300])
@pytest.mark.parametrize("softcap", [0.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_formula(dtype, softcap, window):
    query, keys, values = tensors(dtype)
    trees = [BRANCHY, CHAIN]
    plan = native.tree_plan(trees, NODES, LENGTHS)
    out = native.attention(query, keys, values, plan, scale=DIM**-0.5, window=window, softcap=softcap)
    error = (out.double() - formula(query, keys, values, trees, window, softcap)).abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 9])
def test_a_branch_has_the_bits_of_the_chain_it_stands_for(dtype, window):
    query, keys, values = tensors(dtype)
    path = BRANCHY.path(4)
    assert path == (0, 2, 4)
    lengths = LENGTHS[:1]
    chain_query = query[:1, :, list(path)].contiguous()
    chain_keys, chain_values = keys[:1].clone(), values[:1].clone()
    for at, node in enumerate(path):
        chain_keys[:, :, lengths[0] + at] = keys[:1, :, lengths[0] + node]
        chain_values[:, :, lengths[0] + at] = values[:1, :, lengths[0] + node]
    chain_plan = native.tree_plan([TokenTree.chain([1, 2, 3])], 3, lengths)
    chain = native.attention(chain_query, chain_keys, chain_values, chain_plan, scale=0.2, window=window)
    plan = native.tree_plan([BRANCHY], NODES, lengths)
    tree = native.attention(query[:1], keys[:1], values[:1], plan, scale=0.2, window=window)
    assert torch.equal(tree[:, list(path)], chain)


def test_neighbours_and_width_leave_no_trace():
    query, keys, values = tensors(torch.bfloat16)
    both = native.attention(query, keys, values, native.tree_plan([CHAIN, CHAIN], NODES, LENGTHS), scale=0.2)
    for row in range(ROWS):
        for width in (1, 3, 5):
            one = slice(row, row + 1)
            plan = native.tree_plan([TokenTree.chain([1] * width)], width, LENGTHS[one])
            alone = native.attention(query[one, :, :width], keys[one], values[one], plan, scale=0.2)
            assert torch.equal(alone[0], both[row, :width])


def test_what_no_node_sees_may_be_anything():
    query, keys, values = tensors(torch.float32)
    plan = native.tree_plan([BRANCHY, CHAIN], NODES, LENGTHS)
    before = native.attention(query, keys, values, plan, scale=0.2)
    for row, length in enumerate(LENGTHS):
        keys[row, :, length + NODES :] = float("nan")
        values[row, :, length + NODES :] = float("inf")
    assert torch.equal(native.attention(query, keys, values, plan, scale=0.2), before)


def test_large_and_tiny_scores():
    query, keys, values = tensors(torch.float32)
    plan = native.tree_plan([CHAIN, CHAIN], NODES, LENGTHS)
    for scale in (100.0, 1e-6):
        out = native.attention(query, keys, values, plan, scale=scale)
        expected = formula(query * scale / DIM**-0.5, keys, values, [CHAIN, CHAIN], 0, 0.0)
        assert (out.double() - expected).abs().max() < 1e-3
