"""How much memory objects hold in tensors: weights, and every copy of them that some closure or cache keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn


def held_bytes(roots: Iterable[Any], without: nn.Module) -> int:
    """Bytes of all tensors that are reachable from some objects, each memory once.

    Args:
        roots: the objects.
        without: a model, whose own weights are not counted.
    """
    own = [*without.parameters(), *without.buffers()]
    seen, counted = {id(without)}, {_memory(tensor)[0] for tensor in own}
    found, waiting = 0, list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            place, size = _memory(each)
            found += size if place not in counted else 0
            counted.add(place)
        else:
            waiting.extend(_parts(each))
    return found


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where its memory is and how much; a packed weight does not say, and is told by itself."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):
        return id(tensor), tensor.numel() * tensor.element_size()


def _parts(value: Any) -> Iterator[Any]:
    """What an object refers to, as far as tensors may be there."""
    if isinstance(value, str | bytes | int | float | type | ModuleType) or value is None:
        return
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell))
        yield from value.__defaults__ or ()
    elif isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    else:
        yield from getattr(value, "__dict__", {}).values()
        yield from (getattr(value, name, None) for name in getattr(type(value), "__slots__", ()))


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True
