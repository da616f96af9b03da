"""One worker: loads one system and generates when told to. JSON lines in on stdin, out on stdout.

Runs in the environment of the system it serves, so it needs the standard library and that system only. Requests:

    {"op": "load", ...}                        -> {"ok", "versions", "threads", "memory"} or {"missing": package}
    {"op": "generate", "prompts", "limit", "ignore_eos"} -> {"ok", "tokens", "seconds", "memory", ...}
    {"op": "close"}

Whatever goes wrong is answered with {"error": one line}; the worker goes on.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from benchmarks.backends import Backend, load


def memory() -> dict[str, float]:
    """Resident memory of this process in MiB: now, and at its peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # ru_maxrss starts at what the parent held when it forked; this process's own high-water mark does not.
    return memory_of("self") or {"peak_mib": peak, "now_mib": peak}


def memory_of(process: int | str) -> dict[str, float]:
    """The same of any process; nothing where it is not told, or the process is gone."""
    try:
        with open(f"/proc/{process}/status", encoding="utf-8", errors="replace") as status:
            values = dict(line.split(":", 1) for line in status)
        return {"peak_mib": _mib(values["VmHWM"]), "now_mib": _mib(values["VmRSS"])}
    except (OSError, KeyError):  # a process that has ended and was not waited for has no memory
        return {}


def _mib(kilobytes: str) -> float:
    return int(kilobytes.split()[0]) / 1024


class Worker:
    """Answers requests.

    Args:
        loader: makes the backend of a load request.
    """

    def __init__(self, loader: Callable[[dict[str, Any]], Backend]) -> None:
        self._loader = loader
        self._backend: Backend | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request."""
        try:
            if request["op"] == "load":
                return self._load(request)
            return self._generate(request)
        except ModuleNotFoundError as error:
            return {"missing": str(error.name), "error": f"{error}"}
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        self._backend = self._loader(request)
        seconds = time.perf_counter() - started
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch is not None else None
        versions = {**self._backend.versions, "python": sys.version.split()[0]}
        return {"ok": True, "versions": versions, "threads": threads, "load_seconds": seconds, "memory": memory()}

    def _generate(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._backend is None:
            raise RuntimeError("nothing is loaded; send a load request first")
        started = time.perf_counter()
        tokens, counts = self._backend.generate(request["prompts"], request["limit"], request["ignore_eos"])
        seconds = time.perf_counter() - started
        return {"ok": True, "tokens": tokens, "seconds": seconds, "counts": counts, "memory": memory()}


def serve(requests: Iterable[str], replies: TextIO, worker: Worker) -> None:
    """Answer each line until it is told to close, or its input ends."""
    for line in requests:
        request = json.loads(line)
        if request["op"] == "close":
            return
        replies.write(json.dumps(worker.answer(request)) + "\n")
        replies.flush()


def main() -> None:
    """Serve on stdin and stdout; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies, Worker(load))


if __name__ == "__main__":
    main()
