"""What the self-test of widths found and what passes cost, kept on disk: a program that starts again asks for nothing.

Which kernel a pass runs, and so its bits and its seconds, depends on the model, its dtype, the code of its forward, the
runtime, the number of threads, the processor and its level, the libraries and our own code. All of that is in the name
of the file: whatever changes, the answers of before are not found. ``SPECSTREAM_NO_SELFTEST_CACHE=1`` keeps and reads
nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import torch

from specstream.environment import is_on, level, processor, provenance
from specstream.files.atomic import user_cache, write_whole
from specstream.models.architecture.blocks import kinds_of
from specstream.models.architecture.code import code_of
from specstream.models.architecture.compat import attention_of
from specstream.models.architecture.fingerprint import fingerprint
from specstream.models.runtime import native

SWITCH = "SPECSTREAM_NO_SELFTEST_CACHE"
"""The environment variable that turns this off."""

LIBRARIES = ("ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "TORCH_")
"""Environment variables that may choose kernels, or say how threads wait for each other, begin with one of these."""

_Of = TypeVar("_Of", bound=tuple[int, ...])


class SelfTestCache:
    """Answers by name, in one file: whole numbers, and seconds. A file that cannot be used is as good as none.

    Args:
        path: of the file; None remembers as long as the object lives.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._known = self._read()
        self._passing = dict[str, int | float]()  # answers that are not written down

    def get(self, name: str) -> int | None:
        """The whole number, None if there is none yet."""
        answer = {**self._known, **self._passing}.get(name)
        return answer if isinstance(answer, int) else None

    def seconds(self, name: str) -> dict[tuple[int, ...], float]:
        """What was measured under this name, by what it was measured for."""
        start = f"{name}: "
        known = {**self._known, **self._passing}.items()
        measured = ((each, answer) for each, answer in known if each.startswith(start))
        return {tuple(map(int, each.removeprefix(start).split())): answer for each, answer in measured}

    def keep(self, name: str, answer: int, *, lasting: bool = True) -> None:
        """Remember an answer, now and, if it is ``lasting``, on disk, beside what other processes have found."""
        self._keep({name: int(answer)}, lasting)

    def keep_seconds(self, name: str, measured: Mapping[_Of, float], *, lasting: bool = True) -> None:
        """Remember what was measured, beside what is known under this name."""
        self._keep({f"{name}: {' '.join(map(str, each))}": float(took) for each, took in measured.items()}, lasting)

    def forget(self, start: str) -> None:
        """Forget the answers whose names begin like this, on disk too."""
        known = {**self._read(), **self._known}
        self._known = {name: answer for name, answer in known.items() if not name.startswith(start)}
        self._passing = {name: answer for name, answer in self._passing.items() if not name.startswith(start)}
        self._write()

    def _keep(self, answers: Mapping[str, int | float], lasting: bool) -> None:
        if not lasting or self._path is None:
            self._passing.update(answers)
            return
        self._known = {**self._read(), **self._known, **answers}
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(self._known, indent=0, sort_keys=True))
        except OSError:
            pass

    def _read(self) -> dict[str, int | float]:
        if self._path is None:
            return {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: answer for name, answer in found.items() if isinstance(answer, int | float) and isfinite(answer)}


def once(cache: SelfTestCache | None, name: str, test: Callable[[], None]) -> None:
    """Run a test that raises if it fails, unless it is known to have passed."""
    if cache is None or not cache.get(name):
        test()
        if cache is not None:
            cache.keep(name, True)


def cache_of(model: Any, runtime: str) -> SelfTestCache | None:
    """Those of a model on this machine; None where they are not to be kept, or the model's code is not known.

    Args:
        model: a transformers model.
        runtime: the name of how its passes run.
    """
    if switched_off() or (code := code_of(model)) is None:
        return None
    made_with = provenance(str(model.device), str(model.dtype))
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith(LIBRARIES)}
    parts = [
        *(made_with, settings, _sources(), processor(), level().name, _kernels(runtime)),
        *(torch.__config__.show(), torch.get_float32_matmul_precision()),
        *(torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
        *(torch.are_deterministic_algorithms_enabled(), runtime),
        *(fingerprint(model), kinds_of(model), model.config.to_json_string(), attention_of(model), code),
    ]
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    return SelfTestCache(cache_folder() / f"{name}.json")


def cache_folder() -> Path:
    """Where answers are kept."""
    return user_cache() / "specstream" / "selftest"


def switched_off() -> bool:
    """Whether ``SPECSTREAM_NO_SELFTEST_CACHE`` is set."""
    return is_on(SWITCH)


def _kernels(runtime: str) -> str:
    """What tells the kernels of a runtime from others: two compilers may round otherwise."""
    return native.kernels().name if runtime.startswith("native") else ""


@cache
def _sources() -> str:
    """A hash of the code that passes run through: of all models, kernels too."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*")):
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
