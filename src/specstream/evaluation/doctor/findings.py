"""What makes this machine slower or less exact than it could be, from the facts alone. Each finding has a remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from specstream.environment import TESTED, VARIABLE, is_tested, pip_line
from specstream.errors import closest, counted
from specstream.evaluation.doctor.facts import Caches, Gpus, Passes, Processor, Version, Widths
from specstream.models.hub.catalog import catalog, entry_of


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something to mend.

    Attributes:
        about: the section of the report.
        problem: what is so, with its value.
        remedy: what to do about it.
    """

    about: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


def of_versions(versions: Iterable[Version]) -> list[Finding]:
    """Packages that are missing, or of a release that nobody tested."""
    found = []
    for each in versions:
        if each.installed is None:
            problem = f"{each.name} is not installed"
            remedy = pip_line(each.name) if each.name in TESTED else f"pip install {each.name}"
        elif each.name in TESTED and not is_tested(each.name, each.installed):
            problem = f"{each.name} is {each.installed}, and {each.expected}"
            remedy = "make an environment with one of these" if each.name == "python" else pip_line(each.name)
        else:
            continue
        found.append(Finding(about="versions", problem=problem, remedy=remedy))
    return found


def of_processor(processor: Processor) -> list[Finding]:
    """A level or a number of threads that is not the processor's own."""
    found = []
    if processor.level != processor.own_level:
        problem = f"{VARIABLE} is {processor.variable}, and this processor is {processor.own_level}"
        found.append(Finding(about="processor", problem=problem, remedy=f"unset {VARIABLE}"))
    few, many = processor.cores.physical, processor.cores.logical
    if not few <= processor.threads <= many:
        problem = f"torch runs {counted(processor.threads, 'thread')} on {counted(few, 'core')}"
        why = "idle cores cost speed" if processor.threads < few else "threads without a core hold up the others"
        found.append(Finding(about="processor", problem=problem, remedy=f"set OMP_NUM_THREADS={few}: {why}"))
    return found


def of_passes(passes: Passes) -> list[Finding]:
    """On a CPU, passes that do not run on our kernels."""
    if passes.device != "cpu":
        return []
    if passes.kernels == "missing":
        reason, _, remedy = passes.kernels_reason.rpartition("; ")
        problem = f"kernels are missing, so passes run on {passes.runtime} in {passes.dtype}: {reason}"
        return [Finding(about="kernels", problem=problem, remedy=remedy)]
    if passes.runtime != "native":
        problem = f"there are kernels, and passes run on {passes.runtime}: {passes.runtime_reason}"
        return [Finding(about="passes", problem=problem, remedy="report it with the output of this command")]
    return []


def of_gpus(gpus: Gpus) -> list[Finding]:
    """A GPU that torch cannot use."""
    if gpus.usable or not gpus.listed:
        return []
    there = f"there is a GPU ({gpus.listed[0]}, driver {gpus.driver})"
    if gpus.cuda is None:
        problem, remedy = f"{there} and this torch was built without CUDA", "pip install a build for CUDA: pytorch.org"
    elif gpus.visible is not None:
        problem = f"{there} and CUDA_VISIBLE_DEVICES, {gpus.visible!r}, hides it"
        remedy = "unset CUDA_VISIBLE_DEVICES"
    else:
        problem = f"{there} and torch, built for CUDA {gpus.cuda}, cannot use it"
        remedy = "install a newer driver, or a torch for the driver's CUDA: pytorch.org"
    return [Finding(about="gpu", problem=problem, remedy=remedy)]


def of_caches(caches: Caches) -> list[Finding]:
    """Folders in which nothing can be kept, and self-tests that are not to be kept."""
    found = [
        Finding(
            about="caches",
            problem=f"the cache of {each.name}, {each.path}, cannot be written to ({each.problem})",
            remedy=f"make it writable, or set {each.variable} to a folder that is",
        )
        for each in caches.folders
        if each.problem
    ]
    if not caches.keeps_self_tests:
        problem = "SPECSTREAM_NO_SELFTEST_CACHE is set, so every start tests the model anew"
        found.append(Finding(about="caches", problem=problem, remedy="unset SPECSTREAM_NO_SELFTEST_CACHE"))
    return found


def of_widths(widths: Widths) -> list[Finding]:
    """A model that is refused, or whose passes are not batch-invariant."""
    if widths.state == "refused":
        remedy = "mend what else is named here, or give another --model"
        return [Finding(about="widths", problem=widths.problem, remedy=remedy)]
    if widths.exact != "rounding" or widths.routed or widths.chains_only:
        return []
    problem = (
        f"passes of {widths.model} are exact up to rounding only ({widths.runtime}, {widths.dtype}): "
        f"batch-invariant widths up to 16 nodes are {', '.join(map(str, widths.widths)) or 'none'}"
    )
    other = "install the kernels, as above" if widths.runtime in ("packed", "eager") else "try --runtime eager"
    remedy = f"{other}, or --dtype float32; specstream audit lists what differs"
    return [Finding(about="widths", problem=problem, remedy=remedy)]


def notes(processor: Processor | None, widths: Widths | None) -> list[str]:
    """What is worth knowing and nothing to mend."""
    said = []
    if processor is not None:
        if processor.load is not None and processor.load > processor.cores.logical:
            said.append(
                f"the machine is busy, so all is slower: load {processor.load:.1f} on "
                f"{counted(processor.cores.logical, 'core')}"
            )
        if processor.waits:
            said.append(
                f"{processor.waits}: up to twice as slow on a quiet machine if threads sleep, up to 100 times beside "
                "other work if they spin; unset, they do what is faster"
            )
        said += [f"{name} is not the level's, so torch's libraries may use others" for name in processor.unheld]
    if widths is not None and widths.state == "not downloaded":
        said.append(_fetching(widths.model))
    if widths is not None and (widths.routed or widths.chains_only):
        kind = "is a mixture of experts" if widths.routed else "keeps a state, and is drafted for in chains"
        said.append(f"{widths.model} {kind}: exact up to rounding on every machine")
    return said


def _fetching(model: str) -> str:
    """How a model comes onto this machine that is not there; its name may be misspelt."""
    if entry_of(model) is not None:
        return f"{model} is not here; to fetch it: specstream models pull {model}"
    folders = (str(path.parent) for path in Path().glob("*/config.json"))
    like = closest(model, [*catalog(), *folders])
    return (
        f"{model!r} is no folder here, no catalog name and not in the hub's cache; "
        + (f"did you mean {like!r}? " if like else "")
        + f"if the hub has it, this fetches it: specstream generate 'The sea is' --model {model}"
    )
