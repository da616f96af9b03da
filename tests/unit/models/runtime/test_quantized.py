"""Weights of one byte: as near as 127 levels allow, exact sums, and nothing of the model lost that is still needed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from specstream.core.tree import TokenTree
from specstream.models.runtime import capabilities, native, runtime
from specstream.models.runtime.quantized import linear, quantize
from specstream.models.target.hf import HuggingFaceTarget
from tests.dequantized import restored, rounded_input, rounded_weight
from tests.lossless.families import FAMILIES, build, prompt

SHAPES = [(131, 577), (16, 16), (5, 7), (96, 48), (40, 9000)]  # outputs, inputs


def case(outputs, inputs, rows, dtype=torch.float32):
    chance = torch.Generator().manual_seed(outputs + inputs)
    shapes = ((outputs, inputs), (outputs,), (rows, inputs))
    return [torch.randn(shape, generator=chance).to(dtype) for shape in shapes]


needs_kernels = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
BITS = ["int8", pytest.param("int4", marks=needs_kernels)]


@needs_kernels
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_rounded_by_the_formula(outputs, inputs, bits, dtype):
    weight = (case(outputs, inputs, 1)[0] * torch.logspace(-4, 3, outputs)[:, None]).to(dtype)
    weight[outputs // 2] = 0
    kept = quantize(weight, bits)
    assert torch.equal(restored(kept), rounded_weight(weight, bits))
    groups, whole = -(-inputs // 32), -(-outputs // 16) * 16
    assert kept.nbytes == whole * groups * (34 if bits == "int8" else 20)


@needs_kernels
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("least", [0.0, -1.0625])
def test_weights_that_are_such_numbers_already_stay_as_they_are(bits, least):
    """As those of Q4_1, whose least weight is no multiple of the scale."""
    numbers = torch.randint(0, 16 if bits == "int4" else 128, (5, 64), generator=torch.Generator().manual_seed(1))
    numbers.view(-1, 32)[:, 0], numbers.view(-1, 32)[:, 1] = 0, 15 if bits == "int4" else 127
    weights = numbers * 0.25 + (least if bits == "int4" else 0)
    assert torch.equal(restored(quantize(weights, bits)), weights)


@needs_kernels
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_does_not_become_one(bits, value):
    weight = torch.ones(3, 96)
    weight[1, 40] = value
    assert [bool(row.isfinite().all()) for row in restored(quantize(weight, bits))] == [True, False, True]


def test_without_our_kernels_each_weight_is_within_half_a_step_of_a_byte(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    weight = torch.randn(50, 30) * torch.logspace(-6, 3, 50)[:, None]
    weight[7] = 0
    kept = quantize(weight)
    assert kept.values.dtype == torch.int8 and kept.scales is not None
    assert bool(((restored(kept) - weight).abs() <= kept.scales[:, None] * 0.501).all())
    assert kept.nbytes == 50 * 30 + 50 * 4


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_product_is_that_of_the_rounded_weights(outputs, inputs, dtype, bits):
    weight, bias, x = case(outputs, inputs, 11, dtype)
    x[3] *= 1e3  # every row has a unit of its own
    x[5] = 0
    kept = quantize(weight, bits)
    own = restored(kept).double()
    x_read = rounded_input(x) if native.available() else x
    truth = functional.linear(x_read.double(), own, bias.double())
    scale = x.double().norm(dim=1, keepdim=True) * own.norm(dim=1)
    rounding = 3e-6 if dtype == torch.float32 else 4e-3
    assert bool(((linear(kept, bias)(x).double() - truth).abs() <= rounding * (scale + 1) + 1e-6).all())


@needs_kernels
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_largest_inputs_overflow_no_sum(outputs, inputs, bits):
    weight, x = torch.ones(outputs, inputs), torch.ones(2, inputs)
    product = linear(quantize(weight, bits), None)(x)
    assert torch.allclose(product, torch.full((2, outputs), float(inputs)), rtol=1e-3)


@needs_kernels
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_row_has_the_same_bits_in_passes_of_every_width(outputs, inputs, bits):
    weight, bias, x = case(outputs, inputs, 20)
    forward = linear(quantize(weight, bits), bias)
    alone = torch.cat([forward(x[row : row + 1]) for row in range(20)])
    for width in range(2, 21):
        assert torch.equal(forward(x[:width]), alone[:width])


def test_without_our_kernels_it_is_torchs_own_product(monkeypatch):
    weight, bias, x = case(96, 64, 3, torch.bfloat16)
    ours = linear(quantize(weight), bias)(x).float()
    monkeypatch.setattr(native, "available", lambda: False)
    theirs = linear(quantize(weight), bias)(x).float()
    assert (ours - theirs).norm() <= 0.02 * ours.norm()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_model_stays_near_the_model(family, bits):
    tokens = prompt(20)
    target = HuggingFaceTarget(build(family), exact=False, quantization=bits)
    scored = target.begin([tokens[:-3]]).score([TokenTree.chain(tokens[-3:])])[0, :3]
    with torch.inference_mode():
        own = build(family)(torch.tensor([tokens])).logits[0, -3:]
    off = ((scored - own).norm(dim=-1) / own.norm(dim=-1)).median()
    assert 1e-6 < off < (0.15 if bits == "int8" else 0.8)  # something is lost by rounding, and not much
    assert target.runtime.name.endswith(f"-{bits}")


def test_released_weights_are_not_needed_any_more():
    model = build.__wrapped__("llama")
    target = HuggingFaceTarget(model, exact=False, quantization="int8")
    tree, tokens = TokenTree.chain([5, 6, 7]), prompt(200)  # a prompt too long for a narrow pass
    before, held = target.begin([tokens]).score([tree]), target.runtime.nbytes
    target.release()
    assert target.runtime.nbytes < 0.6 * held
    assert torch.equal(target.begin([tokens]).score([tree]), before)


def test_a_tied_embedding_outlives_the_release():
    import transformers

    config = transformers.LlamaConfig(
        **{"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1},
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    target = HuggingFaceTarget(model, exact=False, quantization="int8")
    target.release()
    assert model.get_input_embeddings().weight.shape == (160, 64)
    assert torch.isfinite(target.begin([[3, 4]]).score([TokenTree.chain([5])])).all()


@needs_kernels
def test_only_a_large_draft_takes_four_bits_by_itself(monkeypatch):
    model = build("llama")
    assert runtime.draft_quantization(model, "auto") == "int8"
    monkeypatch.setattr(capabilities, "LARGE_DRAFT", 1000)
    assert runtime.draft_quantization(model, "native") == "int4"
    assert runtime.draft_quantization(model, "eager") == "none"
