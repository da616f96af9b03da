"""The command: every part in a process of its own, its records gathered as they come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu.bits import bits
from benchmarks.gpu.matrix import FAMILIES, family_matrix
from benchmarks.gpu.models import as_folder
from benchmarks.gpu.options import Options
from benchmarks.gpu.page import page
from benchmarks.gpu.passes import passes
from benchmarks.gpu.records import POISONED, Records
from benchmarks.gpu.speed import speed
from benchmarks.gpu.suites import cpu_suite, gpu_suite
from specstream.environment import provenance
from specstream.files.atomic import write_whole
from specstream.heads.folder import kind_of

Part = Callable[[Records, Options], None]
PARTS: dict[str, dict[str, Part]] = {
    "tests": {"tests": gpu_suite},
    "matrix": {f"matrix-{family}": partial(family_matrix, family) for family in FAMILIES},
    "cpu": {"cpu": cpu_suite},
    "speed": {"speed": speed},
    "bits": {"bits": bits},
    "passes": {"passes": passes},
}
"""By the names that ``--parts`` takes; a job each."""

TOGETHER, WORKERS = ("tests", "cpu", "matrix"), 12
"""Parts that measure no time run side by side, so many jobs at once; the others come after them, alone."""

LIMITS = {"tests": 80.0, "cpu": 190.0, "matrix": 80.0, "speed": 150.0, "bits": 60.0, "passes": 60.0}
"""Seconds after which a job begins nothing more; a little later it is ended."""

GRACE = 20.0


class Run:
    """A whole run, from the outside."""

    def __init__(self, options: Options) -> None:
        self._options, self._started = options, time.monotonic()
        self._jobs: dict[str, dict[str, Any]] = {}
        options.output.mkdir(parents=True, exist_ok=True)
        self._made = {**provenance(options.device), **_machine(), "arguments": " ".join(options.arguments)}

    def go(self, parts: Sequence[str]) -> dict[str, Any]:
        """Run parts and return the report, which is on disk too."""
        for names, workers in (([each for each in TOGETHER if each in parts], WORKERS), *(
            ([each], 1) for each in parts if each not in TOGETHER
        )):  # fmt: skip
            with ThreadPoolExecutor(workers) as pool:
                going = {pool.submit(self._job, part, job) for part in names for job in PARTS[part]}
                while going:
                    done, going = wait(going, timeout=5)
                    self._write()
                    for each in done:
                        each.result()  # raises what went wrong here, not in the part
        return self._write()

    def _job(self, part: str, job: str) -> None:
        left = self._options.seconds - (time.monotonic() - self._started)
        if left <= 0:
            self._jobs[job] = {"ended": "left out: the budget is spent", "seconds": 0}
            return
        seconds, began = min(LIMITS[part], left), time.monotonic()
        (self._options.output / f"part-{job}.json").unlink(missing_ok=True)
        self._jobs[job] = {"ended": "running", "seconds": 0}
        ended: int | None = POISONED
        known = -1
        while ended == POISONED and known < (known := len(self._records(job))):
            ended = self._process(job, seconds - (time.monotonic() - began))
        said = {0: "done", None: "stopped"}.get(ended, f"exit {ended}")
        self._jobs[job] = {"ended": said, "seconds": round(time.monotonic() - began, 1)}

    def _process(self, job: str, seconds: float) -> int | None:
        """The exit code; None if it had to be stopped."""
        command = [sys.executable, "-m", "benchmarks.gpu", *self._options.arguments]
        with open(self._options.output / f"part-{job}.log", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, "--job", job, "--job-seconds", str(seconds)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "SPECSTREAM_NO_SELFTEST_CACHE": "1", "HF_HUB_OFFLINE": "1"},
            )
            try:
                return process.wait(max(1.0, seconds) + GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return None

    def _records(self, job: str) -> list[dict[str, Any]]:
        path = self._options.output / f"part-{job}.json"
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return found

    def _write(self) -> dict[str, Any]:
        parts = {}
        for job, state in list(self._jobs.items()):
            log = self._options.output / f"part-{job}.log"
            tail = log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else ""
            parts[job] = {**state, "records": self._records(job), "log": tail}
        seconds = round(time.monotonic() - self._started, 1)
        report = {"provenance": {**self._made, "seconds": seconds}, "parts": parts}
        write_whole(self._options.output / "gpu.json", json.dumps(report, indent=1, default=str))
        write_whole(self._options.output / "gpu.md", page(report))
        return report


def _machine() -> dict[str, str | None]:
    """What only other programs know: the driver, the commit, the compiler."""
    queries = {
        "driver": ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"),
        "commit": ("git", "rev-parse", "HEAD"),
        "compiler": ("c++", "--version"),
    }
    return {name: _said(command) for name, command in queries.items()}


def _said(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0]


def run_job(job: str, options: Options, seconds: float) -> None:
    """One job, in this process."""
    if options.device == "cpu":
        torch.set_num_threads(1)  # of tiny models they wait for each other
    work = next(jobs[job] for jobs in PARTS.values() if job in jobs)
    options.output.mkdir(parents=True, exist_ok=True)
    work(Records(options.output / f"part-{job}.json", seconds), options)


def main(
    output: Annotated[Path, typer.Option("--output", help="Folder of the results.")] = Path("runs/gpu"),
    parts: Annotated[str, typer.Option("--parts", help=f"Of {','.join(PARTS)}.")] = ",".join(PARTS),
    smollm2: Annotated[str | None, typer.Option("--smollm2", help="A folder of SmolLM2-135M, or its .gguf.")] = None,
    large: Annotated[str | None, typer.Option("--model-1.5b", help="A folder of Qwen2.5-1.5B.")] = None,
    heads: Annotated[list[str] | None, typer.Option("--heads", help="A folder of heads for --smollm2.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="After which no job is begun.")] = 480.0,
    device: Annotated[str, typer.Option("--device", help="cuda or cpu.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="Small shapes, to test this benchmark.")] = False,
    job: Annotated[str, typer.Option("--job", hidden=True)] = "",
    job_seconds: Annotated[float, typer.Option("--job-seconds", hidden=True)] = 0.0,
) -> None:
    """Run the parts and write gpu.json and gpu.md."""
    for folder in heads or ():
        kind_of(folder)  # raises, before anything is measured, where there are none
    options = Options(
        output=output,
        device=device,
        tiny=tiny,
        smollm2=as_folder(smollm2, output),
        large=large,
        heads=tuple(heads or ()),
        seconds=seconds,
    )
    if job:
        run_job(job, options, job_seconds)
        return
    chosen = [each for each in parts.split(",") if each]
    if unknown := [each for each in chosen if each not in PARTS]:
        raise typer.BadParameter(f"--parts has {unknown[0]!r}; known are {', '.join(PARTS)}")
    report = Run(options).go(chosen)
    for name, part in report["parts"].items():
        failed = sum("error" in row for row in part["records"])
        print(f"{name}: {part['ended']} in {part['seconds']} s, {len(part['records'])} records, {failed} failed")
    print(f"written to {output}/gpu.md and gpu.json")


if __name__ == "__main__":
    typer.run(main)
