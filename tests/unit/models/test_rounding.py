"""Weights as integers with scales: how near they are, and what no rounding may do."""

import pytest
import torch

from specstream.models.runtime.rounding import GROUP, rounded

WEIGHTS = torch.randn((70, 100), generator=torch.Generator().manual_seed(0)) * 0.05


BITS = ["int8", "int4"]


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_near_and_the_padding_stays_zero(bits):
    integers = rounded(WEIGHTS, bits)
    weights = integers.weights()
    assert weights.shape == (70, 128) and integers.scales.dtype == torch.float16
    assert float((weights[:, :100] - WEIGHTS).norm() / WEIGHTS.norm()) < (0.006 if bits == "int8" else 0.08)
    assert (bits == "int4") == (integers.zeros is not None)
    assert not weights[:, 100:].any()


@pytest.mark.parametrize("bits", BITS)
def test_weights_that_are_integers_already_stay_as_they_are(bits):
    most = 127 if bits == "int8" else 15
    numbers = torch.randint(0, most + 1, (5, 2, GROUP), generator=torch.Generator().manual_seed(1))
    numbers[..., 0], numbers[..., 1] = 0, most
    weights = ((numbers - (0 if bits == "int8" else 6)) * 0.25).flatten(1)
    assert torch.equal(rounded(weights, bits).weights(), weights)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 1e-9, -0.03, 0.03, 900.0])
def test_groups_of_one_value_keep_it(bits, value):
    found = rounded(torch.full((1, GROUP), value), bits).weights()
    assert torch.allclose(found, torch.tensor(value), rtol=0.004, atol=1e-5)
