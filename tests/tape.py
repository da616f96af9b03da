"""CUDA graphs, played by the CPU: what a capture keeps and what it cannot, so that the logic is tested without a GPU.

As in a real graph, the operations are recorded with the very tensors they touched and with the numbers the host knew
then. A replay runs them again over the same memory; no Python of the model runs. An operation whose result the host
would have to look at ends the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.item.default,
    aten.where.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.is_nonzero.default,
}


class NoReads(TorchDispatchMode):
    """Inside, nothing may depend on a value that only the device knows."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        return func(*args, **(kwargs or {}))


class Tape(NoReads):
    """Its calls, each with the tensors that it made, which a replay fills again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = super().__torch_dispatch__(func, types, args, kwargs)
        if func._schema.is_mutable:
            self.calls.append((func, args, kwargs, []))
            return output
        before, made = {_memory(tensor) for tensor in _tensors((args, kwargs))}, list(_tensors(output))
        if any(_memory(tensor) not in before for tensor in made):  # else a view: it shows what its base holds
            self.calls.append((func, args, kwargs, made))
        return output

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(made, _tensors(again) if made else (), strict=True):
                old.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        return iter((values,))
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


class TapeCapture:
    """In the place of ``CudaCapture``; ``count`` captures so far, ``replays`` of them."""

    def __init__(self) -> None:
        self.count = self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        run()
        tape = Tape()
        with tape:
            output = run()
        self.count += 1

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return output, replay
