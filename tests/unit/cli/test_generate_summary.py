"""That a summary says when its times say little."""

from __future__ import annotations

import os

import pytest

from specstream.cli import generate
from specstream.environment import Cores


@pytest.mark.parametrize(("load", "said"), [(3.0, True), (2.0, False)])
def test_a_busy_machine_is_named(load: float, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(generate, "cores", lambda: Cores(physical=1, logical=2))
    line = f"\n  the machine is busy (load {load:.1f} on 2 cores), so these times say little"
    assert generate._busy() == (line if said else "")
