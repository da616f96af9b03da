from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from specstream import environment
from specstream.environment import GENERIC, LEVELS, free_memory, level, limit_libraries, processor_level
from specstream.errors import UsageError

V3 = "fpu sse2 avx avx2 fma f16c bmi1 bmi2 abm movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
PROCESSORS = {  # by what their kernel lists
    ("x86_64", f"flags\t: {V4} avx512_vnni avx512_bf16 amx_tile"): "x86-64-v4-bf16",
    ("x86_64", f"flags\t: {V4} avx512_vnni"): "x86-64-v4-vnni",
    ("x86_64", f"flags\t: {V4}"): "x86-64-v4",
    ("x86_64", f"flags\t: {V4} avx_vnni"): "x86-64-v4",
    ("x86_64", f"flags\t: {V3} avx_vnni"): "x86-64-v3-vnni",
    ("x86_64", f"flags\t: {V3}"): "x86-64-v3",
    ("x86_64", "flags\t: fpu sse2 avx"): "generic",
    ("aarch64", "Features\t: fp asimd atomics asimddp bf16"): "aarch64",
    ("aarch64", "Features\t: fp asimd"): "generic",
    ("riscv64", ""): "generic",
}


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    for asked in (level, processor_level):
        asked.cache_clear()
    yield
    monkeypatch.undo()
    for asked in (level, processor_level):
        asked.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, machine: str, line: str) -> None:
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    monkeypatch.setattr(environment, "_cpu_line", lambda *names: line if line.startswith(names) else "")


@pytest.mark.parametrize(("machine", "line", "name"), [(*key, name) for key, name in PROCESSORS.items()])
def test_a_processor_has_the_highest_level_that_it_can_run(
    monkeypatch: pytest.MonkeyPatch, machine: str, line: str, name: str
) -> None:
    if machine == "riscv64":
        monkeypatch.setattr("torch.cpu._is_avx2_supported", lambda: False)
        monkeypatch.setattr("torch.cpu._is_avx512_supported", lambda: False)
        monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    pretend(monkeypatch, machine, line)
    assert level().name == name


@pytest.mark.parametrize(
    ("avx512", "bf16", "name"),
    [(False, False, "x86-64-v3"), (True, False, "x86-64-v4-vnni"), (True, True, "x86-64-v4-bf16")],
)
def test_where_no_kernel_lists_features_torch_tells(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, bf16: bool, name: str
) -> None:
    pretend(monkeypatch, "AMD64", "")
    answers = {"avx2": True, "avx512": avx512, "vnni": True, "avx512_bf16": bf16}
    for feature, answer in answers.items():
        monkeypatch.setattr(f"torch.cpu._is_{feature}_supported", lambda answer=answer: answer)
    assert level().name == name


@pytest.mark.parametrize(("system", "name"), [("Darwin", "aarch64"), ("Windows", "generic")])
def test_a_mac_has_what_every_mac_has(monkeypatch: pytest.MonkeyPatch, system: str, name: str) -> None:
    pretend(monkeypatch, "arm64", "")
    monkeypatch.setattr(environment.platform, "system", lambda: system)
    assert level().name == name


def test_a_larger_machine_behaves_like_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "x86_64", f"flags\t: {V4}")
    monkeypatch.setenv(environment.VARIABLE, "x86-64-v3")
    assert (level().name, processor_level().name) == ("x86-64-v3", "x86-64-v4")


@pytest.mark.parametrize(
    ("line", "wanted", "sentence"),
    [
        (V4, "nonsense", "SPECSTREAM_CPU is 'nonsense', which is no level; give x86-64-v3 or x86-64-v4, or leave"),
        (V3, "x86-64-v4", "SPECSTREAM_CPU is 'x86-64-v4', and this processor is x86-64-v3; give x86-64-v3, or leave"),
        (V4, "aarch64", "SPECSTREAM_CPU is 'aarch64', and this processor is x86-64-v4; give"),
        ("sse2", "x86-64-v3", "SPECSTREAM_CPU is 'x86-64-v3', and this processor is generic; leave it unset"),
    ],
)
def test_a_level_that_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch, line: str, wanted: str, sentence: str
) -> None:
    pretend(monkeypatch, "x86_64", f"flags\t: {line}")
    monkeypatch.setenv(environment.VARIABLE, wanted)
    for ask in (level, limit_libraries):
        with pytest.raises(UsageError, match=sentence):
            ask()


def test_torchs_libraries_are_held_to_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "x86_64", f"flags\t: {V4}")
    names = sorted(LEVELS[0].libraries)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    limit_libraries()
    assert not set(names) & set(os.environ)
    monkeypatch.setenv(environment.VARIABLE, "x86-64-v3")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # the user's own word
    limit_libraries()
    assert [os.environ[name] for name in names] == ["default", "AVX2", "AVX2"]


def test_the_levels_of_one_architecture_rise() -> None:
    x86 = [each for each in LEVELS if each.machine == "x86_64"]
    assert not any(later.needs <= earlier.needs for earlier, later in itertools.combinations(x86, 2))
    assert len({each.name for each in (*LEVELS, GENERIC)}) == len(LEVELS) + 1


@pytest.mark.parametrize(
    ("package", "release", "tested"),
    [
        ("transformers", "5.16.9", False),
        ("transformers", "5.17", True),
        ("transformers", "5.24.3", True),
        ("transformers", "5.25.0.dev0", False),
        ("transformers", "6.0", False),
        ("torch", "2.13.0+cpu", True),
        ("torch", "2.9.1", False),
        ("huggingface_hub", "2.40.0", True),
        ("huggingface_hub", "3.0.0rc1", False),
        ("python", "3.11.7", True),
        ("torch", "unknown", False),
    ],
)
def test_a_release_is_tested_or_not(package: str, release: str, tested: bool) -> None:
    assert environment.is_tested(package, release) is tested


def test_the_pip_line_asks_for_what_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "TESTED", {"torch": ("2.11", "2.14"), "hub": ("1.33", "2")})
    assert environment.pip_line("torch") == "pip install 'torch>=2.11,<2.15'"
    assert environment.pip_line("hub") == "pip install 'hub>=1.33,<3'"


@pytest.mark.parametrize(
    ("files", "physical", "logical"),
    [
        ({}, 4, 4),
        ({"cpu0/": "0,2", "cpu1/": "1,3", "cpu2/": "0,2", "cpu3/": "1,3"}, 2, 4),
        ({"cpu.max": "150000 100000"}, 2, 2),
        ({"cpu.max": "max 100000"}, 4, 4),
        ({"quota_us": "100000", "period_us": "100000"}, 1, 1),
        ({"quota_us": "-1", "period_us": "100000"}, 4, 4),
    ],
)
def test_cores_are_those_that_threads_run_on_at_once(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], physical: int, logical: int
) -> None:
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(environment, "_text", lambda path: next((files[each] for each in files if each in path), ""))
    assert environment.cores() == environment.Cores(physical=physical, logical=logical)


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **variables}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ, check=False)


def test_the_command_line_refuses_in_one_sentence() -> None:
    done = command("-m", "specstream.cli", "models", "list", SPECSTREAM_CPU="nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("error: SPECSTREAM_CPU is 'nonsense', which is no level; ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif("x86" not in processor_level().name, reason="torch's own variables are of x86")
def test_torch_itself_is_held_to_the_level() -> None:
    """As the command line does it: the package is there, torch is not yet."""
    script = (
        "from specstream.environment import limit_libraries; limit_libraries(); import torch; "
        "print(torch.backends.cpu.get_cpu_capability(), torch.ops.mkldnn._is_mkldnn_bf16_supported())"
    )
    variables = dict.fromkeys(LEVELS[0].libraries, "")
    del variables["ATEN_CPU_CAPABILITY"]
    environ = {name: value for name, value in os.environ.items() if name not in LEVELS[0].libraries}
    environ["SPECSTREAM_CPU"] = "x86-64-v3"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.split() == ["AVX2", "False"]


def test_free_memory_obeys_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4000 kB\n")
    assert free_memory(tmp_path) == 4_096_000
    groups = tmp_path / "sys" / "fs" / "cgroup"
    groups.mkdir(parents=True)
    (groups / "memory.max").write_text("max\n")
    (groups / "memory.current").write_text("1000\n")
    assert free_memory(tmp_path) == 4_096_000
    (groups / "memory.max").write_text("3000\n")
    assert free_memory(tmp_path) == 2000
    assert free_memory(tmp_path / "nowhere") > 0
