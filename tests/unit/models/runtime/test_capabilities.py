"""What runs here is decided once, and dtype, runtime and drafts cannot disagree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from specstream.environment import GENERIC, LEVELS, Level
from specstream.errors import UsageError
from specstream.models.architecture import compat
from specstream.models.runtime import capabilities as module
from specstream.models.runtime import native
from specstream.models.runtime.capabilities import capabilities
from specstream.models.runtime.compiled import Kernels, NoKernelsError
from specstream.models.runtime.runtime import Runtime, draft_quantization
from tests.tiny import tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BF16, F32, F16 = torch.bfloat16, torch.float32, torch.float16
V3, V3_VNNI, V4, _, V4_BF16, ARM = LEVELS

Pretend = Callable[..., None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """A machine of a level, with kernels or without, and with oneDNN's bfloat16 or without."""

    def pretend(level: Level, kernels: bool, onednn: bool = True) -> None:
        for each in (module, native):
            monkeypatch.setattr(each, "level", lambda: level)
        have = Kernels(state="compiled", reason="compiled here", name="some", library=object())  # type: ignore[arg-type]
        missing = Kernels(state="missing", reason="no C++ compiler was found; install g++ or set CXX")
        monkeypatch.setattr(native, "kernels", lambda: have if kernels else missing)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)

    return pretend


@pytest.mark.parametrize(
    ("level", "kernels", "own", "dtype", "runtime", "bits"),
    [
        (V4_BF16, True, BF16, BF16, "native", "int8"),
        (V4, True, BF16, BF16, "native", "int8"),
        (V3, True, BF16, BF16, "native", "int8"),  # oneDNN cannot, and our kernels can
        (V3_VNNI, True, BF16, BF16, "native", "int8"),
        (ARM, True, BF16, BF16, "native", "int8"),
        (GENERIC, True, BF16, BF16, "native", "int8"),
        (V4_BF16, False, BF16, BF16, "packed", "none"),
        (V4, False, BF16, F32, "packed", "none"),
        (V3, False, BF16, F32, "packed", "none"),
        (V3_VNNI, False, BF16, F32, "packed", "none"),
        (V3, True, F32, F32, "native", "int8"),
        (V3, True, F16, F32, "native", "int8"),
    ],
)
def test_a_checkpoint_of_a_dtype_runs_so(pretend, level, kernels, own, dtype, runtime, bits):
    pretend(level, kernels, onednn=level is not V3)
    found = capabilities(CPU, own)
    assert (found.dtype.value, found.runtime.value, found.quantization.value) == (dtype, runtime, bits)
    assert found.level == level.name
    # A model that was loaded so is asked about again, by the runtime and by drafts.
    again = capabilities(CPU, found.dtype.value, keep_dtype=True)
    assert (again.runtime, again.quantization, again.refused) == (found.runtime, found.quantization, found.refused)
    for choice in (found.dtype, found.runtime, found.quantization):
        assert choice.reason


@pytest.mark.parametrize("level", [V3, V3_VNNI], ids=lambda level: level.name)
def test_a_dtype_that_was_asked_for_stays(level, pretend):
    pretend(level, kernels=False)  # oneDNN itself was not told of the level
    found = capabilities(CPU, BF16, keep_dtype=True)
    assert (found.dtype.value, found.runtime.value) == (BF16, "eager")
    assert found.refused["packed"] == f"oneDNN has no bfloat16 on {level.name}"
    assert "CXX" in found.refused["native"] and found.refused["native"] in found.runtime.reason
    assert capabilities(CPU, F16, keep_dtype=True).runtime.value == "eager"


def test_without_onednn_there_is_no_packed_layout(pretend, monkeypatch):
    pretend(V3, kernels=True)
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert capabilities(CPU, BF16).runtime.value == "native"
    pretend(V3, kernels=False)
    assert capabilities(CPU, BF16).runtime.value == "eager"


def test_on_a_gpu_nobody_waits_for_a_compiler(monkeypatch):
    monkeypatch.setattr(native, "kernels", lambda: pytest.fail("asked for"))
    found = capabilities(CUDA, F16)
    assert (found.dtype.value, found.runtime.value, found.quantization.value) == (F16, "graphs", "none")
    assert {"native", "packed", "int8", "int4"} == set(found.refused)
    assert capabilities(torch.device("meta"), F16).runtime.value == "eager"


def test_only_a_large_draft_takes_four_bits(pretend):
    pretend(V3, kernels=True)
    large = capabilities(CPU, BF16, draft_parameters=module.LARGE_DRAFT)
    assert large.quantization.value == "int4"
    assert capabilities(CPU, BF16, runtime="eager", draft_parameters=module.LARGE_DRAFT).quantization.value == "none"


def test_runtimes_and_drafts_follow(pretend, monkeypatch):
    pretend(V4_BF16, kernels=False)
    monkeypatch.setattr(compat, "warn_once", lambda problem: None)
    model = tiny_model()
    assert Runtime(model).name == "packed"
    assert draft_quantization(model, "auto") == "none"
    with pytest.raises(NoKernelsError, match="CXX"):
        Runtime(model, "native")
    with pytest.raises(UsageError, match=r"quantization is 'int4': no C\+\+ compiler was found.*give 'int8'"):
        Runtime(model, quantization="int4")


def test_that_there_are_no_kernels_is_said_once(pretend):
    pretend(V4_BF16, kernels=False)
    compat.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"without our kernels, and slower: .*install g\+\+ or set CXX") as said:
        for _ in range(2):
            Runtime(tiny_model())
    assert len(said) == 1
    compat.warn_once.cache_clear()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("packed", r"runtime is 'packed': it runs float32 and bfloat16 on the CPU, and .* torch\.float16 on cpu"),
        ("graphs", "runtime is 'graphs': it runs on CUDA, and the model is on cpu; give auto"),
    ],
)
def test_a_runtime_that_does_not_run_here_is_refused(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        Runtime(tiny_model().half(), name)
    assert Runtime(tiny_model().half()).name == "eager"
