"""Where kernels come from, and what a machine that will not give them does to a run."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from specstream.environment import GENERIC, LEVELS, architecture, level
from specstream.models.runtime import compiled, native
from specstream.models.runtime.compiled import NoKernelsError, compile_kernels, find_compiler, kept_for, load

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")

LIBRARY = """
#include <omp.h>
extern "C" int threads() { return omp_get_num_threads(); }
extern "C" const char *specstream_level() { return "%s"; }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache of a machine that never built the kernels, and the sources of kernels that are built at once."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "small.cpp").write_text(LIBRARY % level().name)
    monkeypatch.setattr(compiled, "SOURCES", (sources / "small.cpp",))
    monkeypatch.setattr(compiled, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "specstream" / "kernels"


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """This machine's, with a note of every run."""
    path = script(tmp_path / "compiler", f'echo "$*" >> "$0.log"\nexec {find_compiler()} "$@"')
    monkeypatch.setenv("CXX", path)
    return path


def runs(compiler):
    log = Path(f"{compiler}.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def files(folder):
    return sorted(each.name for each in folder.rglob("*") if each.suffix != ".lock") if folder.exists() else []


@needs_compiler
def test_they_are_compiled_once_and_that_is_said(compiler, folder, capfd):
    found = load(level())
    assert (found.state, files(folder)) == ("compiled", [f"{found.name}.so"])
    assert found.name.startswith(f"{level().name}-")
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"compiling kernels for this processor ({level().name})" in said
    assert "-march=native" not in Path(f"{compiler}.log").read_text()
    before = runs(compiler)
    assert load(level()).name == found.name
    assert runs(compiler) == before, "not even asked for its version"
    assert capfd.readouterr().err == ""


@needs_compiler
def test_they_outlive_their_compiler(compiler, folder, monkeypatch):
    name = load(level()).name
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load(level()).name == name


@needs_compiler
def test_another_compiler_or_other_sources_or_flags_make_others(compiler, folder, tmp_path, monkeypatch):
    names = [load(level()).name]
    monkeypatch.setenv("CXX", script(tmp_path / "newer", f'exec {find_compiler()} "$@" # of another size'))
    names.append(load(level()).name)
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, "-DOTHER"))
    names.append(load(level()).name)
    compiled.SOURCES[0].write_text(compiled.SOURCES[0].read_text() + "// changed\n")
    names.append(load(level()).name)
    assert len(set(names)) == len(files(folder)) == 4


@needs_compiler
def test_of_processes_that_start_together_one_compiles(compiler, folder):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load, [level()] * 4))
    assert {each.state for each in found} == {"compiled"}
    assert sum(" -c " in line for line in Path(f"{compiler}.log").read_text().splitlines()) == 1


@needs_compiler
def test_machines_of_two_kinds_share_a_home(compiler, folder, monkeypatch):
    """One has compiled for its processor; the other neither loads that nor is in its way."""
    other = next(each for each in LEVELS if each != level())
    kept = kept_for(compiler, other)
    kept.parent.mkdir(parents=True)
    kept.write_text("for another processor")
    mine = load(level())
    assert mine.state == "compiled" and mine.name.startswith(level().name)
    assert kept.read_text() == "for another processor"
    # Not even where a file was copied to another's name.
    shutil.copy(folder / f"{mine.name}.so", kept)
    with pytest.raises(OSError, match=f"is for {level().name}"):
        compiled._open(kept, other)
    assert kept_for(compiler, GENERIC) != kept
    monkeypatch.setattr(compiled, "processor", lambda: "flags: another")
    assert kept_for(compiler, GENERIC).name != kept.name


@needs_compiler
def test_a_damaged_file_is_made_anew(compiler, folder):
    kept = kept_for(compiler, level())
    kept.parent.mkdir(parents=True)
    kept.write_text("half")
    assert load(level()).state == "compiled"
    assert kept.stat().st_size > 1000
    assert files(folder) == [kept.name]


def test_without_a_compiler_the_remedy_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = load(level())
    assert (found.state, found.library, found.name) == ("missing", None, "")
    assert f"no kernels for {level().name}" in found.reason and "install g++ or set CXX" in found.reason
    assert files(folder) == []


@needs_compiler
@pytest.mark.parametrize(
    ("machine", "flags", "state"),
    [
        ("x86_64", "flags : sse2 avx", "missing"),
        ("x86_64", "flags : avx2 fma", "compiled"),
        ("riscv64", "", "missing"),
    ],
)
def test_a_processor_without_a_level_is_compiled_for_by_itself(compiler, folder, monkeypatch, machine, flags, state):
    monkeypatch.setattr(compiled, "architecture", lambda: machine)
    monkeypatch.setattr(compiled, "processor", lambda: flags)
    found = load(GENERIC)
    assert found.state == state
    if state == "missing":
        assert found.reason == "the kernels need AVX2 with FMA, or NEON, and this processor has neither"
        assert runs(compiler) == 0
    else:
        assert "-march=native" in Path(f"{compiler}.log").read_text()


def test_the_error_is_the_same_for_who_asks_for_them(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.kernels.cache_clear()
    try:
        assert not native.available()
        with pytest.raises(NoKernelsError, match="CXX is 'no-such-compiler', which is no command; give"):
            native.kernel("linear", torch.float32)
    finally:
        native.kernels.cache_clear()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/no/such", "CXX is '/no/such', which is no command; give the name of one without its options"),
        ("/bin/cat -O2", "CXX is '/bin/cat -O2', which is no command; give the name of one without its options"),
        ("true", "ended without an error and wrote no file; set CXX to another compiler"),
        ("false", "could not build the kernels: it ended with 1; set CXX to another compiler"),
    ],
)
def test_a_compiler_that_is_none_is_named(folder, monkeypatch, command, told):
    monkeypatch.setenv("CXX", command)
    found = load(level())
    assert found.state == "missing" and told in found.reason and files(folder) == []


@pytest.mark.skipif(architecture() != "x86_64", reason="its levels are those of another processor")
@pytest.mark.parametrize("name", ["x86-64-v3-vnni", "x86-64-v4-bf16"])
def test_a_compiler_that_does_not_know_a_level_may_know_a_lower_one(folder, monkeypatch, name):
    monkeypatch.setenv("CXX", "false")
    found = load(next(each for each in LEVELS if each.name == name))
    assert found.reason.endswith("; set CXX to another compiler, or SPECSTREAM_CPU to x86-64-v3")


@needs_compiler
@pytest.mark.parametrize(
    ("complaint", "sentence"),
    [
        ("unknown flag", "could not build the kernels: unknown flag; set CXX to another compiler"),
        (
            "cannot write x.o: No space left on device",
            "could not build the kernels: cannot write x.o: No space left on device; free some space or set TMPDIR",
        ),
    ],
)
def test_a_compiler_that_fails_leaves_nothing_behind(folder, tmp_path, monkeypatch, complaint, sentence):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(compiled.tempfile, "tempdir", None)
    failing = script(tmp_path / "failing", f'for made; do :; done\necho half > "$made"\necho "{complaint}" >&2\nexit 1')
    monkeypatch.setenv("CXX", failing)
    found = load(level())
    assert found.state == "missing" and sentence in found.reason and "\n" not in found.reason
    assert files(folder) == [] and not list(tmp_path.glob("specstream-*"))
    monkeypatch.delenv("CXX")
    assert load(level()).state == "compiled"


@needs_compiler
def test_a_compiler_whose_work_does_not_load_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "CXX", script(tmp_path / "odd", 'for made; do :; done\n[ "$made" = --version ] || echo odd > "$made"')
    )
    found = load(level())
    assert found.state == "missing" and "cannot be loaded" in found.reason and "set CXX" in found.reason
    assert files(folder) == []


@needs_compiler
@pytest.mark.parametrize("place", ["file", "/proc/nothing"])
def test_a_cache_that_cannot_be_written_costs_a_compilation(compiler, folder, tmp_path, monkeypatch, capfd, place):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", place if place.startswith("/") else str(tmp_path / place))
    assert load(level()).state == "compiled"
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and "at each start" in said[0] and "XDG_CACHE_HOME" in said[1]
    before = runs(compiler)
    assert load(level()).state == "compiled"
    assert runs(compiler) == 2 * before
    capfd.readouterr()
    monkeypatch.setenv("CXX", script(tmp_path / "failing", "exit 1"))
    assert load(level()).state == "missing"
    assert "cannot be kept" in capfd.readouterr().err  # whoever waits for the compiler knows it already


def full(*arguments, **settings):
    raise OSError(errno.ENOSPC, "No space left on device")


@needs_compiler
def test_a_disk_that_is_full_when_they_are_kept(compiler, folder, monkeypatch, capfd):
    def half(made, partial):
        Path(partial).write_bytes(b"half")
        full()

    with monkeypatch.context() as patch:
        patch.setattr(compiled.shutil, "copyfile", half)
        assert load(level()).state == "compiled"
    assert "No space left" in capfd.readouterr().err
    assert files(folder) == []
    assert load(level()).state == "compiled"
    assert len(files(folder)) == 1


@needs_compiler
def test_a_disk_that_is_full_when_they_are_compiled(compiler, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(compiled.tempfile, "mkdtemp", full)
        found = load(level())
    assert found.state == "missing" and "No space left" in found.reason and "set TMPDIR" in found.reason
    assert load(level()).state == "compiled"


@needs_compiler
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_who_is_interrupted_leaves_no_half_library_and_the_next_run_works(folder, tmp_path, monkeypatch, how):
    started = tmp_path / "started"
    slow = script(tmp_path / "slow", f'echo $$ > {started}\nfor made; do :; done\necho half > "$made"\nexec sleep 60')
    program = (
        # A test that runs in the background of a shell is born with this signal ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from specstream.environment import level; "
        "from specstream.models.runtime import compiled; "
        f"compiled.SOURCES = (Path({str(compiled.SOURCES[0])!r}),); compiled.load(level())"
    )
    environ = {**os.environ, "CXX": slow, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environ, stderr=subprocess.PIPE, text=True) as process:
        while not started.exists() or not started.read_text().strip():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        process.wait(timeout=30)
    child = int(started.read_text())
    assert files(folder) == []
    if how == signal.SIGINT:  # it cleans up: the compiler has ended, and its folder is gone
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        assert not list(tmp_path.glob("specstream-*"))
    else:
        os.kill(child, signal.SIGKILL)
    assert load(level()).state == "compiled"
    assert len(files(folder)) == 1


@needs_compiler
def test_the_wheels_own_come_first_and_need_no_compiler(folder, compiler, monkeypatch):
    prebuilt = compiled.PREBUILT / f"{level().name}.so"
    prebuilt.parent.mkdir()
    compile_kernels(compiler, level(), prebuilt)
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = load(level())
    assert (found.state, found.reason) == ("prebuilt", "came with the wheel")
    assert found.name.startswith(f"wheel-{level().name}-")
    assert not folder.exists()


@needs_compiler
def test_if_the_wheels_own_do_not_load_others_are_compiled(folder, compiler):
    prebuilt = compiled.PREBUILT / f"{level().name}.so"
    prebuilt.parent.mkdir()
    prebuilt.write_text("for another system")
    found = load(level())
    assert found.state == "compiled"
    assert found.reason.startswith("the wheel's cannot be loaded (") and "compiled here" in found.reason


def openmps():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "libgomp" in line or "libomp" in line}


@needs_compiler
def test_there_is_one_openmp_in_the_process_and_it_is_torchs(folder, compiler):
    """Nothing asks the system for one of its own, and the functions are found nevertheless."""
    library = load(level()).library
    assert library is not None and library.threads() == 1
    if Path("/proc/self/maps").exists():
        assert len(openmps()) == 1
    if shutil.which("readelf") and "clang" not in compiled._version(compiler):
        kept = str(kept_for(compiler, level()))
        told = subprocess.run(["readelf", "-d", kept], capture_output=True, text=True, check=True).stdout
        assert not [line for line in told.splitlines() if "NEEDED" in line and "omp" in line]


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of what a process has loaded")
def test_an_openmp_under_another_name_is_found_too(folder, compiler, tmp_path):
    """Builds of torch for CUDA bring one whose file name holds a hash; the process then has no other."""
    found = load(level())
    (own,) = openmps()
    renamed = tmp_path / "libgomp-a34b3233.so.1"
    shutil.copy(own, renamed)
    program = (
        "import ctypes; from pathlib import Path; from specstream.environment import level; "
        f"ctypes.CDLL({str(renamed)!r}); from specstream.models.runtime import compiled; "
        f"library = compiled._open(Path({str(folder / f'{found.name}.so')!r}), level()); print(library.threads()); "
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'libomp' in line})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", str({str(renamed)})]
