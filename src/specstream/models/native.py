"""Kernels of our own for the CPU, compiled once on the machine that runs them.

The source is one C++ file without dependencies; any of ``$CXX``, ``c++``, ``g++`` or ``clang++`` makes a shared library
of it in a few seconds, kept in the user's cache under a name that holds the source, the compiler and the processor.
Without a compiler the package works as well, only slower: ``library`` then says why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specstream.errors import SpecStreamError

SOURCE = Path(__file__).parent / "kernels" / "linear.cpp"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")

MOST_ROWS = 64
"""Rows above which a library's blocked matrix product is faster: long prompts, wide batches."""


class NoKernelsError(SpecStreamError):
    """The kernels cannot be built or loaded here."""


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        NoKernelsError: no compiler, or one that fails; the message says which.
    """
    compiler = next((found for name in _compilers() if (found := shutil.which(name))), None)
    if compiler is None:
        raise NoKernelsError("no C++ compiler was found; install g++ or set CXX for faster passes")
    built = _cache_folder() / f"linear-{_fingerprint(compiler)}.so"
    if not built.exists():
        _compile(compiler, built)
    try:
        loaded = ctypes.CDLL(str(built))
    except OSError as error:
        raise NoKernelsError(f"the kernels in {built} cannot be loaded ({error}); delete the file") from error
    for name in ("linear_bf16", "linear_f32"):
        function = getattr(loaded, name)
        function.argtypes = [*[ctypes.c_void_p] * 4, *[ctypes.c_long] * 3, ctypes.c_int]
        function.restype = None
    return loaded


def available() -> bool:
    """Whether the kernels can be used on this machine."""
    try:
        library()
    except NoKernelsError:
        return False
    return True


def linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear layer for the few rows of a decoding pass, on the weight itself: ``[n, k]`` contiguous, bf16 or f32.

    The result's rows have the same bits in passes of any width up to ``MOST_ROWS``.
    """
    weight = weight.detach()
    bias = None if bias is None else bias.detach().contiguous()
    kernel: Any = library().linear_bf16 if weight.dtype == torch.bfloat16 else library().linear_f32
    outputs, inputs = weight.shape
    weight_address = weight.data_ptr()
    bias_address = None if bias is None else bias.data_ptr()

    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // inputs
        if rows > MOST_ROWS or x.dtype != weight.dtype:
            return functional.linear(x, weight, bias)
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        kernel(x.data_ptr(), weight_address, bias_address, y.data_ptr(), rows, outputs, inputs, torch.get_num_threads())
        return y

    return forward


def _compilers() -> list[str]:
    chosen = os.environ.get("CXX")
    return [chosen] if chosen else ["c++", "g++", "clang++"]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "specstream" / "kernels"


def _fingerprint(compiler: str) -> str:
    """A library built for one processor may hold instructions that another does not know."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    parts = (SOURCE.read_text(encoding="utf-8"), " ".join(FLAGS), version, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, built: Path) -> None:
    """Into a temporary file first: a second process, or an interrupt, never sees half a library."""
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made = Path(folder) / built.name
            done = subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                reason = " ".join(done.stderr.split())[:300]
                raise NoKernelsError(f"{compiler} could not build the kernels: {reason}")
            os.replace(made, built)
    except OSError as error:
        raise NoKernelsError(f"the kernels cannot be written to {built.parent}: {error}") from error
