"""The kernels at every level that this machine's compilers make and its processor, or an emulator of another, runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from specstream.environment import LEVELS, Level, architecture, processor_level
from specstream.models.runtime.compiled import FLAGS, compile_kernels, find_compiler, kept_for

NEON = "aarch64-linux-gnu"


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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_kernel_is_the_formula_and_keeps_its_bits(level, tmp_path, tmp_path_factory):
    compiler, start = tools(level)
    kernels, program = compiled(compiler, level, tmp_path), tmp_path / "kernels"
    # What checks is fast enough with less, and compiled in a third of the time.
    command = [compiler, *FLAGS, "-O1", str(Path(__file__).with_name("test_kernels.cpp")), str(kernels)]
    made = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    ran = subprocess.run([*start, str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    name, checks, digest = ran.stdout.split()
    assert name == level.name
    assert int(checks) > 100_000
    # Products with weights in blocks are the same at all levels, whichever process has checked the others.
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digests"
    shared.mkdir(exist_ok=True)
    (shared / level.name).write_text(digest)
    assert {file.read_text() for file in shared.iterdir()} == {digest}
