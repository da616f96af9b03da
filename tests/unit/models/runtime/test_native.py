from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from specstream.core.sampling import NO_CHOICE, Finder
from specstream.models.runtime import native

needs_kernels = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

SHAPES = [
    (131, 577),
    (16, 16),
    (5, 7),
    (96, 48),
    (300, 1000),
    (21, 5000),
]  # outputs, inputs: multiples of the lanes and not


def case(outputs, inputs, rows, dtype):
    chance = torch.Generator().manual_seed(outputs * inputs + rows)
    weight, bias, x = (
        torch.randn(shape, generator=chance).to(dtype) for shape in ((outputs, inputs), (outputs,), (1, rows, inputs))
    )
    return weight, bias, x


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_it_is_as_close_to_the_truth_as_pytorch(outputs, inputs, dtype):
    for rows in (1, 3, 8, 13):
        weight, bias, x = case(outputs, inputs, rows, dtype)
        for b in (bias, None):
            truth = functional.linear(x.double(), weight.double(), None if b is None else b.double())
            ours = (native.linear(weight, b)(x).double() - truth).abs().max()
            theirs = (functional.linear(x, weight, b).double() - truth).abs().max()
            assert ours <= 4 * theirs + 1e-6  # the fewer floats a register holds, the longer are the sums


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_row_has_the_same_bits_in_passes_of_every_width(outputs, inputs, dtype):
    weight, bias, x = case(outputs, inputs, 40, dtype)
    forward = native.linear(weight, bias)
    alone = torch.cat([forward(x[:, row : row + 1]) for row in range(40)], dim=1)
    for width in (*range(2, 20), 33, 40):
        assert torch.equal(forward(x[:, :width]), alone[:, :width])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [16, 100, 576, 1536])
def test_a_norm_is_as_close_to_the_truth_as_pytorch_and_its_rows_stand_alone(count, dtype):
    chance = torch.Generator().manual_seed(count)
    weight, x = (torch.randn(shape, generator=chance).to(dtype) for shape in ((count,), (2, 7, count)))
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    theirs = weight * functional.rms_norm(x.float(), (count,), eps=1e-5).to(dtype)  # rounded where the models round
    forward = native.norm(weight, 1e-5)
    off, their_off = ((each.double() - weight.double() * exact).abs().max() for each in (forward(x), theirs))
    assert off <= 1.5 * their_off + 1e-5
    assert torch.equal(forward(x[1:, 3:4]), forward(x)[1:, 3:4])
    assert torch.equal(forward(x.transpose(0, 1)), forward(x).transpose(0, 1))


@needs_kernels
def test_wide_inputs_and_strided_ones():
    weight, bias, x = case(30, 40, native.MOST_ROWS + 1, torch.float32)
    assert torch.equal(native.linear(weight, bias)(x), functional.linear(x, weight, bias))
    strided = torch.randn(4, 40, 6).transpose(1, 2)
    assert torch.allclose(native.linear(weight, bias)(strided), functional.linear(strided, weight, bias), atol=1e-4)


@needs_kernels
def test_not_a_number_stays_not_a_number():
    weight, bias, x = case(8, 32, 2, torch.bfloat16)
    x[0, 1, 3] = float("nan")
    y = native.linear(weight, bias)(x)
    assert y[0, 1].isnan().all()
    assert not y[0, 0].isnan().any()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_likeliest_tokens_are_those_of_pytorch(dtype):
    logits = torch.stack([torch.randperm(300, generator=torch.Generator().manual_seed(seed)) for seed in range(6)])
    logits = (logits - 150).to(dtype).view(2, 3, 300)  # bfloat16 has all of these numbers
    finder, places = native.KernelFinder(), [(1, 2), (0, 1), (0, 1)]
    for each in (logits, logits[..., ::2]):
        assert finder.likeliest(each, places, 7) == Finder().likeliest(each, places, 7)
        assert finder.choices(each) == each.argmax(-1).tolist()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
def test_what_is_no_number_is_no_choice(dtype, bad):
    logits = torch.arange(1.0, 401.0).view(1, 4, 100).to(dtype)
    logits[0, 1, 3] = bad
    logits[0, 2] = -torch.inf
    logits[0, 3, 98] = logits[0, 3, 99]  # the first of equals
    (found,) = native.KernelFinder().choices(logits)
    assert [found] == torch.as_tensor(Finder().choices(logits)).tolist()
    assert found[1:] == [NO_CHOICE, NO_CHOICE, int(logits[0, 3].float().argmax())]
