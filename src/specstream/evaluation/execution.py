"""Programs that a model wrote, in a process of their own that is held down: time, memory, files, processes, network.

This keeps careless code from doing harm: code that loops, eats memory, deletes files, floods its output, opens
connections or ends early. It is no prison for code that was written to break out; for that, take a virtual machine.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specstream.errors import UsageError

SANDBOX = Path(__file__).with_name("sandbox.py")
"""What runs in that process: the standard library alone, so that it starts quickly."""

MOST_REPORT = 1 << 16
"""Bytes that are read of what the process says: a program that finds the pipe cannot fill our memory with it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_seconds: of processor time.
        wall_seconds: from start to end.
        memory_bytes: of address space.
        file_bytes: of a file that it writes, in a folder of its own.
        open_files: at a time.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 64


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: it ran to its very end.
        reason: empty if it did, else why not: the exception, ``ended early``, ``timeout``, ``killed``.
        isolation: what kept it from the network and from other files.
    """

    passed: bool
    reason: str
    isolation: tuple[str, ...]


def check_platform() -> None:
    """Refuse before a model is loaded what could not be run afterwards.

    Raises:
        UsageError: a platform without resource limits.
    """
    if os.name != "posix":
        raise UsageError("code is executed under resource limits that this platform lacks; leave --execute-code out")


def run_program(source: str, limits: Limits | None = None) -> Outcome:
    """Run a Python program to its end.

    Args:
        source: the program; to raise nothing and to reach its last line is to pass.
        limits: what it may use.
    """
    check_platform()
    limits = limits or Limits()
    # The sandbox says it once the last line was reached: an exit code of 0 is had by leaving early, too.
    proof = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="specstream-", ignore_cleanup_errors=True) as folder:
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(SANDBOX), str(writing)],
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writing,),
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            _hand_over(process, json.dumps({"source": source, "proof": proof, "limits": asdict(limits)}))
            said, reason = _listen(reading, time.monotonic() + limits.wall_seconds)
        finally:
            os.close(reading)
            _end(process)
    return _outcome(said, reason, proof, process.returncode)


def _hand_over(process: subprocess.Popen[bytes], job: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it did not even start; its end says so
        process.stdin.write(job.encode())
        process.stdin.close()


def _listen(reading: int, deadline: float) -> tuple[bytes, str]:
    """What the process says, and why no more was listened to; empty if it ended."""
    said = b""
    while len(said) < MOST_REPORT:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return said, "timeout"
        piece = os.read(reading, MOST_REPORT)
        if not piece:
            return said, ""
        said += piece
    return said, "flooded the report"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it started; if its parent has ended, its group may still be there."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(said: bytes, reason: str, proof: str, code: int) -> Outcome:
    lines: list[dict[str, Any]] = []
    for line in said.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # the program's own, or cut
            continue
        if isinstance(value, dict):
            lines.append(value)
    isolation = tuple(str(each) for each in next((one["isolation"] for one in lines if "isolation" in one), ()))
    if not reason and any(one.get("proof") == proof for one in lines):
        return Outcome(passed=True, reason="", isolation=isolation)
    reason = reason or next((str(one["error"])[:300] for one in lines if "error" in one), "")
    if not reason:
        reason = _killed(code) if code < 0 else "ended early"
    return Outcome(passed=False, reason=reason, isolation=isolation)


def _killed(code: int) -> str:
    name = signal.Signals(-code).name
    # Past its soft limit of processor time the kernel sends XCPU, past the hard one KILL.
    return "timeout" if name in ("SIGXCPU", "SIGKILL") else f"killed: {name}"
