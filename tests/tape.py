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
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, output))
        return output

    def replay(self) -> None:
        for func, args, kwargs, output in self.calls:
            before = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
            fresh = [tensor for tensor in _tensors(output) if tensor.untyped_storage().data_ptr() not in before]
            if not fresh and not func._schema.is_mutable:
                continue  # a view: it shows what its base holds
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(_tensors(output), _tensors(again), strict=True):
                    old.copy_(new)


def _tensors(values: Any) -> Iterator[Tensor]:
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
