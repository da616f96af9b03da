"""The test suites that need the device, and those of the CPU under this machine's versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.options import Options
from benchmarks.gpu.records import Records

GPU = ("tests/lossless/test_graphs.py", "-k", "OnTheGpu")
CPU = (
    *("tests/lossless/test_greedy_matrix.py", "tests/lossless/test_graphs.py", "tests/unit/core"),
    "tests/unit/models/target/test_graphs.py",
)
MESSAGE = 1500
"""Characters that are kept of a failure: its end."""


def gpu_suite(records: Records, options: Options) -> None:
    """What is skipped on a machine without a GPU."""
    records.measure("pytest on the device", lambda: _pytest(GPU, options, "gpu", workers=4, seconds=85))


def cpu_suite(records: Records, options: Options) -> None:
    """The losslessness matrix on the CPU: this machine's torch and transformers are other ones."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    records.measure("pytest on the CPU", lambda: _pytest(CPU, options, "cpu", workers=6, seconds=170, **hidden))


def _pytest(
    chosen: tuple[str, ...], options: Options, name: str, *, workers: int, seconds: float, **environment: str
) -> dict[str, Any]:
    xml = (options.output / f"pytest-{name}.xml").absolute()
    spread = [] if options.tiny else ["-n", str(workers), "--dist", "worksteal"]
    chosen = GPU if options.tiny else chosen
    command = [sys.executable, "-m", "pytest", *chosen, *spread, "-q", "--maxfail=60"]
    with open(xml.with_suffix(".log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, f"--junitxml={xml}", "-p", "no:cacheprovider", "-p", "no:benchmark"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # it then writes what it has
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            code = f"stopped after {seconds:.0f} s"
    tail = xml.with_suffix(".log").read_text(encoding="utf-8")[-MESSAGE:]
    return {"exit": code, **_outcomes(xml), "log": tail}


def _outcomes(xml: Path) -> dict[str, Any]:
    """Counts, and every failure with the end of its message."""
    if not xml.exists():
        return {}
    failures, counts = [], {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(xml).iter("testcase"):
        bad = [each for each in case if each.tag in ("failure", "error")]
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        name = f"{case.get('classname')}::{case.get('name')}"
        failures += [
            {"test": name, "message": each.get("message", "")[:MESSAGE], "text": (each.text or "")[-MESSAGE:]}
            for each in bad
        ]
    return {**counts, "failures": failures}
