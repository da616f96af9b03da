"""The kernels at every level that this machine's compilers make and its processor, or an emulator of another, runs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from specstream.models import native

COMMON = ("-std=c++17", "-O3", "-ffp-contract=off", "-fopenmp", "-fPIC")
NEON = "aarch64-linux-gnu"
LEVELS = {
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64-v4": ("-march=x86-64-v4",),
    "x86-64-v4-bf16": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
    "aarch64": ("-march=armv8-a",),
}
NEEDED = {  # as /proc/cpuinfo calls what a level's code may use
    "x86-64-v3": {"avx2", "fma", "bmi2"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v4-bf16": {"avx512_vnni", "avx512_bf16"},
}


def tools(level: str) -> tuple[str, list[str]]:
    """The compiler for a level and what its programs are started with."""
    own = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if level == "aarch64" and platform.machine() != "aarch64":
        compiler, emulator = shutil.which(f"{NEON}-g++"), shutil.which("qemu-aarch64")
        if compiler is None or emulator is None:
            pytest.skip(f"{NEON}-g++ and qemu-user are needed to run the level of another processor")
        return compiler, [emulator, "-L", f"/usr/{NEON}"]
    if own is None:
        pytest.skip("no C++ compiler on this machine")
    if level != "aarch64":
        known = Path("/proc/cpuinfo")
        flags = set(known.read_text(encoding="utf-8").split()) if known.exists() else set()
        if missing := NEEDED[level] - flags:
            pytest.skip(f"the processor lacks {', '.join(sorted(missing))}")
    return own, []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", LEVELS)
def test_every_kernel_is_the_formula_and_keeps_its_bits(level, tmp_path):
    compiler, start = tools(level)
    sources = [*native.SOURCES, Path(__file__).with_name("test_kernels.cpp")]
    objects = [tmp_path / f"{source.stem}.o" for source in sources]
    flags = [*COMMON, *LEVELS[level]]
    running = [
        subprocess.Popen([compiler, *flags, "-c", str(source), "-o", str(made)], stderr=subprocess.PIPE, text=True)
        for source, made in zip(sources, objects, strict=True)
    ]
    complaints = [process.communicate()[1] for process in running]
    assert not any(complaints), complaints
    program = tmp_path / "kernels"
    subprocess.run([compiler, *flags, *map(str, objects), "-o", str(program)], check=True)
    ran = subprocess.run([*start, str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    name, checks = ran.stdout.split()
    assert name == level
    assert int(checks) > 100_000
