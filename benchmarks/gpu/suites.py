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

GPU = ("tests/lossless/test_graphs.py", "tests/unit/models/test_graphs.py")
CPU = ("tests/lossless/test_greedy_matrix.py", "tests/lossless/test_graphs.py", "tests/unit/core")
MESSAGE = 1500
"""Characters that are kept of a failure: its end."""


def gpu_suite(records: Records, options: Options) -> None:
    """What is skipped on a machine without a GPU, and its neighbours."""
    records.measure("pytest on the device", lambda: _pytest(GPU, options, "gpu", workers=4, seconds=140))


def cpu_suite(records: Records, options: Options) -> None:
    """The losslessness matrix on the CPU: this machine's torch and transformers are other ones."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    records.measure("pytest on the CPU", lambda: _pytest(CPU, options, "cpu", workers=6, seconds=170, **hidden))


def _pytest(
    paths: tuple[str, ...], options: Options, name: str, *, workers: int, seconds: float, **environment: str
) -> dict[str, Any]:
    xml = (options.output / f"pytest-{name}.xml").absolute()
    paths = paths[:1] if options.tiny else paths
    keyword = ["-k", "OnTheGpu"] if options.tiny else ["-n", str(workers), "--dist", "worksteal"]
    command = [sys.executable, "-m", "pytest", *paths, *keyword, "-q", "-x" if options.tiny else "--maxfail=60"]
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
