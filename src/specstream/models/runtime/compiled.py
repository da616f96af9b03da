"""Where our kernels come from: the wheel, the user's cache, or a C++ compiler, in this order.

A wheel made by ``make wheel`` holds a library for each level of its architecture. Elsewhere any of ``$CXX``, ``c++``,
``g++`` or ``clang++`` makes one in a minute, kept in the user's cache under a name that holds the level, the sources,
the flags and the compiler: machines that share a home directory never load each other's.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specstream.environment import GENERIC, LEVELS, Level, architecture, processor
from specstream.errors import SpecStreamError
from specstream.files.atomic import user_cache, why_unread
from specstream.reporting import announce, step

FOLDER = Path(__file__).parent / "kernels"
SOURCES = tuple(sorted(FOLDER.glob("*.cpp")))
HEADERS = tuple(sorted(FOLDER.glob("*.h")))
PREBUILT = FOLDER / "prebuilt"
NEEDED = {"x86_64": frozenset({"avx2", "fma"}), "aarch64": frozenset({"asimd"})}
"""By architecture, the features without which the sources do not compile."""

FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fopenmp", "-fPIC")


class NoKernelsError(SpecStreamError):
    """The kernels cannot be built or loaded here."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The kernels of a process.

    Attributes:
        state: ``prebuilt`` (of the wheel), ``compiled`` (on this machine, now or before) or ``missing``.
        reason: in words, where they come from, or why there are none and what to do about it.
        name: tells these from others built otherwise; empty where there are none.
        path: of the library; empty where there is none.
        library: None where there are none.
    """

    state: Literal["prebuilt", "compiled", "missing"]
    reason: str
    name: str = ""
    path: str = ""
    library: ctypes.CDLL | None = None


def load(level: Level) -> Kernels:
    """The kernels for a level. Where there are none nothing is raised: ``reason`` says why."""
    prebuilt, refused = PREBUILT / f"{level.name}.so", ""
    if prebuilt.exists():
        try:
            library = _open(prebuilt, level)
        except OSError as error:
            refused = f"the wheel's cannot be loaded ({error}), and "
        else:
            reason, name = "came with the wheel", f"wheel-{_key(level)}"
            return Kernels(state="prebuilt", reason=reason, name=name, path=str(prebuilt), library=library)
    try:
        path, library = _compiled(level)
    except NoKernelsError as error:
        return Kernels(state="missing", reason=f"{refused}{error}")
    reason = f"{refused}compiled here: {path}"
    return Kernels(state="compiled", reason=reason, name=path.stem, path=str(path), library=library)


def compile_kernels(compiler: str, level: Level, made: Path) -> None:
    """Compile the kernels for a level into a file whose folder takes the objects too.

    Raises:
        NoKernelsError: the compiler fails; the message is its own.
        OSError: the folder cannot be written to.
    """
    objects = [made.parent / f"{source.stem}.o" for source in SOURCES]
    commands = [["-c", str(source), "-o", str(each)] for source, each in zip(SOURCES, objects, strict=True)]
    flags = (*FLAGS, *level.options)
    lowest = next((each.name for each in LEVELS if each.machine == level.machine), level.name)
    other = "set CXX to another compiler" + ("" if level.name == lowest else f", or SPECSTREAM_CPU to {lowest}")
    _run_all([[compiler, *flags, *command] for command in commands], other)
    linked = ["-shared", *map(str, objects), "-o", str(made)]
    # GCC's OpenMP is not linked: the functions are torch's own copy's (`_share_openmp`), so that a process has one
    # pool of threads and an installation without libgomp runs. Clang's calls are of another library.
    own_openmp = ["-fopenmp"] if "clang" in _version(compiler) else []
    _run_all([[compiler, *level.options, *own_openmp, *linked]], other)
    if not made.exists():
        raise NoKernelsError(f"{compiler} ended without an error and wrote no file; set CXX to another compiler")


def kept_for(compiler: str, level: Level) -> Path:
    """Where the cache keeps what a compiler makes for a level. The compiler is not run to tell."""
    found = Path(compiler).resolve()
    told = found.stat()
    identity = _digest(str(found), str(told.st_size), str(told.st_mtime_ns))
    return cache_folder() / f"{_key(level)}-{identity[:8]}.so"


def find_compiler() -> str | None:
    """The path of ``$CXX`` or of the first compiler there is."""
    chosen = os.environ.get("CXX")
    names = [chosen] if chosen else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _compiled(level: Level) -> tuple[Path, ctypes.CDLL]:
    """From the cache, else freshly compiled; of another compiler if there is none now."""
    compiler = find_compiler()
    kept = kept_for(compiler, level) if compiler else None
    for path in [kept] if kept else sorted(cache_folder().glob(f"{_key(level)}-*.so")):
        # What is there and does not load was damaged, or needs a newer system: it is made anew.
        with suppress(OSError):
            return path, _open(path, level)
    if (chosen := os.environ.get("CXX")) and compiler is None:
        raise NoKernelsError(
            f"no kernels for {level.name} are installed and CXX is {chosen!r}, which is no command; give the name of "
            "one without its options, or unset it"
        )
    if compiler is None or kept is None:
        raise NoKernelsError(
            f"no kernels for {level.name} are installed and no C++ compiler was found; "
            "install g++ or set CXX for faster passes"
        )
    if level == GENERIC and not NEEDED.get(architecture(), frozenset({"more"})) <= set(processor().split()):
        raise NoKernelsError("the kernels need AVX2 with FMA, or NEON, and this processor has neither")
    return _compile_and_keep(compiler, level, kept)


def _compile_and_keep(compiler: str, level: Level, kept: Path) -> tuple[Path, ctypes.CDLL]:
    """In a temporary folder, then into the cache whole: another process, or an interrupt, never sees half a library.

    A cache that cannot be written to costs every process a compilation, and nothing else.
    """
    try:
        with (
            _locked(kept) as trouble,
            tempfile.TemporaryDirectory(prefix="specstream-", ignore_cleanup_errors=True) as folder,
        ):
            with suppress(OSError):  # who held the lock may have made it
                return kept, _open(kept, level)
            often = "once" if trouble is None else "at each start"
            announce(f"compiling kernels for this processor ({level.name}), {often}; it takes about a minute")
            if trouble is not None:
                announce(_unkept(kept, trouble))
            made = Path(folder) / kept.name
            compile_kernels(compiler, level, made)
            try:
                _keep(made, kept)
            except OSError as error:
                if trouble is None:
                    announce(_unkept(kept, why_unread(error)))
                return made, _open_new(made, level)
            return kept, _open_new(kept, level)
    except OSError as error:
        raise NoKernelsError(f"the kernels cannot be compiled: {error}; free some space or set TMPDIR") from error


def _unkept(kept: Path, why: str) -> str:
    return f"the kernels cannot be kept in {kept.parent} ({why}); set XDG_CACHE_HOME to a folder that can be written to"


def _open_new(made: Path, level: Level) -> ctypes.CDLL:
    try:
        return _open(made, level)
    except OSError as error:
        made.unlink(missing_ok=True)
        raise NoKernelsError(f"the compiled kernels cannot be loaded: {error}; set CXX to another compiler") from error


@contextmanager
def _locked(kept: Path) -> Iterator[str | None]:
    """Of processes that start together one compiles and the others wait: a compiler wants a core and some memory.

    Gives why nothing can be kept there; None where it can, as far as is known.
    """
    from filelock import FileLock  # here, so that a wheel can be built without it

    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(kept.with_suffix(".lock"))
        lock.acquire()
    except NotImplementedError:  # a file system without locks
        yield None
        return
    except OSError as error:  # nothing can be kept there either: see `_compile_and_keep`
        yield why_unread(error)
        return
    try:
        yield None
    finally:
        lock.release()


def _keep(made: Path, kept: Path) -> None:
    partial = kept.with_name(f".{kept.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(made, partial)
        os.replace(partial, kept)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path, level: Level) -> ctypes.CDLL:
    """Load a library, and hear from itself that it is of this level.

    Raises:
        OSError: it is not there, not whole, not for this system, or of another level.
    """
    _share_openmp()
    library = ctypes.CDLL(str(path))
    tell = getattr(library, "specstream_level", None)
    if tell is not None and level != GENERIC:
        tell.restype = ctypes.c_char_p
        if (told := tell().decode()) != level.name:
            raise OSError(f"{path} is for {told}")
    return library


def _share_openmp() -> None:
    """Let libraries that are loaded from now on find the OpenMP functions of the copy that torch brought.

    Its file has another name in every build of torch; loading it again by its path only makes its names public.
    """
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        files = {line.split(maxsplit=5)[-1] for line in maps if "/lib" in line}
        loaded = [file for file in files if Path(file).name.startswith(("libgomp", "libomp", "libiomp"))]
        loaded.sort(key=lambda file: "torch" not in file)  # other packages may have brought theirs
        ctypes.CDLL(loaded[0] if loaded else "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)


def _run_all(commands: Sequence[Sequence[str]], remedy: str) -> None:
    """Side by side: a minute of one core, and who starts a program for the first time waits for it."""
    running = list[subprocess.Popen[str]]()
    try:
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            running.append(process)
        with step(lambda: _compiled_so_far(running)):
            complaints = [process.communicate()[1] for process in running]
    finally:
        for process in running:  # after an interrupt none may go on in a folder that is gone
            process.kill()
            process.wait()
    for process, command, complaint in zip(running, commands, complaints, strict=True):
        if process.returncode != 0:
            reason = " ".join(complaint.split())[:300] or f"it ended with {process.returncode}"
            other = "free some space or set TMPDIR" if "No space left" in complaint else remedy
            raise NoKernelsError(f"{command[0]} could not build the kernels: {reason}; {other}")


def _compiled_so_far(running: Sequence[subprocess.Popen[str]]) -> str:
    ended = sum(process.poll() is not None for process in running)
    return f"compiling kernels, {ended} of {len(running)} files"


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def _key(level: Level) -> str:
    """The level, the sources and the flags; of a processor without a level, what it can do."""
    texts = [file.read_text(encoding="utf-8") for file in (*SOURCES, *HEADERS)]
    own = processor() if level == GENERIC else ""
    return f"{level.name}-{_digest(*texts, *FLAGS, *level.options, own)[:16]}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    return user_cache() / "specstream" / "kernels"
