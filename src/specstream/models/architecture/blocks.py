"""Weights in blocks as GGUF files have them: a few bits for each value, and scales for 32 or 256 of them.

They stay those of a file, or are made of a checkpoint that somebody quantised (``hub/quantized.py``).

A model's own forward, heads and fingerprints read ``.weight`` as numbers. Here they get those numbers, of the rows that
they ask for or of all; nothing keeps them. What is fast reads ``blocks`` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import gguf
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from specstream.errors import UsageError

_aten = torch.ops.aten
_SAME = (_aten.detach.default, _aten.alias.default)
_CALLED = {"gguf": "a GGUF file", "awq": "an AWQ checkpoint", "gptq": "a GPTQ checkpoint"}
_OF_ROWS = (_aten.slice.Tensor, _aten.select.int, _aten.index.Tensor, _aten.index_select.default)
_NEW = (_aten.new_empty.default, _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default)


class BlockTensor(Tensor):
    """A matrix ``[rows, columns]`` of a floating dtype that holds no numbers, only blocks.

    Operations see numbers, rounded to the dtype; only the rows that they take where they take rows. Detaching and
    copying deeply share the blocks. Nothing changes them.

    Args:
        blocks: ``[rows, bytes per row]`` uint8, on the CPU; it may be a view of a mapped file.
        kind: of the blocks, by ggml's name, such as ``Q4_1``.
        dtype: that operations see.
        source: what the model was stored as: ``gguf``, or the ``quant_method`` of a checkpoint.

    Attributes:
        blocks: as given.
        kind: as given.
        source: as given.
    """

    blocks: Tensor
    kind: str
    source: str

    @staticmethod
    def __new__(cls, blocks: Tensor, kind: str, dtype: torch.dtype, source: str = "gguf") -> BlockTensor:
        values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        shape = (blocks.shape[0], blocks.shape[1] // size * values)
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device("cpu"))

    def __init__(self, blocks: Tensor, kind: str, dtype: torch.dtype, source: str = "gguf") -> None:
        self.blocks, self.kind, self.source = blocks, kind, source

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes of the blocks."""
        return self.blocks.nbytes

    def dequantized(self, rows: Tensor | None = None) -> Tensor:
        """The numbers, ``[rows, columns]`` float32.

        Args:
            rows: ``[n]`` int64, which rows; None for all.
        """
        blocks = self.blocks if rows is None else self.blocks[rows]
        found = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[self.kind])
        return torch.from_numpy(found).view(len(blocks), self.shape[1])

    def at(self, places: Tensor) -> Tensor:
        """The numbers at places ``[n]`` int64 of the flattened matrix, ``[n]`` float32: only their blocks are read."""
        kind = gguf.GGMLQuantizationType[self.kind]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = places // self.shape[1], places % self.shape[1]
        blocks = self.blocks.view(len(self.blocks), -1, size)[rows, columns // values]
        found = gguf.quants.dequantize(blocks.numpy(), kind)
        return torch.from_numpy(found)[torch.arange(len(places)), columns % values]

    @property
    def data(self) -> Tensor:
        """The same without a history; to replace it is refused, as ``Module.to`` would with another dtype or device."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if isinstance(other, BlockTensor) and other.blocks is self.blocks and other.dtype == self.dtype:
            return  # to move or cast a module to where it is assigns what was there
        if (other.dtype, other.device.type) == (self.dtype, "cpu"):
            raise _unwritable(self, "an assignment")
        raise UsageError(
            f"{_named(self)} stays {self.dtype} on the CPU, and {other.dtype} on {other.device} is put in its place; "
            f"load it with that dtype, or {unquantised(self.source)}"
        )

    def __setitem__(self, place: Any, value: Any) -> None:
        raise _unwritable(self, "an assignment")

    def untyped_storage(self) -> torch.UntypedStorage:
        """Refused: whoever saves a model or shares its memory reads numbers there, and torch ends the process.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{_named(self)} has no numbers to save or to share; copy the file, or load {unquantised(self.source)}"
        )

    _typed_storage = storage = untyped_storage

    def data_ptr(self) -> int:
        """Refused: whoever takes an address reads numbers there.

        Raises:
            RuntimeError: always, as for other tensors without memory of their own.
        """
        raise RuntimeError(f"a weight in {self.kind} blocks has no numbers in memory; read its blocks")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return BlockTensor, (self.blocks.clone(), self.kind, self.dtype, self.source)

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockTensor:
        copied = self.detach().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied  # type: ignore[return-value]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"BlockTensor({self.kind}, shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        own = args[0] if args else None
        if isinstance(own, BlockTensor) and (func.is_view or func in _OF_ROWS or func is _aten.embedding.default):
            # What stands for a view of a tensor that counts versions must count them too.
            with torch.inference_mode(False):
                return _viewed(func, own, args[1:], named)
        if isinstance(own, BlockTensor) and func in _NEW:  # it is asked for its dtype alone
            return func(torch.empty(0, dtype=own.dtype), *args[1:], **named)
        _refuse_writing(func, args, named)
        plain = tree_map_only(BlockTensor, lambda each: each.dequantized().to(each.dtype), (args, named))
        return func(*plain[0], **plain[1])


def kinds_of(model: Any) -> dict[str, str]:
    """The kinds of a model's weights that are blocks, by the weights' names."""
    return {name: weight.kind for name, weight in model.named_parameters() if isinstance(weight, BlockTensor)}


def source_of(model: Any) -> str | None:
    """What a model whose weights are blocks was stored as; None where no weight is."""
    return next((weight.source for weight in model.parameters() if isinstance(weight, BlockTensor)), None)


def called(source: str) -> str:
    """What a user knows it as, with its article."""
    return _CALLED.get(source, f"a {source} checkpoint")


def unquantised(source: str) -> str:
    """What to load where numbers are needed."""
    return "the model's folder" if source == "gguf" else "the model that it was made of"


def _named(weight: BlockTensor) -> str:
    return f"a weight in {weight.kind} blocks of {called(weight.source)}"


def _viewed(func: Any, own: BlockTensor, args: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """A view or rows of a matrix: the same blocks where nothing else is asked for, else numbers."""
    if func in _SAME:
        return BlockTensor(own.blocks, own.kind, own.dtype, own.source)
    if func is _aten.embedding.default:
        return _rows(own, args[0])
    if func in _OF_ROWS and (found := _taken(func, own, args, named)) is not None:
        return _rows(own, found)
    found = func(own.dequantized().to(own.dtype), *args, **named)
    return cast(Tensor, found)


def _taken(func: Callable[..., Tensor], own: BlockTensor, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Which rows an operation takes, by asking it of the rows' numbers; None where it takes something else."""
    if func is _aten.index.Tensor:
        (index, *others), masks = args[0], (torch.bool, torch.uint8)
        if others or index is None or (index.dtype in masks and index.ndim > 1):
            return None
    elif (args[0] if args else named.get("dim", 0)) not in (0, -2):
        return None
    dim = () if func is _aten.index.Tensor or not args else (0,)
    return func(torch.arange(own.shape[0]), *dim, *args[len(dim) :], **named)


def _rows(own: BlockTensor, rows: Tensor) -> Tensor:
    """Rows by their numbers, ``[..., columns]`` of the dtype."""
    return own.dequantized(rows.reshape(-1)).to(own.dtype).view(*rows.shape, own.shape[1])


def _refuse_writing(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    arguments = func._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | dict(named)
    for argument in arguments:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and isinstance(given.get(argument.name), BlockTensor):
            raise _unwritable(given[argument.name], func._schema.name.removeprefix("aten::"))


def _unwritable(weight: BlockTensor, by: str) -> UsageError:
    return UsageError(
        f"{_named(weight)} cannot be changed in place by {by}; load {unquantised(weight.source)}, whose weights are "
        "numbers"
    )
