"""Blocks of GGUF files on our kernels: every weight is the format's, to the bit, and bits do not depend on the pass."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from specstream.models.architecture.blocks import BlockTensor
from specstream.models.hub import gguf_header
from specstream.models.runtime import native
from specstream.models.runtime.blocks import KINDS
from specstream.models.runtime.quantized import embed_from, linear, of_blocks, quantize
from tests.dequantized import restored, rounded_input, rounded_weight

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
}
"""Where float16 numbers stand in a block; elsewhere one, at its beginning."""

ROWS = 40


def columns_of(kind: str) -> tuple[int, ...]:
    """One block, a whole number of the kernels' steps, and a rest behind them."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    return (32, 96, 512, 576) if size == 32 else (256, 768)


CASES = [(kind, columns) for kind in KINDS for columns in columns_of(kind)]


def case(kind: str, columns: int) -> tuple[Tensor, Tensor]:
    """Blocks of any bits but for their scales, and what gguf reads in them."""
    chance = np.random.default_rng(columns)
    quantization = gguf.GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[quantization]
    made = chance.integers(0, 256, (ROWS, columns // values, size), dtype=np.uint8)
    for at in SCALES.get(kind, (0,)):
        scale = (chance.normal(size=made.shape[:2]) / 64).astype(np.float16)
        made[..., at : at + 2] = scale[..., None].view(np.uint8)
    flat = made.reshape(ROWS, -1)
    return torch.from_numpy(flat), torch.from_numpy(gguf.quants.dequantize(flat, quantization).copy())


def test_every_format_that_is_loaded_runs():
    assert set(KINDS) == set(gguf_header.KINDS)


@pytest.mark.parametrize(("kind", "columns"), CASES)
def test_every_weight_is_what_the_format_says(kind, columns):
    blocks, truth = case(kind, columns)
    weight = of_blocks(kind, blocks, columns)
    rows = torch.tensor([[3, 0, ROWS - 1], [7, 7, 20]])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(embed_from(weight, dtype)(rows), truth[rows].to(dtype))
    # One input at a time is a column of the weight; 127 is rounded to itself.
    product = linear(weight, None)(127 * torch.eye(columns)).T / 127
    assert torch.allclose(product, truth, rtol=1e-5, atol=1e-6 * float(truth.abs().max()))


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize(("kind", "columns"), CASES)
def test_blocks_are_rounded_to_other_bits_by_their_numbers(kind, columns, bits):
    blocks, truth = case(kind, columns)
    found = restored(quantize(BlockTensor(blocks, kind, torch.bfloat16), bits))
    exact = (kind, bits) in {("Q4_0", "int4"), ("Q4_1", "int4"), ("Q8_0", "int8"), ("IQ4_NL", "int8")}
    assert torch.equal(found, truth if exact else rounded_weight(truth, bits))


@pytest.mark.parametrize(("kind", "columns"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_weights(kind, columns, dtype):
    blocks, truth = case(kind, columns)
    chance = torch.Generator().manual_seed(0)
    x, bias = torch.randn((11, columns), generator=chance).to(dtype), torch.randn(ROWS, generator=chance).to(dtype)
    x[3] *= 1e3  # every row has a unit of its own
    x[5] = 0
    got = linear(of_blocks(kind, blocks, columns), bias)(x).double()
    wanted = functional.linear(rounded_input(x).double(), truth.double(), bias.double())
    sizes = x.double().norm(dim=1, keepdim=True) * truth.double().norm(dim=1)
    assert bool(((got - wanted).abs() <= (3e-6 if dtype == torch.float32 else 4e-3) * (sizes + 1)).all())


@pytest.mark.parametrize(("kind", "columns"), CASES)
def test_a_row_has_the_same_bits_in_passes_of_every_width(kind, columns):
    blocks, _ = case(kind, columns)
    forward = linear(of_blocks(kind, blocks, columns), None)
    x = torch.randn((150, columns), generator=torch.Generator().manual_seed(0))
    alone = torch.cat([forward(row[None]) for row in x])
    for width in (2, 3, 5, 8, 9, 17, 150):
        assert torch.equal(forward(x[:width]), alone[:width])


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_numbers_overflow_no_sum(kind):
    columns = columns_of(kind)[-1]
    blocks, truth = case(kind, columns)
    blocks.fill_(255)  # the largest numbers and scales there are, most of them of one sign
    for at in SCALES.get(kind, (0,)):
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
        blocks.view(ROWS, -1, size)[..., at : at + 2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
    if kind == "Q6_K":  # the extremes of both: -32 by -128
        blocks.view(ROWS, -1, 210)[..., :192] = 0
        blocks.view(ROWS, -1, 210)[..., 192:208] = 128
    truth = torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]).copy())
    got = linear(of_blocks(kind, blocks, columns), None)(torch.ones(3, columns))
    assert torch.allclose(got, truth.sum(1).expand(3, -1), rtol=1e-4)
