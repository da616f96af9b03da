"""What is so, and what follows from it. Nothing here depends on how fast this machine is."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specstream.environment import Cores, pip_line
from specstream.evaluation import doctor
from specstream.evaluation.doctor import facts, findings, speed
from specstream.evaluation.doctor.facts import Cache, Caches, Gpu, Gpus, Passes, Processor, Version, Widths
from specstream.models.hub.catalog import DEFAULT_MODEL, catalog
from specstream.models.invariance import costs, selftest_cache
from tests.tiny import tiny_model, tiny_tokenizer

PROCESSOR = Processor(
    model="Some processor",
    own_level="x86-64-v4",
    level="x86-64-v4",
    variable="",
    libraries={},
    unheld=(),
    cores=Cores(physical=4, logical=8),
    threads=4,
    load=0.5,
    waits="",
)
PASSES = Passes(
    device="cpu",
    kernels="compiled",
    kernels_reason="compiled here: /a/b.so",
    path="/a/b.so",
    compiler="/usr/bin/c++",
    dtype="bfloat16",
    dtype_reason="the checkpoint's own",
    runtime="native",
    runtime_reason="our kernels",
    quantization="int8",
    quantization_reason="half",
)
GPUS = Gpus(usable=(), listed=(), driver=None, cuda=None, visible=None)
CARD = Gpu(name="Some GPU", memory=80_000_000_000, capability="9.0")
CACHE = Cache(name="kernels", path="/a", variable="XDG_CACHE_HOME", bytes=1, files=1, problem="")
WIDTHS = Widths(model="m", state="kept", widths=(1, 2), exact="bits", runtime="native", dtype="bfloat16")
MEASURED = speed.Speed(
    device="cpu", threads=2, read=10e9, read_by="", products=20e9, products_by="", float32=1.0, seconds=5.0
)


def version(name: str, installed: str | None) -> Version:
    return Version(name=name, installed=installed, expected="5.17 to 5.24 tested")


def sentences(found: list[findings.Finding]) -> list[str]:
    return [str(each) for each in found]


def test_a_sound_machine_has_nothing_to_mend() -> None:
    assert findings.of_versions([version("transformers", "5.20.1"), version("tokenizers", "0.1")]) == []
    assert findings.of_processor(PROCESSOR) == []
    assert findings.of_passes(PASSES) == []
    assert findings.of_gpus(GPUS) == []
    assert findings.of_caches(Caches(folders=(CACHE,), keeps_self_tests=True)) == []
    assert findings.of_widths(WIDTHS) == []
    assert findings.notes(PROCESSOR, WIDTHS) == []


def test_an_untested_release_has_its_pip_line() -> None:
    assert sentences(findings.of_versions([version("transformers", "5.99.0")])) == [
        f"transformers is 5.99.0, and 5.17 to 5.24 tested; {pip_line('transformers')}"
    ]
    assert sentences(findings.of_versions([version("torch", None), version("tokenizers", None)])) == [
        f"torch is not installed; {pip_line('torch')}",
        "tokenizers is not installed; pip install tokenizers",
    ]
    (python,) = findings.of_versions([version("python", "3.99.0")])
    assert python.remedy == "make an environment with one of these"


def test_a_lowered_level_is_named() -> None:
    lowered = replace(PROCESSOR, level="x86-64-v3", variable="x86-64-v3")
    assert sentences(findings.of_processor(lowered)) == [
        "SPECSTREAM_CPU is x86-64-v3, and this processor is x86-64-v4; unset SPECSTREAM_CPU"
    ]
    (note,) = findings.notes(replace(lowered, unheld=("ATEN_CPU_CAPABILITY",)), None)
    assert note.startswith("ATEN_CPU_CAPABILITY is not the level's")


@pytest.mark.parametrize(
    ("threads", "problem"),
    [(1, "torch runs 1 thread on 4 cores"), (4, ""), (8, ""), (9, "torch runs 9 threads on 4 cores")],
)
def test_threads_are_as_many_as_cores(threads: int, problem: str) -> None:
    found = findings.of_processor(replace(PROCESSOR, threads=threads))
    assert [each.problem for each in found] == ([problem] if problem else [])
    assert all(each.remedy.startswith("set OMP_NUM_THREADS=4") for each in found)


def test_missing_kernels_are_one_finding_with_its_remedy() -> None:
    reason = "no C++ compiler was found; install g++ or set CXX for faster passes"
    missing = replace(PASSES, kernels="missing", kernels_reason=reason, runtime="packed", dtype="float32")
    assert sentences(findings.of_passes(missing)) == [
        "kernels are missing, so passes run on packed in float32: no C++ compiler was found; "
        "install g++ or set CXX for faster passes"
    ]
    assert findings.of_passes(replace(missing, device="cuda", runtime="graphs")) == []
    (other,) = findings.of_passes(replace(PASSES, runtime="eager"))
    assert other.about == "passes"


@pytest.mark.parametrize(
    ("changed", "remedy"),
    [
        ({}, "pip install a build for CUDA"),
        ({"cuda": "13.0", "visible": ""}, "unset CUDA_VISIBLE_DEVICES"),
        ({"cuda": "13.0"}, "install a newer driver"),
        ({"cuda": "13.0", "usable": (CARD,)}, None),
    ],
)
def test_a_gpu_that_is_not_used_is_named(changed: dict[str, object], remedy: str | None) -> None:
    found = findings.of_gpus(replace(GPUS, **{"listed": ("Some GPU",), "driver": "580.1", **changed}))
    assert [each.remedy[: len(remedy or "")] for each in found] == ([remedy] if remedy else [])
    assert all(each.problem.startswith("there is a GPU (Some GPU, driver 580.1) and") for each in found)


def test_a_cache_that_cannot_be_written_to_is_named() -> None:
    closed = replace(CACHE, problem="Read-only file system")
    assert sentences(findings.of_caches(Caches(folders=(CACHE, closed), keeps_self_tests=False))) == [
        "the cache of kernels, /a, cannot be written to (Read-only file system); "
        "make it writable, or set XDG_CACHE_HOME to a folder that is",
        "SPECSTREAM_NO_SELFTEST_CACHE is set, so every start tests the model anew; unset SPECSTREAM_NO_SELFTEST_CACHE",
    ]


def test_rounding_is_a_finding_where_it_can_be_mended() -> None:
    rounding = replace(WIDTHS, exact="rounding", widths=())
    (found,) = findings.of_widths(rounding)
    assert found.problem.endswith("(native, bfloat16): batch-invariant widths up to 16 nodes are none")
    (packed,) = findings.of_widths(replace(rounding, runtime="packed"))
    assert packed.remedy.startswith("install the kernels, as above")
    assert findings.of_widths(replace(rounding, routed=True)) == []
    (note,) = findings.notes(None, replace(rounding, routed=True))
    assert "mixture of experts" in note
    assert findings.of_widths(replace(rounding, chains_only=True)) == []
    (note,) = findings.notes(None, replace(rounding, chains_only=True))
    assert "keeps a state" in note
    (refused,) = findings.of_widths(Widths(model="m", state="refused", problem="m cannot be a target"))
    assert refused.problem == "m cannot be a target"


def test_notes_are_nothing_to_mend() -> None:
    absent = Widths(model="m", state="not downloaded")
    assert findings.of_widths(absent) == []
    assert findings.notes(None, absent) == [
        "'m' is no folder here, no catalog name and not in the hub's cache; "
        "if the hub has it, this fetches it: specstream generate 'The sea is' --model m"
    ]
    (busy,) = findings.notes(replace(PROCESSOR, load=9.0), None)
    assert busy.startswith("the machine is busy")
    (waits,) = findings.notes(replace(PROCESSOR, waits="GOMP_SPINCOUNT is 9"), None)
    assert waits.startswith("GOMP_SPINCOUNT is 9: ")


def test_what_a_pass_costs_follows_from_the_speed() -> None:
    waits = speed.pass_costs("m", 10_000_000, 100_000_000, MEASURED)
    assert (waits["one"], waits["eight"], waits["break_even"]) == (0.01, 0.01, 0.0)
    computes = speed.pass_costs("m", 50_000_000, 100_000_000, MEASURED)
    assert [computes[name] for name in ("one", "eight", "ratio", "break_even")] == [0.01, 0.02, 2.0, 1.0]


@pytest.mark.parametrize(
    ("widths", "model", "weights", "dtype"),
    [
        (replace(WIDTHS, dtype="float32", parameters=10, bytes=40), "m", 40, torch.float32),
        (WIDTHS, DEFAULT_MODEL, None, None),  # a mixture of experts: what it reads depends on the tokens
        (Widths(model="qwen2.5-coder-0.5b", state="not downloaded"), "qwen2.5-coder-0.5b", None, None),
        (None, DEFAULT_MODEL, None, None),
    ],
)
def test_the_costs_are_of_the_model_that_was_asked_for(
    widths: Widths | None,
    model: str,
    weights: int | None,
    dtype: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.dtype] = []

    def measure(device: torch.device, dtype: torch.dtype) -> speed.Speed:
        asked.append(dtype)
        return MEASURED

    monkeypatch.setattr(speed, "speed", measure)
    monkeypatch.setattr(facts, "default_device", lambda: torch.device("cpu"))
    _, costs = doctor._measured(widths)
    assert costs["model"] == model
    assert costs["bytes"] == (weights or catalog()[model].parameters * asked[0].itemsize)
    assert dtype in (None, asked[0])


@pytest.mark.parametrize("kernels", [True, False])
def test_the_speed_says_what_it_was_measured_with(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LARGE", 1 << 16)
    if not kernels:
        monkeypatch.setattr(speed.native, "available", lambda: False)
    elif not speed.native.available():
        pytest.skip("there are no kernels here")
    found = speed.speed(torch.device("cpu"), torch.bfloat16, seconds=0.0)
    assert found.read_by == f"{'our kernel in bfloat16 on 1 row' if kernels else 'torch, a sum'}, over 0 MB"
    assert found.products_by == f"{'our kernel' if kernels else 'torch'} in bfloat16 on 8 rows"
    assert found.threads == torch.get_num_threads()
    assert min(found.read, found.products, found.float32) > 0


def test_a_cache_is_counted_and_tried(tmp_path: Path) -> None:
    folder = tmp_path / "there" / "deep"
    folder.mkdir(parents=True)
    (folder / "one").write_bytes(b"12345")
    found = facts._cache("models", tmp_path / "there", "SPECSTREAM_MODELS")
    assert (found.bytes, found.files, found.problem) == (5, 1, "")
    assert facts._cache("models", tmp_path / "not" / "yet", "X").problem == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "there"], "to look leaves nothing behind"
    assert facts._cache("models", folder / "one" / "below", "X").problem == "Not a directory"


def test_gpus_are_listed_by_the_driver_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Some GPU, big, 580.1'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert facts._nvidia_smi() == [("Some GPU, big", "580.1")]
    program.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert facts._nvidia_smi() == []


def test_the_widths_of_a_model_are_tested_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(selftest_cache.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(costs, "UNEVEN", 1e9)  # however busy this machine is
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    first = facts.widths(str(model), nullcontext)
    assert (first.state, first.dtype, first.routed) == ("tested", "float32", False)
    assert first.exact in ("bits", "rounding")
    assert first.parameters == first.bytes // 4
    assert {(each.rows, each.context) for each in first.passes} == {(1, 64), (1, 480)}
    assert first.drafts == (), "without heads nothing takes a step"
    assert facts.widths(str(model), nullcontext) == replace(first, state="kept")
    assert facts.widths(str(model), nullcontext, measure=False) == replace(first, state="kept")
    monkeypatch.setenv(selftest_cache.SWITCH, "1")
    assert facts.widths(str(model), nullcontext, measure=False).passes == ()
    monkeypatch.delenv(selftest_cache.SWITCH)
    (model / "config.json").write_text("{", encoding="utf-8")
    refused = facts.widths(str(model), nullcontext)
    assert refused.state == "refused" and "cannot be loaded" in refused.problem


def test_what_is_broken_becomes_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("no such\nsymbol")

    monkeypatch.setattr(facts, "processor", broken)
    monkeypatch.setattr(facts, "caches", broken)
    report = doctor.examine(None, measure=False)
    assert (report.processor, report.caches, report.widths, report.speed) == (None, None, None, None)
    assert report.versions and report.passes and report.gpus
    (found,) = (each for each in report.findings if "could not be examined" in each.problem)
    assert found.problem == "processor, caches could not be examined: ImportError: no such symbol"
