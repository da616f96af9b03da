"""Servers as processes: started, waited for, watched, told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import httpx
import numpy
import psutil  # type: ignore[import-untyped]
from scipy import stats  # type: ignore[import-untyped]

from benchmarks.serve import memory_of
from benchmarks.systems import environment
from benchmarks.workers import ROOT
from specstream.errors import SpecStreamError

NAME = "served"
"""What the model is called on every server."""


Command = tuple[list[str], dict[str, str]]
"""What to run, and variables over this process's own."""


class ServerError(SpecStreamError):
    """A server did not start, or did not stop as it should; the message ends with what it said."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server is given.

    Attributes:
        target: a folder.
        dtype: of the weights.
        rows: answers side by side.
        queue: answers that may wait; for ours only.
        most: new tokens of an answer, at most.
        context: tokens of a prompt and its answer, at most.
    """

    target: str
    dtype: str
    rows: int
    queue: int
    most: int
    context: int


def ours(served: Served, port: int, options: Iterable[str] = ()) -> Command:
    """Command and environment of ``specstream serve``; ``options`` are ``KEY=VALUE`` of its configuration."""
    values: dict[str, object] = {
        "model_name": NAME,
        "model_path": served.target,
        "dtype": served.dtype,
        "max_rows": served.rows,
        "max_queue": served.queue,
        "max_tokens": served.most,
        "max_context": served.context,
        "request_seconds": 3600,
        **dict(option.split("=", 1) for option in options),
    }
    settings = {f"SPECSTREAM_{key.upper()}": str(value) for key, value in values.items()}
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", "from specstream.cli import main; main()", "serve", "--port", str(port)]
    return command, {**settings, "PYTHONPATH": path}


def vllm(served: Served, port: int, python: str, options: Sequence[str] = ()) -> Command:
    """The same of vLLM's server, without prefix caching, because the load repeats its prompts."""
    settings = {
        "--model": served.target,
        "--served-model-name": NAME,
        "--dtype": served.dtype,
        "--max-num-seqs": str(served.rows),
        "--max-model-len": str(served.context),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--generation-config": "vllm",  # not the checkpoint's, which may set a repetition penalty
    }
    flags = ["--no-enable-prefix-caching", *options]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        *(word for pair in settings.items() for word in pair),
    ]
    return [*command, *flags], environment("vllm", python)


def llama_cpp(served: Served, port: int, python: str) -> Command:
    """The same of llama-cpp-python's server, whose target is a GGUF file: it answers one request after the other.

    Its defaults would lose: half the cores, logits of all positions, and a stream ends when another request comes.
    """
    settings = {
        "--model": served.target,
        "--model_alias": NAME,
        "--n_ctx": str(served.context),
        "--n_threads": "-1",  # all cores
        "--n_threads_batch": "-1",
        "--logits_all": "false",
        "--interrupt_requests": "false",
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    words = [word for pair in settings.items() for word in pair]
    return [python, "-m", "llama_cpp.server", *words], environment("llama.cpp", python)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server in a process of its own, which listens when this has been made.

    Args:
        name: for messages.
        command: what to run.
        variables: over this process's own.
        port: where it will listen.
        patience: seconds that it may take to start.

    Raises:
        ServerError: it ended, or took too long.
    """

    def __init__(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], port: int, patience: float = 900.0
    ) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # read when it fails, closed in `close`
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env={**os.environ, **variables}, start_new_session=True
        )
        try:
            self._wait(time.monotonic() + patience)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        """All that it said."""
        file = self._log.fileno()  # not read through it: it and the process write and read at one place
        return os.pread(file, os.fstat(file).st_size, 0).decode("utf-8", "replace")

    def last_words(self, lines: int = 3) -> str:
        """The end of its log, in one line."""
        words = self.log().strip().splitlines()
        return " | ".join(line.strip() for line in words[-lines:])[:500] or "it said nothing"

    def close(self, patience: float = 60.0) -> int:
        """Tell it to stop, wait for that, and end what is left of it; its exit code."""
        process = self._process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        with contextlib.suppress(ProcessLookupError):  # the group is gone
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        code = process.wait()
        self._log.close()
        return code

    def _wait(self, end: float) -> None:
        while time.monotonic() < end:
            if not self.alive:
                raise ServerError(f"{self.name} ended with code {self._process.poll()}: {self.last_words()}")
            try:
                if httpx.get(f"{self.url}/v1/models", timeout=10).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise ServerError(f"{self.name} did not listen in time: {self.last_words()}")


class MemorySampler:
    """Watches the resident memory of a process and its children while it is entered.

    Args:
        pid: the process.
        seconds: between two looks.

    Attributes:
        samples: ``(seconds since the first, MiB)``.
    """

    def __init__(self, pid: int, seconds: float = 1.0) -> None:
        self._pid, self._seconds = pid, seconds
        self.samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        started = time.monotonic()
        while True:
            if resident := sum(memory_of(pid).get("now_mib", 0.0) for pid in family(self._pid)):
                self.samples.append((time.monotonic() - started, resident))
            if self._ended.wait(self._seconds):
                return


def family(pid: int) -> list[int]:
    """A process and all its descendants that live."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How memory went, after its first part, in which buffers reach their size.

    Attributes:
        mib_per_hour: slope of the line through the samples.
        error: standard error of that, as if samples were independent; they are not, so it is too small.
        start_mib: median of the first quarter that counts.
        end_mib: and of the last.
        peak_mib: the most of all samples.
        minutes: that count.
    """

    mib_per_hour: float
    error: float
    start_mib: float
    end_mib: float
    peak_mib: float
    minutes: float


def growth(samples: Sequence[tuple[float, float]], skipped: float = 0.2) -> Growth:
    """Fit a line.

    Args:
        samples: ``(seconds, MiB)``, at least four of them behind the skipped part.
        skipped: share of the time at the beginning that does not count.

    Raises:
        ServerError: too few samples.
    """
    start = samples[0][0] + skipped * (samples[-1][0] - samples[0][0]) if samples else 0.0
    counted = numpy.array([each for each in samples if each[0] >= start])
    if len(counted) < 4:
        raise ServerError(f"{len(samples)} samples of memory are too few for a line; let the load last longer")
    seconds, sizes = counted.T
    line = stats.linregress(seconds, sizes)
    quarter = max(1, len(sizes) // 4)
    return Growth(
        mib_per_hour=float(line.slope) * 3600,
        error=float(numpy.nan_to_num(line.stderr)) * 3600,  # a flat line has none
        start_mib=float(numpy.median(sizes[:quarter])),
        end_mib=float(numpy.median(sizes[-quarter:])),
        peak_mib=max(size for _, size in samples),
        minutes=float(seconds[-1] - seconds[0]) / 60,
    )
