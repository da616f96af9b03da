"""The kernels at every level that this machine's compilers make and its processor, or an emulator of another, runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from specstream.environment import LEVELS, Level, architecture, processor_level
from specstream.models.runtime.compiled import FLAGS, SOURCES, find_compiler

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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_kernel_is_the_formula_and_keeps_its_bits(level, tmp_path, tmp_path_factory):
    compiler, start = tools(level)
    sources = [*SOURCES, Path(__file__).with_name("test_kernels.cpp")]
    objects = [tmp_path / f"{source.stem}.o" for source in sources]
    flags = [*FLAGS, *level.options]
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
    name, checks, digest = ran.stdout.split()
    assert name == level.name
    assert int(checks) > 100_000
    # Products with weights in blocks are the same at all levels, whichever process has checked the others.
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digests"
    shared.mkdir(exist_ok=True)
    (shared / level.name).write_text(digest)
    assert {file.read_text() for file in shared.iterdir()} == {digest}
