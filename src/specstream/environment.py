"""The instruction level of this machine's processor, by which kernels are built and chosen.

The level is what the processor has, or less where ``SPECSTREAM_CPU`` says so: ``SPECSTREAM_CPU=x86-64-v3`` makes a
machine with AVX512 take the decisions, and run the kernels, of one without. It is read once in a process.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from specstream.errors import UsageError

VARIABLE = "SPECSTREAM_CPU"
"""The environment variable that lowers the level."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A set of instructions that kernels are compiled for.

    Attributes:
        name: what users, file names and results call it.
        machine: the architecture, as ``platform.machine`` says it; empty for any.
        needs: features the processor must have, as ``/proc/cpuinfo`` calls them.
        options: of the compiler.
        bf16: whether torch's libraries find instructions for products of bfloat16. Elsewhere they emulate them.
        libraries: environment variables that hold torch's libraries to this level.
    """

    name: str
    machine: str = ""
    needs: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
    bf16: bool = False
    libraries: Mapping[str, str] = field(default_factory=dict, hash=False)


_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS = (
    Level(
        name="x86-64-v3",
        machine="x86_64",
        needs=_V3,
        options=("-march=x86-64-v3",),
        libraries={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ),
    Level(
        name="x86-64-v4",
        machine="x86_64",
        needs=_V4,
        options=("-march=x86-64-v4",),
        libraries={
            "ATEN_CPU_CAPABILITY": "avx512",
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        },
    ),
    Level(
        name="x86-64-v4-bf16",
        machine="x86_64",
        needs=_V4 | {"avx512_vnni", "avx512_bf16"},
        options=("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
        bf16=True,
        libraries={
            "ATEN_CPU_CAPABILITY": "avx512",
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        },
    ),
    Level(
        name="aarch64",
        machine="aarch64",
        needs=frozenset({"asimd", "asimddp"}),
        options=("-march=armv8.2-a+dotprod",),
    ),
)
"""The known levels, of one architecture from the lowest to the highest."""

GENERIC = Level(name="generic", options=("-march=native",))
"""A processor below every level, or of another architecture: kernels are compiled on it, and for it alone."""


@cache
def level() -> Level:
    """The level that this process goes by: the processor's own, or the lower one of ``SPECSTREAM_CPU``.

    Raises:
        UsageError: the variable names no level, or one that this processor does not have.
    """
    own, wanted = processor_level(), os.environ.get(VARIABLE, "")
    if not wanted:
        return own
    below = {each.name: each for each in LEVELS if each.machine == own.machine and each.needs <= own.needs}
    if wanted in below:
        return below[wanted]
    remedy = f"give {' or '.join(below)}, or leave it unset" if below else "leave it unset"
    if wanted in (each.name for each in LEVELS):
        raise UsageError(f"{VARIABLE} is {wanted!r}, and this processor is {own.name}; {remedy}")
    raise UsageError(f"{VARIABLE} is {wanted!r}, which is no level; {remedy}")


@cache
def processor_level() -> Level:
    """The highest level whose instructions this processor has."""
    has, machine = _features(), architecture()
    fitting = [each for each in LEVELS if each.machine == machine and each.needs <= has]
    return fitting[-1] if fitting else GENERIC


def architecture() -> str:
    """``platform.machine`` under one name for each architecture."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def limit_libraries() -> None:
    """Hold torch's own libraries to ``SPECSTREAM_CPU``; they read their variables when they first compute something.

    Variables that are set stay as they are. Without ``SPECSTREAM_CPU`` nothing changes.

    Raises:
        UsageError: as ``level``.
    """
    if os.environ.get(VARIABLE):
        for name, value in level().libraries.items():
            os.environ.setdefault(name, value)


def processor() -> str:
    """What this machine's processor can do, as its kernel lists it: torch's libraries choose their code by that."""
    return _cpu_line("flags", "Features") or platform.processor()


def processor_model() -> str:
    """What the processor is called."""
    # platform.processor() is empty or only the architecture on most Linux systems.
    return _cpu_line("model name").partition(":")[2].strip() or platform.processor() or platform.machine()


def _features() -> frozenset[str]:
    """By their names in ``/proc/cpuinfo``; where there is none, those of the levels that torch can tell."""
    listed = frozenset(_cpu_line("flags", "Features").partition(":")[2].split())
    if listed:
        return listed
    if architecture() == "aarch64":
        # Every Mac with such a processor has both; of other systems without /proc nothing is known.
        return frozenset({"asimd", "asimddp"} if platform.system() == "Darwin" else ())
    from torch import cpu

    found = frozenset[str]()
    if cpu._is_avx2_supported():
        found |= _V3
    if cpu._is_avx512_supported():
        found |= _V4
    if cpu._is_vnni_supported() and cpu._is_avx512_bf16_supported():
        found |= {"avx512_vnni", "avx512_bf16"}
    return found


def _cpu_line(*names: str) -> str:
    """The first line of /proc/cpuinfo that begins like this; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(names)), "")
