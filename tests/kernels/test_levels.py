"""The kernels at every level that this machine's compilers make and its processor, or an emulator of another, runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from specstream.environment import LEVELS, Level, architecture, processor_level
from specstream.models.runtime.compiled import FLAGS, SOURCES, compile_kernels, find_compiler, kept_for

NEON = "aarch64-linux-gnu"
CHECKS = Path(__file__).with_name("test_kernels.cpp")


def tools(level: Level) -> tuple[str, list[str]]:
    """The compiler for a level and what its programs are started with."""
    if level.machine == "aarch64" != architecture():
        compiler, emulator = shutil.which(f"{NEON}-g++"), shutil.which("qemu-aarch64")
        if compiler is None or emulator is None:
            pytest.skip(f"{NEON}-g++ and qemu-user are needed to run the level of another processor")
        return compiler, [emulator, "-L", f"/usr/{NEON}"]
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    if level.machine != architecture() or not level.needs <= processor_level().needs:
        pytest.skip(f"the processor is {processor_level().name}")
    return compiler, []


def compiled(compiler: str, level: Level, folder: Path) -> Path:
    """The package's own library for a level, which its cache keeps as long as the sources and the compiler stay."""
    kept = kept_for(compiler, level)
    if not kept.exists():
        made = folder / kept.name
        compile_kernels(compiler, level, made)
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{kept.name}.{os.getpid()}.partial")
        shutil.copyfile(made, partial)
        os.replace(partial, kept)
    return kept


def digest_of(name: str, command: list[str], program: Path, start: Sequence[str] = ()) -> str:
    """What the checks say of products with weights in blocks, where all of them pass."""
    made = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    ran = subprocess.run([*start, str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said, checks, digest = ran.stdout.split()
    assert said == name
    assert int(checks) > 100_000
    return digest


@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_kernel_is_the_formula_and_keeps_its_bits(level, tmp_path, tmp_path_factory):
    compiler, start = tools(level)
    kernels, program = compiled(compiler, level, tmp_path), tmp_path / "kernels"
    # What checks is fast enough with less, and compiled in a third of the time.
    digest = digest_of(level.name, [compiler, *FLAGS, "-O1", str(CHECKS), str(kernels)], program, start)
    # Products with weights in blocks are the same at all levels, whichever process has checked the others.
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digests"
    shared.mkdir(exist_ok=True)
    (shared / level.name).write_text(digest)
    assert {file.read_text() for file in shared.iterdir()} == {digest}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "header", "more"),
    [
        ("x86-64-v3-vnni", "avxvnni.h", ()),
        ("x86-64-v4", "avx512.h", ()),
        ("x86-64-v4-vnni", "avx512.h", ("-DEMULATE_VNNI",)),
    ],
)
def test_kernels_of_higher_levels_have_the_digest_of_others_where_they_are_emulated(name, header, more, tmp_path):
    own = processor_level()
    if own.name != "x86-64-v3":
        pytest.skip(f"the processor is {own.name}")
    compiler, _ = tools(own)
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    if header == "avx512.h" and "clang" in told:
        pytest.skip("Clang passes no vectors of 64 bytes without AVX512")
    native = [compiler, *FLAGS, "-O1", str(CHECKS), str(compiled(compiler, own, tmp_path))]
    sources = [*map(str, SOURCES), str(CHECKS)]
    emulation = ["-O1", "-Wno-psabi", "-include", str(CHECKS.with_name(header)), *more]
    emulated = [compiler, *FLAGS, *own.options, *emulation, *sources]
    assert digest_of(name, emulated, tmp_path / name) == digest_of(own.name, native, tmp_path / "native")
