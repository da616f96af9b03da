"""What time it is, on a device that the host runs ahead of too.

There the host's clock says when work was handed over, not when it was done. So an event is put into the device's queue
beside it, and read after the one transfer of the round, when it has long passed: no further wait.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Mark:
    """A moment: seconds of the host's clock and, where the device runs behind, an event in its queue."""

    seconds: float
    event: Any = None


class Clock:
    """Marks moments of one batch; it begins when the device has done what it was given.

    Args:
        device: where passes run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        settle(device)

    def mark(self) -> Mark:
        if self._device is None:
            return Mark(time.perf_counter())
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
        return Mark(time.perf_counter(), event)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def between(start: Mark, end: Mark) -> float:
    """Seconds from one mark to another; on a device, only after a transfer that came behind both."""
    if start.event is None:
        return end.seconds - start.seconds
    return float(start.event.elapsed_time(end.event)) / 1000


def split(start: Mark, middle: Mark) -> tuple[float, float]:
    """Seconds from ``start`` to ``middle``, and from there to now, when the host knows the outcome."""
    first = between(start, middle)
    return first, time.perf_counter() - start.seconds - first
