from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional

from specstream.errors import UsageError
from specstream.models import native
from specstream.models.runtime import Runtime, native_dtype
from tests.tiny import tiny_model

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


@pytest.fixture
def fresh_library(tmp_path, monkeypatch):
    """As on a machine that never built the kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_without_a_compiler_the_next_runtime_takes_over(fresh_library, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not native.available()
    assert Runtime(tiny_model()).name == "packed"
    with pytest.raises(native.NoKernelsError, match="CXX"):
        Runtime(tiny_model(), "native")
    assert native_dtype(torch.device("cpu"), torch.float16) == torch.float32


def test_a_compiler_that_fails_leaves_nothing_behind(fresh_library, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(native.NoKernelsError, match="could not build"):
        native.library()
    assert not list(fresh_library.rglob("*.so*"))


@pytest.fixture
def compiler(tmp_path):
    """One that copies the kernels of this machine and writes down that it ran."""
    script = tmp_path / "compiler"
    built = native.library()._name
    script.write_text(f'#!/bin/sh\necho "$*" >> "$0.log"\nsleep 0.05\nfor made; do :; done\ncp {built} "$made"\n')
    script.chmod(0o755)
    return script


def runs(compiler):
    lines = compiler.with_suffix(".log").read_text().splitlines()
    return [line for line in lines if line != "--version"]


@needs_kernels
def test_it_is_built_once(compiler, fresh_library, monkeypatch):
    monkeypatch.setenv("CXX", str(compiler))
    native.library()
    assert len(runs(compiler)) == len(native.SOURCES) + 1
    native.library.cache_clear()
    native.library()
    assert len(runs(compiler)) == len(native.SOURCES) + 1


@needs_kernels
def test_of_processes_that_start_together_one_builds_it(compiler, tmp_path):
    built = tmp_path / "kernels.so"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(native._compile, [str(compiler)] * 4, [built] * 4))
    assert built.exists()
    assert len(runs(compiler)) == len(native.SOURCES) + 1


def test_a_runtime_for_another_dtype_is_refused():
    with pytest.raises(UsageError, match=r"torch\.float16 on cpu"):
        Runtime(tiny_model().half(), "packed")
    assert Runtime(tiny_model().half()).name == "eager"
