from __future__ import annotations

import copy

import pytest
import torch

from specstream.core.tree import TokenTree
from specstream.models.runtime import native
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.ragged import fill, unpack
from specstream.models.target.session import HuggingFaceSession
from tests.lossless.families import build, prompt

TREES = (
    TokenTree.chain([5, 6, 7, 8, 9]),
    TokenTree.chain([3]),
    TokenTree((4, 10, 11, 12, 13, 14), (-1, 0, 0, 1, 2, 1)),
    TokenTree.chain([2, 8]),
)
PATHS = ([0, 1, 2], [0], [0, 2, 4], [0, 1])
needs_kernels = pytest.mark.skipif(not native.available(), reason="our own kernels need a C++ compiler")


@pytest.mark.parametrize(
    ("sizes", "total", "counts"),
    [
        ([8, 1, 1, 1], 11, [8, 1, 1, 1]),
        ([8, 1, 1, 1], 12, [8, 2, 1, 1]),
        ([3, 1, 2], 8, [3, 3, 2]),
        ([3, 1, 2], 9, None),
        ([2, 1], 4, None),
    ],
)
def test_rows_are_filled_up_to_the_size_of_a_pass(sizes, total, counts):
    assert fill(sizes, total) == counts


def test_what_is_packed_is_unpacked_row_by_row():
    plan = native.tree_plan(TREES[:2], 5, [4, 4]).packed([5, 1])
    packed = torch.arange(6.0).view(1, 6, 1)
    assert unpack(packed, plan.places)[..., 0].tolist() == [[0, 1, 2, 3, 4], [5, 5, 5, 5, 5]]


def begin(family: str, dtype: torch.dtype, *, exact: bool) -> HuggingFaceSession:
    target = HuggingFaceTarget(copy.deepcopy(build(family)).to(dtype), runtime="native", exact=exact)
    session = target.begin([prompt(length, seed=length) for length in (9, 30, 17, 12)])
    session.tap([1, 2])
    return session


@needs_kernels
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_every_node_has_the_bits_of_a_pass_with_padding(family, dtype, exact, monkeypatch):
    packed, padded = begin(family, dtype, exact=exact), begin(family, dtype, exact=exact)
    monkeypatch.setattr(padded, "_packed", lambda trees: None)
    assert packed.ragged
    counts = packed._packed(TREES)
    assert counts is not None
    assert sum(counts) < len(TREES) * max(map(len, TREES)), "or it shows nothing"
    for round_ in range(3):
        trees = [*TREES[round_:], *TREES[:round_]]
        ours, theirs = packed.score(trees), padded.score(trees)
        for row, tree in enumerate(trees):
            assert torch.equal(ours[row, : len(tree)], theirs[row, : len(tree)])
            for layer in (1, 2):
                mine, other = packed.states(layer)[row], padded.states(layer)[row]
                assert torch.equal(mine[: len(tree)], other[: len(tree)])
        paths = [*PATHS[round_:], *PATHS[:round_]]
        packed.commit(paths)
        padded.commit(paths)
        assert packed.exact == padded.exact == ("bits" if exact else "rounding")


@needs_kernels
def test_rows_of_one_size_need_no_packing():
    session = begin("llama", torch.float32, exact=True)
    assert session._packed([TokenTree.chain([5, 6])] * 4) is None


@needs_kernels
def test_a_watched_model_is_run_as_it_is():
    target = begin("llama", torch.float32, exact=True)._target
    hook = target.model.base_model.register_forward_hook(lambda *_: None)
    assert not target.begin([[1, 2]]).ragged
    hook.remove()
    assert target.begin([[1, 2]]).ragged
