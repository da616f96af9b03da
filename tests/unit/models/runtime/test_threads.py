"""The threads of a kernel share its work out anew in every call, and leave no trace of that in the bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from specstream.core.tree import TokenTree
from specstream.models.runtime import native
from specstream.models.runtime.capabilities import Quantization
from specstream.models.runtime.quantized import linear, quantize
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.families import build, prompt

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

THREADS = (2, 3, 5)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def agree(run: Callable[[], Tensor], times: int = 4) -> bool:
    """Whether it has the same bits on any number of threads, time and again: what is missed is a race."""
    torch.set_num_threads(1)
    alone = run()
    found = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        found += [torch.equal(run(), alone) for _ in range(times)]
    return all(found)


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=chance).to(dtype) for shape in ((203, 150), (203,), (35, 150)))
    return weight, bias, x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 35])
def test_linear_layers(rows: int, dtype: torch.dtype) -> None:
    weight, bias, x = case(dtype)
    forward = native.linear(weight, bias)
    assert agree(lambda: forward(x[:rows]))


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 5, 35])
def test_linear_layers_in_fewer_bits(rows: int, bits: Quantization) -> None:
    weight, bias, x = case(torch.bfloat16)
    forward = linear(quantize(weight, bits), bias)  # type: ignore[arg-type]
    assert agree(lambda: forward(x[:rows]))


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2"])
def test_models(family: str, quantization: Quantization) -> None:
    """Fused layers, and for Gemma 2 attention alone."""
    target = HuggingFaceTarget(build(family, torch.bfloat16), exact=False, quantization=quantization)
    tokens = prompt(30)
    tree = TokenTree.merge(tokens[20], [tokens[21:25], tokens[26:29]])
    assert agree(lambda: target.begin_unpadded([tokens[:20]] * 2).score([tree] * 2), times=2)
