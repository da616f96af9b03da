"""What our own CPU kernels are called with: tensors and plans of passes in, addresses and sizes out.

Where the kernels come from is in ``compiled.py``; which models and passes take them, in ``capabilities.py``.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from specstream.core.sampling import Finder
from specstream.core.tree import TokenTree
from specstream.environment import level
from specstream.models.runtime import compiled
from specstream.models.runtime.compiled import Kernels, NoKernelsError

LANES = 16
"""Floats the kernels handle at a time; an attention head's size must be a multiple."""

MOST_ROWS = 128
"""Rows above which a library's blocked matrix product is faster, where it need not emulate the dtype: long prompts.

Its product is faster from some 64 rows on, but then all that stands between the products is not fused.
"""


@cache
def kernels() -> Kernels:
    """Those of this process, found or compiled when first asked for. Where there are none, ``reason`` says why.

    Raises:
        UsageError: ``SPECSTREAM_CPU`` cannot be followed.
    """
    found = compiled.load(level())
    if found.library is not None:
        _declare(found.library)
    return found


def _declare(library: ctypes.CDLL) -> None:
    address, layout, sizes = ctypes.c_void_p, ctypes.c_int64, [ctypes.c_long] * 3
    layers = [address, address, address, ctypes.c_long]
    signatures: dict[str, list[Any]] = {
        "linear": [*[address] * 4, *sizes, ctypes.c_int],
        "linear_blocks": [address, address, layout, address, address, *sizes, ctypes.c_int],
        "rows_blocks": [address, layout, address, address, *sizes[:2]],
        "likeliest": [address, address, address, *sizes],
        "norm": [address, address, address, *sizes[:2], ctypes.c_float],
        "layers": layers,
        "layers_blocks": layers,
        "attention": [ctypes.POINTER(_Attention)],
    }
    for name, arguments in signatures.items():
        for dtype in ("bf16", "f32"):
            function = getattr(library, f"{name}_{dtype}")
            function.argtypes, function.restype = arguments, None
    library.pack.argtypes, library.pack.restype = [layout, address, layout, address, *sizes[:2], ctypes.c_int], None


def kernel(name: str, dtype: torch.dtype, bits: str = "") -> Any:
    """A kernel of the library for activations of ``dtype``, bf16 or f32.

    Args:
        name: ``linear``, ``layers``, ``norm``, ``attention`` or ``likeliest``; of blocks also ``rows``.
        dtype: of the activations.
        bits: ``blocks`` for weights of fewer bits; empty for the activations' own.

    Raises:
        NoKernelsError: there are none here; the message says why.
    """
    suffix = "bf16" if dtype == torch.bfloat16 else "f32"
    return getattr(_library(), f"{name}_{bits}_{suffix}" if bits else f"{name}_{suffix}")


def packing() -> Any:
    """The kernel that brings weights into the layout that others read.

    Raises:
        NoKernelsError: there are none here; the message says why.
    """
    return _library().pack


def _library() -> ctypes.CDLL:
    found = kernels()
    if found.library is None:
        raise NoKernelsError(found.reason)
    return found.library


def available() -> bool:
    """Whether there are kernels for this machine."""
    return kernels().library is not None


def emulates(dtype: torch.dtype) -> bool:
    """Whether oneDNN emulates the dtype, for want of instructions, at half the speed of our kernel or less."""
    return dtype == torch.bfloat16 and not level().bf16


def rows_of(dtype: torch.dtype) -> int:
    """Rows up to which ``linear`` is our own kernel, and so gives a row the same bits."""
    # A fixed rule, not a measurement: the same prompt must give the same bits in every process.
    return sys.maxsize if emulates(dtype) else MOST_ROWS


def linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear layer for the few rows of a decoding pass, on the weight itself: ``[n, k]`` contiguous, bf16 or f32.

    The result's rows have the same bits in passes of any width up to ``rows_of`` its dtype.
    """
    most_rows = rows_of(weight.dtype)
    weight = weight.detach()
    bias = None if bias is None else bias.detach().contiguous()
    multiply = kernel("linear", weight.dtype)
    outputs, inputs = weight.shape
    weight_address = weight.data_ptr()
    bias_address = None if bias is None else bias.data_ptr()

    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // inputs
        if rows > most_rows or x.dtype != weight.dtype:
            return functional.linear(x, weight, bias)
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        multiply(
            *(x.data_ptr(), weight_address, bias_address, y.data_ptr()),
            *(rows, outputs, inputs, torch.get_num_threads()),
        )
        return y

    return forward


def norm(weight: Tensor, epsilon: float) -> Callable[[Tensor], Tensor]:
    """RMS norm of the last dimension, on the weight itself: ``[n]`` contiguous, bf16 or f32.

    One call in the place of eight operations of torch, each of which is slow behind a pass.
    """
    normalise, weight = kernel("norm", weight.dtype), weight.detach()
    count, address = len(weight), weight.data_ptr()

    def forward(x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        normalise(x.data_ptr(), address, y.data_ptr(), x.numel() // count, count, epsilon)
        return y

    return forward


class KernelFinder(Finder):
    """Finds in one call for all rows, without a tensor.

    Behind a pass, which leaves nothing else in the caches, an operation of torch takes 30 to 120 us (AVX2).
    Of equal logits the first is found, and a NaN is above all.
    """

    def choices(self, logits: Tensor) -> list[list[int]]:
        """See ``Finder``."""
        rows, width, _ = logits.shape
        found = _likeliest(logits, range(rows * width), 1)
        return [found[row * width : (row + 1) * width] for row in range(rows)]

    def likeliest(self, logits: Tensor, places: Sequence[tuple[int, int]], k: int) -> list[list[int]]:
        """See ``Finder``."""
        found = _likeliest(logits, [row * logits.shape[1] + node for row, node in places], k)
        return [found[at : at + k] for at in range(0, len(found), k)]


def _likeliest(logits: Tensor, places: Sequence[int], k: int) -> list[int]:
    """Of each place ``k``; the first is ``NO_CHOICE`` where the largest is NaN or infinite."""
    if logits.dtype != torch.bfloat16:
        logits = logits.float()
    logits, count = logits.contiguous(), len(places)
    rows, tokens = (ctypes.c_int64 * count)(*places), (ctypes.c_int64 * (count * k))()
    kernel("likeliest", logits.dtype)(logits.data_ptr(), rows, tokens, count, logits.shape[-1], k)
    return list(tokens)


@dataclass(frozen=True)
class TreePlan:
    """What the nodes of a pass see: their row's committed tokens and their own ancestors.

    Attributes:
        lengths: ``[rows]`` int64: committed tokens, at the cache's first slots.
        paths: ``[rows, nodes, nodes]`` int32: for each node the nodes from the root down to it.
        depths: ``[rows, nodes]`` int32: how many those are.
        starts: ``[rows + 1]`` int64 where the pass is packed: it has no padding, the nodes of all rows stand one after
            another, and these are each row's first and how many they all are. None where every row has ``nodes``.
    """

    lengths: Tensor
    paths: Tensor
    depths: Tensor
    starts: Tensor | None = None

    @property
    def places(self) -> Tensor:
        """Where each row's nodes stand in a packed pass, ``[rows, nodes]`` int64; beyond its own the row's last.

        Every row needs a node.
        """
        assert self.starts is not None
        nodes = torch.arange(self.depths.shape[1])
        return torch.minimum(self.starts[:-1, None] + nodes, self.starts[1:, None] - 1)

    def packed(self, counts: Sequence[int]) -> TreePlan:
        """The same pass with so many nodes of each row, none of them padding."""
        starts = torch.tensor([0, *accumulate(counts)], dtype=torch.int64)
        return replace(self, starts=starts)


def tree_plan(trees: Sequence[TokenTree], width: int, lengths: Sequence[int]) -> TreePlan:
    """The plan of a pass of ``width`` nodes per row; padding behind a tree continues nothing and sees itself."""
    committed = torch.tensor(lengths, dtype=torch.int64)
    if all(tree.is_chain for tree in trees):
        return TreePlan(committed, *_chains(len(trees), width))
    paths, depths = list[int](), list[int]()
    for tree in trees:
        for node in range(width):
            path = tree.path(node) if node < len(tree) else range(node + 1)
            paths += [*path, *range(len(path), width)]
            depths.append(len(path))
    shape = len(trees), width
    return TreePlan(
        committed,
        torch.tensor(paths, dtype=torch.int32).view(*shape, width),
        torch.tensor(depths, dtype=torch.int32).view(shape),
    )


@lru_cache(maxsize=256)
def _chains(rows: int, width: int) -> tuple[Tensor, Tensor]:
    nodes = torch.arange(width, dtype=torch.int32)
    return nodes.expand(rows, width, width).contiguous(), (nodes + 1).expand(rows, width).contiguous()


class _Attention(ctypes.Structure):
    """``struct Attention`` of attention.cpp, field by field."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lengths", "starts", "paths", "depths")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "nodes", "dim")),
        *((f"{tensor}_{step}", ctypes.c_int64) for tensor in "qkv" for step in ("row", "head", "slot")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("threads", ctypes.c_int64),
    ]


def attention(
    query: Tensor, keys: Tensor, values: Tensor, plan: TreePlan, *, scale: float, window: int = 0, softcap: float = 0.0
) -> Tensor:
    """Attention of a tree's nodes, with the bits of plain decoding on every branch.

    Args:
        query: ``[rows, heads, nodes, dim]``, bf16 or f32, ``dim`` a multiple of 16 and contiguous.
        keys: ``[rows, kv_heads, slots, dim]`` of the cache, the nodes' own behind their row's committed ones.
        values: likewise.
        plan: what each node sees.
        scale: multiplies the scores.
        window: most tokens a node sees, itself included; 0 for no limit.
        softcap: ``softcap * tanh(score / softcap)`` (Gemma 2); 0 for none.

    Returns:
        ``[rows, nodes, heads, dim]``.
    """
    rows, heads, nodes, dim = query.shape
    out = query.new_empty((rows, nodes, heads, dim))
    problem = _Attention(
        *(tensor.data_ptr() for tensor in (query, keys, values, out, plan.lengths)),
        *(None, plan.paths.data_ptr(), plan.depths.data_ptr()),
        *(rows, heads, keys.shape[1], nodes, dim),
        *(step for tensor in (query, keys, values) for step in tensor.stride()[:3]),
        window,
        scale,
        softcap,
        torch.get_num_threads(),
    )
    kernel("attention", query.dtype)(ctypes.byref(problem))
    return out
