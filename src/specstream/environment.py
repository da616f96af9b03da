"""What this process runs on: releases, optional packages, cores, and the processor's level, which kernels go by.

The level is what the processor has, or less where ``SPECSTREAM_CPU`` says so: ``SPECSTREAM_CPU=x86-64-v3`` makes a
machine with AVX512 take the decisions, and run the kernels, of one without. It is read once in a process.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from specstream.distribution import VERSION, install_line
from specstream.errors import MissingPackageError, UsageError, must_be

PREFIX = "SPECSTREAM_"
"""Every environment variable of this program begins with it; settings of the server are the other ones."""

VARIABLES = tuple(
    PREFIX + name for name in ("CPU", "DEBUG", "MODELS", "NO_SELFTEST_CACHE", "TEST_MODEL", "WHEEL_LEVELS")
)
"""Variables that are no settings of the server; the last two are for this program's own tests and wheels."""

VARIABLE = PREFIX + "CPU"
"""The environment variable that lowers the level."""

TESTED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "python": ("3.10", "3.13"),
        "torch": ("2.11", "2.15"),
        "transformers": ("5.17", "5.24"),
        "huggingface_hub": ("1.33", "2"),
    }
)
"""The lowest and the newest releases that are tested (docs/versions.md); ``2`` stands for every 2.x."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """What threads of this process can run on at once, within its affinity and its container's quota.

    Attributes:
        physical: cores.
        logical: the same with hardware threads counted one by one.
    """

    physical: int
    logical: int


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


def _libraries(instructions: str, onednn: str) -> dict[str, str]:
    return {
        "ATEN_CPU_CAPABILITY": instructions,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": instructions.upper(),
    }


_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS = (
    Level(
        name="x86-64-v3",
        machine="x86_64",
        needs=_V3,
        options=("-march=x86-64-v3",),
        libraries=_libraries("avx2", "AVX2"),
    ),
    Level(
        name="x86-64-v3-vnni",
        machine="x86_64",
        needs=_V3 | {"avx_vnni"},
        options=("-march=x86-64-v3", "-mavxvnni"),
        libraries=_libraries("avx2", "AVX2_VNNI"),
    ),
    Level(
        name="x86-64-v4",
        machine="x86_64",
        needs=_V4,
        options=("-march=x86-64-v4",),
        libraries=_libraries("avx512", "AVX512_CORE"),
    ),
    Level(
        name="x86-64-v4-vnni",
        machine="x86_64",
        needs=_V4 | {"avx512_vnni"},
        options=("-march=x86-64-v4", "-mavx512vnni"),
        libraries=_libraries("avx512", "AVX512_CORE_VNNI"),
    ),
    Level(
        name="x86-64-v4-bf16",
        machine="x86_64",
        needs=_V4 | {"avx512_vnni", "avx512_bf16"},
        options=("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
        bf16=True,
        libraries=_libraries("avx512", "AVX512_CORE_BF16"),
    ),
    Level(
        name="aarch64",
        machine="aarch64",
        needs=frozenset({"asimd", "asimddp"}),
        options=("-march=armv8.2-a+dotprod",),
    ),
)
"""The known levels, of one architecture from the slowest to the fastest."""

GENERIC = Level(name="generic", options=("-march=native",))
"""A processor below every level, or of another architecture: kernels are compiled on it, and for it alone."""


@cache
def level() -> Level:
    """The level that this process goes by: the processor's own, or the lower one of ``SPECSTREAM_CPU``.

    Raises:
        UsageError: the variable names no level, or one that this processor does not have.
    """
    own, wanted = processor_level(), variable(VARIABLE)
    if wanted is None:
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
    if variable(VARIABLE) is not None:
        for name, value in level().libraries.items():
            os.environ.setdefault(name, value)


def variable(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """What a variable of an environment says, by default this process's; None where it is not set.

    Raises:
        UsageError: it is empty. A template that was not filled in looks so, and is not the same as no variable.
    """
    value = (os.environ if environment is None else environment).get(name)
    if value is None:
        return None
    must_be(isinstance(value, str), name, value, "a text, as a variable's value is")
    if not value.strip():
        raise UsageError(f"{name} is empty; give it a value, or unset it")
    return value


def is_on(name: str) -> bool:
    """Whether a variable that is a switch is set, and not to 0.

    Raises:
        UsageError: it is no word for yes or no.
    """
    value = variable(name) or "0"
    if (word := value.lower()) not in ("0", "1", "true", "false", "yes", "no", "on", "off"):
        raise UsageError(f"{name} is {value!r}; give 1 or 0, or unset it")
    return word in ("1", "true", "yes", "on")


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_tested(package: str, release: str) -> bool:
    """Whether a release lies within the tested ones."""
    low, high = (_numbers(bound) for bound in TESTED[package])
    found = _numbers(release)
    return low <= found and found[: len(high)] <= high


def is_too_old(package: str, release: str) -> bool:
    """Whether a release is below the tested ones, so that it is not tried at all."""
    return _numbers(release) < _numbers(TESTED[package][0])


def pip_line(package: str) -> str:
    """What installs a tested release."""
    low, high = TESTED[package]
    *before, last = _numbers(high)
    return f"pip install '{package}>={low},<{'.'.join(map(str, (*before, last + 1)))}'"


def cores() -> Cores:
    """How many this process may use."""
    # macOS and Windows know no affinity.
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    physical = len({_text(siblings.format(each)) or each for each in allowed})
    quota = _quota()
    return Cores(physical=min(physical, quota), logical=min(len(allowed), quota))


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
    if cpu._is_vnni_supported():
        found |= {"avx512_vnni"}
    if cpu._is_avx512_bf16_supported():
        found |= {"avx512_bf16"}
    return found


def _cpu_line(*names: str) -> str:
    """The first line of /proc/cpuinfo that begins like this; empty where there is none."""
    return next((line for line in _text("/proc/cpuinfo").splitlines() if line.startswith(names)), "")


def _quota() -> int:
    """The processors that a container's limit comes to; a limit of one and a half lets two threads run."""
    limit, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    if not period:  # cgroups of version 1
        limit, period = (_text(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    if not limit.isdigit() or not period.isdigit():  # "max", -1, or no such file
        return sys.maxsize
    return max(1, math.ceil(int(limit) / int(period)))


def _numbers(release: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` is 2, 13, 0."""
    found = re.match(r"[\d.]*\d", release)
    return tuple(map(int, found[0].split("."))) if found else ()


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still use: what the system has, within the limit of its control group."""
    limits = []
    for line in _text(str(root / "proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    groups = root / "sys/fs/cgroup"
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, taken = _text(str(groups / most)), _text(str(groups / used))
        if limit.isdigit() and taken.isdigit():
            limits.append(max(0, int(limit) - int(taken)))
    return min(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpus() -> int:
    """How many there are."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def free_bytes(device: str) -> tuple[int, str]:
    """How much memory is free where a model on this device, or on ``auto``, goes, and what that place is called."""
    if gpus() and not device.startswith("cpu"):
        import torch

        return torch.cuda.mem_get_info()[0], "the GPU"
    return free_memory(), "this machine"


def check_free(setting: str, gigabytes: float, device: str) -> None:
    """Refuse a setting of memory that is more than is free.

    Args:
        setting: its name.
        gigabytes: its value, in 10**9 bytes.
        device: see ``free_bytes``.

    Raises:
        UsageError: it is, with the numbers.
    """
    free, where = free_bytes(device)
    if gigabytes * 1e9 > free:
        raise UsageError(
            f"{setting} is {gigabytes:.10g} and {where} has {free / 1e9:.1f} GB free; give less, or free some"
        )


def _text(path: str) -> str:
    """What a file of the system says; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def address_remedy(host: str) -> str:
    """What to give in place of a host that has no address: without what belongs elsewhere, if that is the reason."""
    found = re.fullmatch(r"(?:\w+://)?([\w.-]+)(?::(\d+))?/?", host)
    if found is None or found[1] == host:
        return "give 127.0.0.1, or 0.0.0.0 for every machine"
    return f"give host={found[1]!r}" + (f" and port={found[2]}" if found[2] else " alone")


def require(package: str, extra: str, purpose: str) -> Any:
    """The imported package, which an extra of this project installs.

    Raises:
        MissingPackageError: it is not installed, with the line that installs it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != package.partition(".")[0]:
            raise  # it is there, and something of its own is not
        raise MissingPackageError(
            f"{purpose} needs {package!r}, which is not installed; run: {install_line(extra)}"
        ) from None


def provenance(device: str | None = None, dtype: str | None = None) -> dict[str, object]:
    """Describe the software and the machine of this process, as plain values that JSON can hold.

    Args:
        device: The torch device a measurement ran on, such as `cpu` or `cuda:0`; names the accelerator too.
        dtype: The weights' dtype, such as `bfloat16`.
    """
    import torch

    on_gpu = device is not None and device.startswith("cuda") and torch.cuda.is_available()
    return {
        "specstream": VERSION,
        "torch": torch.__version__,
        "transformers": installed("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor_model(),
        "cpu_level": level().name,
        "threads": torch.get_num_threads(),
        "device": device,
        "accelerator": torch.cuda.get_device_name(device) if on_gpu else None,
        "dtype": dtype,
    }
