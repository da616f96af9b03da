"""How much memory objects hold in tensors: weights, and every copy of them that some closure or cache keeps."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from specstream.models.architecture.blocks import BlockTensor


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
        storage = (tensor.blocks if isinstance(tensor, BlockTensor) else tensor).untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):
        return id(tensor), tensor.numel() * tensor.element_size()


def _parts(value: Any) -> Iterable[Any]:
    """What an object refers to, as far as tensors of its own may be there."""
    if isinstance(value, type | ModuleType):
        return ()
    if isinstance(value, FunctionType):  # not its module's globals
        return value.__closure__, value.__defaults__
    return gc.get_referents(value)
