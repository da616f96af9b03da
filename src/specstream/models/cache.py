"""The KV cache of a batch whose rows advance each at their own pace.

A row's token at position p has its keys and values at slot p: no padding on either side. A pass writes the nodes of
each row's tree behind the row's committed tokens; committing gathers the accepted path into place and the rest is
overwritten by the next pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.models.architecture.compat import Cache

STEP = 512
"""The cache grows by this many slots. Attention kernels on the CPU split the keys into blocks of up to 512, so a
capacity that is a multiple of it keeps their order of summation, and with it the bits, while the cache grows."""

KEYS, VALUES = 0, 1
"""What a layer keeps of its tokens."""

PADDING = 0
"""The token that stands in the slots of a pass that no node needs; nothing ever sees it."""


def capacity_for(needed: int) -> int:
    """The capacity of a cache that holds ``needed`` slots."""
    return max(1, -(-needed // STEP)) * STEP


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of a token's keys and values in all layers.

    Args:
        config: of a transformers model.
        dtype: of its passes.
    """
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * head * dtype.itemsize)


def blank(like: Tensor, rows: int, capacity: int) -> Tensor:
    """A layer's keys or values ``[rows, heads, capacity, head_dim]`` before anything is written, like ``like``.

    Zeros, not empty memory: a masked slot still meets a weight of zero, and zero times NaN is NaN.
    """
    _, heads, _, head_dim = like.shape
    return like.new_zeros((rows, heads, capacity, head_dim))


class TreeCache(Cache):
    """Keys and values ``[rows, heads, capacity, head_dim]`` per layer, allocated when a layer first writes.

    Args:
        rows: sequences in the batch.

    Attributes:
        lengths: committed tokens of each row.
        capacity: slots of every row.
        reach: slots that the planned pass sees, a multiple of ``STEP``.
        addresses: what kernels keep of where the planned rows' tensors lie, each under a key of its own; forgotten when
            the tensors or the rows become others.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self.lengths = [0] * rows
        self.capacity = STEP
        self.reach = STEP
        self.addresses: dict[object, Any] = {}
        self._buffers: dict[tuple[int, int], Tensor] = {}  # by layer, and KEYS or VALUES
        self._rows = slice(0, rows)
        self._starts = self.lengths
        self._together, self._width, self._device = True, 0, torch.device("cpu")
        self._slots: tuple[Tensor, Tensor] | None = None  # where the planned pass writes, once somebody asked

    def plan(self, width: int, device: torch.device, row: int | None = None) -> None:
        """Say where the next pass writes: ``width`` slots behind each row's tokens, or behind one row's.

        A pass over one row reaches only as far as that row alone needs: its bits do not depend on its neighbours.
        """
        planned = slice(0, len(self.lengths)) if row is None else slice(row, row + 1)
        if planned != self._rows:
            self._rows = planned
            self.addresses.clear()
        self._starts = self.lengths[self._rows]
        needed = max(self._starts) + width
        self.reserve(needed)
        self.reach = self.capacity if row is None else capacity_for(needed)
        self._together = len(set(self._starts)) == 1  # all write to the same slots
        self._width, self._device, self._slots = width, device, None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write ``[rows, heads, width, head_dim]`` where ``plan`` said; those rows come back, up to ``reach``."""
        keys, values = self.layer(layer_idx, key_states, value_states)
        if self._together:
            written = slice(self._starts[0], self._starts[0] + key_states.shape[2])
            keys[:, :, written] = key_states
            values[:, :, written] = value_states
        else:
            rows, slots = self._written()
            keys[rows, :, slots] = key_states.transpose(1, 2)
            values[rows, :, slots] = value_states.transpose(1, 2)
        return keys[:, :, : self.reach], values[:, :, : self.reach]

    def layer(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The planned rows' keys and values ``[rows, heads, capacity, head_dim]``.

        A layer that has none yet gets them, of the dtype, heads and dimension of ``keys`` and ``values``
        ``[rows, heads, any, head_dim]``.
        """
        if (layer_idx, KEYS) not in self._buffers:
            self.addresses.clear()
            self._buffers[layer_idx, KEYS] = self._buffer((layer_idx, KEYS), keys)
            self._buffers[layer_idx, VALUES] = self._buffer((layer_idx, VALUES), values)
        return self._buffers[layer_idx, KEYS][self._rows], self._buffers[layer_idx, VALUES][self._rows]

    def _written(self) -> tuple[Tensor, Tensor]:
        """The rows ``[rows, 1]`` and slots ``[rows, width]`` of the planned pass; our own kernels never ask."""
        if self._slots is None:
            starts = torch.tensor(self._starts, device=self._device)
            rows = torch.arange(len(starts), device=self._device)
            self._slots = (rows[:, None], starts[:, None] + torch.arange(self._width, device=self._device))
        return self._slots

    def erase(self, layers: Sequence[int], width: int) -> None:
        """Forget what the planned pass wrote into these layers: zeros, as if there had been none."""
        for buffer in self._of(layers):
            if self._together:
                buffer[self._rows, :, self._starts[0] : self._starts[0] + width] = 0
            else:
                rows, slots = self._written()
                buffer[self._rows][rows, :, slots] = 0

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep each row's path (node indices in increasing order) right behind its committed tokens."""
        self.gather(paths, None)
        self.lengths = [length + len(path) for length, path in zip(self.lengths, paths, strict=True)]

    def gather(self, nodes: Sequence[Sequence[int]], layers: Iterable[int] | None) -> None:
        """Move each row's named nodes (in increasing order) right behind its committed tokens, in these layers.

        None is all layers.
        """
        moves = [  # row, from slot, to slot
            (row, self.lengths[row] + node, self.lengths[row] + at)
            for row, own in enumerate(nodes)
            for at, node in enumerate(own)
            if node != at
        ]
        if moves:
            buffers = list(self._buffers.values() if layers is None else self._of(layers))
            rows, sources, targets = upload(moves, buffers[0].device).unbind(1)
            for buffer in buffers:
                buffer[rows, :, targets] = buffer[rows, :, sources]  # all are read before the first is written

    def parts(self, row: int, start: int, end: int) -> dict[tuple[int, int], Tensor]:
        """A row's keys and values ``[heads, end - start, head_dim]`` from one slot up to another: views."""
        return {key: buffer[row, :, start:end] for key, buffer in self._buffers.items()}

    def fill(self, row: int, start: int, parts: Mapping[Any, Tensor]) -> None:
        """Write such parts, of the same model, into a row's slots from ``start`` on."""
        for key, part in parts.items():
            if key not in self._buffers:
                self.addresses.clear()
                self._buffers[key] = self._buffer(key, part[None])
            self._buffers[key][row, :, start : start + part.shape[1]] = part

    def fork(self, rows: int, length: int, capacity: int) -> TreeCache:
        """A new cache of ``rows`` copies of the first row, its slots repeated until there are ``length``."""
        sources = torch.arange(length) % self.lengths[0]
        return self._filled([length] * rows, capacity, lambda part: part[:1, :, sources.to(part.device)])

    def copy(self) -> TreeCache:
        """What is committed, in a cache of its own."""
        held = max(self.lengths, default=0)
        return self._filled(self.lengths, self.capacity, lambda part: part[: len(self.lengths), :, :held])

    def _filled(self, lengths: Sequence[int], capacity: int, taken: Callable[[Tensor], Tensor]) -> TreeCache:
        """A new cache whose first slots hold, layer by layer, what is taken of this one's."""
        made = self._blank(len(lengths), capacity)
        made.lengths = list(lengths)
        for key, buffer in self._buffers.items():
            part = taken(buffer)
            made._buffers[key] = made._buffer(key, buffer)
            made._buffers[key][:, :, : part.shape[2]] = part
        return made

    def rollback(self, lengths: Sequence[int]) -> None:
        """Forget every row's tokens behind the first ``lengths[row]``."""
        for row, length in enumerate(lengths):
            if not 0 <= length <= self.lengths[row]:
                raise ValueError(f"cannot roll row {row} back to {length}: it holds {self.lengths[row]} tokens")
        self.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order.

        Rows that stay in order are moved up within the buffers, and the others' room stays until it is more than half.
        """
        self.addresses.clear()
        in_order = all(row < later for row, later in pairwise(rows))
        for key, buffer in self._buffers.items():
            if not in_order or buffer.untyped_storage().nbytes() > 2 * len(rows) * buffer[0].nbytes:
                self._buffers[key] = buffer[list(rows)]
                continue
            for place, row in enumerate(rows):
                if place != row:
                    buffer[place] = buffer[row]
            self._buffers[key] = buffer[: len(rows)]
        self.lengths = [self.lengths[row] for row in rows]

    def join(self, other: TreeCache) -> None:
        """Take in the rows of another cache of the same model, behind these."""
        self.reserve(other.capacity)
        other.reserve(self.capacity)
        self.addresses.clear()
        for key in self._buffers.keys() | other._buffers.keys():
            for one, another in ((self, other), (other, self)):
                if key not in one._buffers:  # nothing was read there yet
                    one._buffers[key] = one._buffer(key, another._buffers[key])
            self._buffers[key] = torch.cat([self._buffers[key], other._buffers.pop(key)])
        self.lengths = [*self.lengths, *other.lengths]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self._starts)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.reach, 0

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def reserve(self, needed: int) -> None:
        """Make room for ``needed`` slots in every row."""
        if needed <= self.capacity:
            return
        self.capacity = capacity_for(needed)
        self.addresses.clear()
        for key, buffer in self._buffers.items():
            self._buffers[key] = self._buffer(key, buffer)
            self._buffers[key][:, :, : buffer.shape[2]] = buffer

    def _blank(self, rows: int, capacity: int) -> TreeCache:
        """An empty cache of the same kind."""
        blank = TreeCache(rows)
        blank.capacity = capacity
        return blank

    def _buffer(self, key: tuple[int, int], like: Tensor) -> Tensor:
        """One for all rows and slots, in which nothing is written yet."""
        return blank(like, len(self.lengths), self.capacity)

    def _of(self, layers: Iterable[int]) -> list[Tensor]:
        """The keys and the values of these layers."""
        return [self._buffers[layer_idx, part] for layer_idx in layers for part in (KEYS, VALUES)]
