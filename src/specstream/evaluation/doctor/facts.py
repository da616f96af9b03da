"""What is so on this machine, one function for each section of the report. Nothing here judges it.

Packages are imported inside the functions: one that is broken costs its own section and no other.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specstream.distribution import VERSION
from specstream.environment import TESTED, VARIABLE, Cores, cores, installed, level, processor_level, processor_model

if TYPE_CHECKING:
    import torch

MOST_NODES = 16
"""Nodes of a pass up to which the self-test is asked for batch-invariant widths."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A package, or Python itself.

    Attributes:
        name: of it.
        installed: its version; None where it is not installed.
        expected: in words, what it should be; empty for nothing.
    """

    name: str
    installed: str | None
    expected: str


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The processor and its threads.

    Attributes:
        model: what it is called.
        own_level: its instruction level.
        level: the one that this process goes by.
        variable: the value of ``SPECSTREAM_CPU``.
        libraries: what holds torch's own libraries to a lowered level: each variable with its value here.
        unheld: those of them with another value than the level's.
        cores: that this process may use.
        threads: of torch.
        load: processes that want to run, averaged over a minute; None where the system does not tell.
        waits: the environment variable that says how threads wait, with its value; empty if none does.
    """

    model: str
    own_level: str
    level: str
    variable: str
    libraries: dict[str, str]
    unheld: tuple[str, ...]
    cores: Cores
    threads: int
    load: float | None
    waits: str


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How passes of a checkpoint in bfloat16 run; each choice with its reason.

    Attributes:
        kernels: ``prebuilt``, ``compiled`` or ``missing``.
        path: of their library; empty where there is none.
        compiler: that would compile them; None where there is none.
    """

    device: str
    kernels: Literal["prebuilt", "compiled", "missing"]
    kernels_reason: str
    path: str
    compiler: str | None
    dtype: str
    dtype_reason: str
    runtime: str
    runtime_reason: str
    quantization: str
    quantization_reason: str


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A graphics processor, as torch sees it or, where it does not, as the driver lists it."""

    name: str
    memory: int
    capability: str


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """All of them.

    Attributes:
        usable: those that torch computes on.
        listed: those that ``nvidia-smi`` lists.
        driver: its version; None without ``nvidia-smi``.
        cuda: the version that torch was built for; None for a build without CUDA.
        visible: the value of ``CUDA_VISIBLE_DEVICES``; None where it is not set.
    """

    usable: tuple[Gpu, ...]
    listed: tuple[str, ...]
    driver: str | None
    cuda: str | None
    visible: str | None


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder that something is kept in.

    Attributes:
        variable: that moves it elsewhere.
        problem: why nothing can be written there; empty where it can.
    """

    name: str
    path: str
    variable: str
    bytes: int
    files: int
    problem: str


@dataclass(frozen=True, kw_only=True)
class Caches:
    """All of them.

    Attributes:
        folders: each cache's.
        keeps_self_tests: False where ``SPECSTREAM_NO_SELFTEST_CACHE`` is set.
    """

    folders: tuple[Cache, ...]
    keeps_self_tests: bool


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """Seconds of the score, verification and commit of a round over ``nodes`` of all rows together."""

    rows: int
    nodes: int
    context: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DraftCost:
    """Seconds of drafting ``depth`` tokens for each of ``rows``."""

    drafter: str
    rows: int
    depth: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What the self-test of a model found, or why there is nothing to ask.

    Attributes:
        state: ``kept`` from an earlier start, ``tested`` just now, or the model is ``not downloaded`` or ``refused``.
        widths: batch-invariant ones up to ``MOST_NODES``.
        exact: ``bits`` or ``rounding``; None where the model was not asked.
        routed: whether it is a mixture of experts.
        chains_only: whether it keeps a state; see ``Family``.
        parameters: that a pass reads; None where the model was not asked, or depends on the tokens.
        bytes: likewise.
        problem: why it was refused.
        passes: what they cost, as it was measured before the first answer; one row now, more rows where they were met.
        drafts: what those of the default drafter cost, likewise.
    """

    model: str
    state: Literal["kept", "tested", "not downloaded", "refused"]
    widths: tuple[int, ...] = ()
    exact: Literal["bits", "rounding"] | None = None
    runtime: str | None = None
    dtype: str | None = None
    routed: bool = False
    chains_only: bool = False
    parameters: int | None = None
    bytes: int | None = None
    problem: str = ""
    passes: tuple[PassCost, ...] = ()
    drafts: tuple[DraftCost, ...] = ()


def versions() -> tuple[Version, ...]:
    """Of what passes run through."""
    found = [Version(name="specstream", installed=VERSION, expected="")]
    for name, (low, high) in TESTED.items():
        here = platform.python_version() if name == "python" else installed(name)
        newest = f"{high}.x" if high.isdigit() else high
        found.append(Version(name=name, installed=here, expected=f"{low} to {newest} tested"))
    found.append(Version(name="tokenizers", installed=installed("tokenizers"), expected=_asked_for("tokenizers")))
    return tuple(found)


def processor() -> Processor:
    """The processor, its level, and the threads of this process."""
    import torch

    from specstream.models.runtime.waiting import VARIABLES

    wanted = level().libraries
    variable = os.environ.get(VARIABLE, "")
    return Processor(
        model=processor_model(),
        own_level=processor_level().name,
        level=level().name,
        variable=variable,
        libraries={name: os.environ.get(name, "") for name in wanted} if variable else {},
        unheld=tuple(name for name in wanted if variable and os.environ.get(name) != wanted[name]),
        cores=cores(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        waits=next((f"{name} is {os.environ[name]}" for name in VARIABLES if name in os.environ), ""),
    )


def passes() -> Passes:
    """Kernels, dtype, runtime and the drafts' bits. Kernels that are missing are compiled if they can be."""
    import torch

    from specstream.models.runtime.capabilities import capabilities
    from specstream.models.runtime.compiled import find_compiler

    found = capabilities(default_device(), torch.bfloat16)
    return Passes(
        device=str(default_device()),
        kernels=found.kernels.state,
        kernels_reason=found.kernels.reason,
        path=found.kernels.path,
        compiler=find_compiler(),
        dtype=dtype_name(found.dtype.value),
        dtype_reason=found.dtype.reason,
        runtime=found.runtime.value,
        runtime_reason=found.runtime.reason,
        quantization=found.quantization.value,
        quantization_reason=found.quantization.reason,
    )


def default_device() -> torch.device:
    """Where ``device="auto"`` puts a model."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpus() -> Gpus:
    """What torch and the driver say of GPUs."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    each = [torch.cuda.get_device_properties(place) for place in range(count)]
    listed = _nvidia_smi()
    return Gpus(
        usable=tuple(
            Gpu(name=one.name, memory=one.total_memory, capability=f"{one.major}.{one.minor}") for one in each
        ),
        listed=tuple(name for name, _ in listed),
        driver=listed[0][1] if listed else None,
        cuda=torch.version.cuda,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def caches() -> Caches:
    """The folders that fill up over time."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from specstream.models.hub import catalog
    from specstream.models.invariance import selftest_cache
    from specstream.models.runtime import compiled

    folders = (
        _cache("kernels", compiled.cache_folder(), "XDG_CACHE_HOME"),
        _cache("self-tests", selftest_cache.cache_folder(), "XDG_CACHE_HOME"),
        _cache("models", catalog.models_root(), "SPECSTREAM_MODELS"),
        _cache("hub", Path(HF_HUB_CACHE), "HF_HOME"),
    )
    return Caches(folders=folders, keeps_self_tests=not selftest_cache.switched_off())


def widths(model: str, hush: Callable[[], AbstractContextManager[None]], *, measure: bool = True) -> Widths:
    """The widths of a model that is on this machine, and its costs: those that are kept, else measured now.

    Args:
        model: the model argument.
        hush: silences libraries while the model is loaded.
        measure: costs that are not kept.

    Raises:
        ModelNotFoundError: nothing answers to the name.
    """
    from specstream.errors import SpecStreamError
    from specstream.models.hub.catalog import on_disk

    if on_disk(model) is None:
        return Widths(model=model, state="not downloaded")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is in the report
            return _tested(model, hush, measure)
    except SpecStreamError as error:
        return Widths(model=model, state="refused", problem=str(error))


def _tested(name: str, hush: Callable[[], AbstractContextManager[None]], measure: bool) -> Widths:
    from specstream.evaluation.bottleneck import weights_of_a_pass
    from specstream.models.hub.load import load_model
    from specstream.models.invariance.selftest_cache import cache_of
    from specstream.models.target.hf import HuggingFaceTarget

    with hush():
        model, _ = load_model(name)
    target = HuggingFaceTarget(model)
    before = cache_of(model, target.runtime.name)
    target.prepare(nodes=MOST_NODES)
    read = weights_of_a_pass(target)
    exact, found = _certified(target)
    passes, drafts = _costs(target, measure)
    return Widths(
        model=name,
        state="kept" if before is not None and before.get("tree") else "tested",
        widths=found,
        exact=exact,
        runtime=target.runtime.name,
        dtype=dtype_name(model.dtype),
        routed=target.family.routed,
        chains_only=target.family.chains_only,
        parameters=None if read is None else read // model.dtype.itemsize,
        bytes=read,
        passes=passes,
        drafts=drafts,
    )


def _costs(target: Any, measure: bool) -> tuple[tuple[PassCost, ...], tuple[DraftCost, ...]]:
    """What passes and the default drafter's drafts cost, ordered."""
    from specstream.config import EngineConfig
    from specstream.engine.build import build_parts
    from specstream.engine.inventory import most_nodes
    from specstream.models.invariance.costs import known_prices, prices_of

    parts = build_parts(target, None, None, EngineConfig())
    drafter, nodes = parts.drafter, most_nodes(parts) + 1
    found = prices_of(target, drafter, 1, nodes) if measure else known_prices(target, drafter)
    return (
        tuple(
            PassCost(rows=rows, nodes=nodes, context=context, seconds=seconds)
            for (rows, nodes, context), seconds in sorted(found.passes.items())
        ),
        tuple(
            DraftCost(drafter=name, rows=rows, depth=depth, seconds=seconds)
            for name, table in sorted(found.drafts.items())
            for (rows, depth), seconds in sorted(table.items())
        ),
    )


def _certified(target: Any) -> tuple[Literal["bits", "rounding"], tuple[int, ...]]:
    """Whether all passes of one row have plain decoding's bits, and the widths that they are padded to."""
    from specstream.models.cache import STEP

    if target.exactness is None:
        return "rounding", ()
    asked = [target.exactness.width(1, nodes, 0, STEP) for nodes in range(1, MOST_NODES + 1)]
    widths = tuple(sorted({width for width, certified in asked if certified}))
    return ("bits" if all(certified for _, certified in asked) else "rounding"), widths


def _cache(name: str, folder: Path, variable: str) -> Cache:
    sizes = []
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                sizes.append(os.lstat(os.path.join(parent, file)).st_size)
            except OSError:  # gone meanwhile
                continue
    return Cache(
        name=name,
        path=str(folder),
        variable=variable,
        bytes=sum(sizes),
        files=len(sizes),
        problem=_unwritable(folder),
    )


def _unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, or into the one that it would be made in."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _asked_for(package: str) -> str:
    """What the installed transformers asks of a package."""
    try:
        needs = requires("transformers") or []
    except PackageNotFoundError:
        return ""
    found = next((each.partition(";")[0] for each in needs if each.startswith(package)), "")
    return f"transformers asks for {found.removeprefix(package).strip(' ()')}" if found else ""


def _nvidia_smi() -> list[tuple[str, str]]:
    """The name and the driver of each GPU that it lists."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.rpartition(",") for line in told.splitlines())
    return [(name.strip(), driver.strip()) for name, _, driver in rows if name]


def dtype_name(dtype: torch.dtype) -> str:
    """Without the library's name: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")
