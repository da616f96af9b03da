"""The driver's side of the workers: one process for each system, kept alive, asked one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.prompts import Item
from benchmarks.systems import INSTALL, System, environment
from specstream.errors import SpecStreamError

ROOT = Path(__file__).parents[1]


class WorkerError(SpecStreamError):
    """A worker failed; the message names its system and ends with what it said."""


class NotInstalledError(WorkerError):
    """The system's package is not there."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """What every system is given.

    Attributes:
        target: a folder or a name that all of them can load.
        draft: the same for the draft, None if there is none.
        dtype: of both.
        eos: tokens that end a text.
        pad: what batches are padded with where a system needs it.
        context: most tokens of a prompt and its output.
        batch: most prompts in one call.
        gguf: the target again, for llama.cpp.
    """

    target: str
    draft: str | None
    dtype: str
    eos: tuple[int, ...]
    pad: int
    context: int
    batch: int = 1
    gguf: str = ""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One generation.

    Attributes:
        tokens: new tokens of each prompt.
        seconds: wall-clock time of the call, the prompt included.
        counts: what the system itself counted.
        peak_mib: the process's peak of resident memory so far.
    """

    tokens: list[list[int]]
    seconds: float
    counts: Mapping[str, Any]
    peak_mib: float

    @property
    def new_tokens(self) -> int:
        """Of all prompts together."""
        return sum(map(len, self.tokens))

    @property
    def speed(self) -> float:
        """New tokens per second."""
        return self.new_tokens / self.seconds


class WorkerProcess:
    """A system in a process of its own.

    Args:
        system: what to load.
        models: with which models.
        python: the interpreter that has it.
        command: in place of ``python -m benchmarks.serve``.

    Raises:
        NotInstalledError: the interpreter does not have the package.
        WorkerError: loading failed.
    """

    def __init__(
        self, system: System, models: Models, python: str = sys.executable, command: Sequence[str] | None = None
    ) -> None:
        self.system = system
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # read when the worker fails, closed in `close`
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            list(command or (python, "-m", "benchmarks.serve")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment(system.engine, python), "PYTHONPATH": path},
        )
        try:
            self.loaded = self._ask(self._load_request(models))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def generate(self, item: Item, limit: int, ignore_eos: bool = False) -> Reply:
        """Generate for the prompts of one item, at most ``limit`` tokens each.

        Raises:
            WorkerError: it failed.
        """
        answer = self._ask({"op": "generate", "prompts": item.prompts, "limit": limit, "ignore_eos": ignore_eos})
        return Reply(
            tokens=answer["tokens"],
            seconds=answer["seconds"],
            counts=answer["counts"],
            peak_mib=answer["memory"]["peak_mib"],
        )

    def close(self) -> None:
        """End the process; it may be ended already."""
        process = self._process
        try:
            if process.poll() is None:
                process.communicate(json.dumps({"op": "close"}) + "\n", timeout=30)
        except (subprocess.TimeoutExpired, BrokenPipeError, ValueError):
            process.kill()
            process.wait()
        finally:
            for pipe in (process.stdin, process.stdout, self._log):
                if pipe is not None and not pipe.closed:
                    pipe.close()

    def _load_request(self, models: Models) -> dict[str, Any]:
        system = self.system
        return {
            "op": "load",
            "engine": system.engine,
            "mode": system.mode,
            "k": system.k,
            "options": dict(system.options),
            **vars(models),
            "draft": models.draft if system.needs_draft else None,
        }

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.system.name}: its process ended with code {process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("missing"):
            raise NotInstalledError(
                f"{self.system.name}: not installed ({answer['error']}); {INSTALL[self.system.engine]}"
            )
        if "error" in answer:
            raise WorkerError(f"{self.system.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        words = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return words[-1][:500] if words else "it said nothing"
