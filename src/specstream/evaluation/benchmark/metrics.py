"""What is read off one generation: passes, times, memory, energy. One ruler for all arms, plain decoding included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from specstream.config import GenerationConfig
from specstream.core.rows import Round
from specstream.engine.contestants import Run
from specstream.engine.generation import Generation, Parts

_POWER = Path("/sys/class/powercap")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = "5"  # what makes Linux forget the peak of resident memory


def generate(
    parts: Parts, rows: Sequence[Sequence[int]], config: GenerationConfig, device: torch.device | None = None
) -> dict[str, Any]:
    """Generate once and read everything off it.

    Args:
        parts: with which.
        rows: token ids of each prompt.
        config: how much and by which rule.
        device: whose memory counts; None for the process's.

    Returns:
        ``tokens``: that each row emitted; ``texts``: of those, without stop strings and special tokens.
        ``prompt_tokens``: of all rows. ``drafted``: drafted tokens that were scored; ``accepted`` and ``rejected`` of
        those, the others were never judged. ``prefill``: seconds before the first pass. ``decode``: seconds of all
        passes, drafting included. ``passes``: of each pass, its width in tokens, the seconds of proposing, of scoring,
        and of the whole round. ``sizes``: of each pass, the nodes of every row's tree, the root included. ``depths``:
        of each pass, for every row: how deep its tree was, how many of its depths were judged, how many were accepted,
        and how many tokens it emitted.
        ``exact``: ``bits`` or ``rounding``. ``peak_bytes``: the most memory there was meanwhile, everything that is
        loaded included; ``grown_bytes``: how much more that is than there was before; None where unknown. ``joules``:
        energy, None where the platform does not give it.
    """
    generation = Generation(parts, rows, config)
    timings = generation.timings
    passes: list[tuple[int, float, float, float]] = []
    sizes: list[list[int]] = []
    depths: list[list[tuple[int, int, int, int]]] = []
    memory, energy = Memory(device), Energy()
    before = (0.0, 0.0, 0.0)
    for rounds in generation.rounds():
        now = (timings.propose, timings.score, timings.decode)
        proposing, scoring, whole = (_rounded(end - start) for start, end in zip(before, now, strict=True))
        sizes.append([len(each.tree) for each in rounds])
        passes.append((max(sizes[-1]), proposing, scoring, whole))
        depths.append(list(map(_judged, rounds)))
        before = now
    joules, (peak, grown) = energy.joules(), memory.read()
    run = Run.of(generation)
    return {
        "tokens": run.tokens,
        "texts": run.texts,
        "prompt_tokens": sum(map(len, rows)),
        "drafted": run.drafted,
        "accepted": run.accepted,
        "rejected": run.rejected,
        "prefill": _rounded(run.prefill),
        "decode": _rounded(run.decode),
        "passes": passes,
        "sizes": sizes,
        "depths": depths,
        "exact": run.exact,
        "peak_bytes": peak,
        "grown_bytes": grown,
        "joules": joules,
    }


def _rounded(seconds: float) -> float:
    """To the microsecond, which no clock here is sharper than."""
    return round(seconds, 6)


def _judged(share: Round) -> tuple[int, int, int, int]:
    """Of a row in a pass: see ``depths`` of ``generate``.

    Behind what was accepted one depth more was judged, unless that was the end of the text or of the tree.
    """
    depth, accepted = max(share.tree.depths), len(share.path) - 1
    ended = accepted > 0 and share.tree.tokens[share.path[-1]] in share.row.stopping.eos_token_ids
    return depth, accepted if ended else min(depth, accepted + 1), accepted, len(share.tokens)


class Memory:
    """The peak of memory from now on: of the process on a CPU, of the device's allocator on a GPU."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._start: int | None = None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        elif _forget_peak():
            self._start = _resident("VmRSS")

    def read(self) -> tuple[int | None, int | None]:
        """The peak, and how much above the start it is; None where the system does not say."""
        if self._start is None:
            return None, None
        if self._device is not None:
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _resident("VmHWM")
        return peak, None if peak is None else max(0, peak - self._start)


def _forget_peak() -> bool:
    try:
        _CLEAR.write_text(_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _resident(name: str) -> int | None:
    """Bytes of a line of ``/proc/self/status``."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)
    return None if kib is None else int(kib) * 1024


class Energy:
    """What the processor's packages use from now on, by their own counters (RAPL), where those can be read.

    Args:
        root: where the counters are.
    """

    def __init__(self, root: Path = _POWER) -> None:
        # A package is intel-rapl:N (AMD's too); intel-rapl:N:M is a part of it and counted there.
        self._packages = [each for each in sorted(root.glob("intel-rapl:*")) if each.name.count(":") == 1]
        self._start = self._read()

    def joules(self) -> float | None:
        """Since the beginning; None if no counter can be read."""
        end = self._read()
        if self._start is None or end is None:
            return None
        total = 0
        for package, before, after in zip(self._packages, self._start, end, strict=True):
            wrapped = _number(package / "max_energy_range_uj") or 0
            total += after - before if after >= before else after - before + wrapped
        return total / 1e6

    def _read(self) -> list[int] | None:
        counters = [_number(package / "energy_uj") for package in self._packages]
        known = [each for each in counters if each is not None]
        return known if known and len(known) == len(counters) else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def machine(provenance: dict[str, Any]) -> dict[str, Any]:
    """What of a provenance must be the same for figures to belong to one run."""
    versions = ("specstream", "torch", "transformers", "platform")
    keys = (*versions, "cpu", "cpu_level", "threads", "device", "accelerator", "dtype")
    return {key: provenance.get(key) for key in keys}
