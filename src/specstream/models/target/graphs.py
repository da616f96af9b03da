"""Passes of fixed shape: the runtimes ``graphs`` (CUDA) and ``static`` (anywhere, for tests and for debugging).

A pass over ``width`` tokens in each of ``rows`` rows reads its integers from one block on the device and the whole of a
cache of fixed capacity, whose mask is computed on the device too. Nothing of it depends on the host, so on a GPU it is
captured once per shape and then replayed: one launch in place of hundreds. ``static`` runs the same code uncaptured.
A batch whose rows end goes on with rows that nobody reads until half are left, so that few shapes are captured.

Graphs are bound to the buffers of their cache, so these are lent: an arena of buffers, with the graphs that were
captured over it, goes from one batch to the next. A cache that outgrows its arena moves to a larger one.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specstream.core.device.deferred import place, upload
from specstream.core.tree import TokenTree
from specstream.errors import DeviceMemoryError
from specstream.models.architecture.hidden_states import States
from specstream.models.cache import PADDING, STEP, TreeCache, blank, capacity_for
from specstream.models.invariance.tolerance import relative_errors, tolerance
from specstream.models.invariance.widths import WIDTHS
from specstream.models.target.layout import Layout, block_rows, lay_out, token_columns

WARM_UPS = 2
"""Passes before a capture: libraries allocate, and choose their kernels, in the first ones."""

SPARE_ARENAS = 2
"""Arenas, and their graphs, that wait for the next batch: enough for a cache that grows once."""

Run = Callable[[], Tensor]
Capture = Callable[[Run], tuple[Tensor, Callable[[], None]]]
"""``run -> (output, replay)``: after ``replay()``, ``output`` is what ``run()`` would have returned."""


@dataclass(frozen=True)
class Captured:
    """One graph: where its integers go, where its logits and the states it keeps come out, and how to run it."""

    block: Tensor
    output: Tensor
    replay: Callable[[], None]
    states: States


@dataclass(eq=False)
class Arena:
    """Buffers ``[rows, heads, capacity, head_dim]`` as a ``TreeCache`` has them; graphs by rows, width and taps."""

    rows: int
    capacity: int
    buffers: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    graphs: dict[tuple[int, int, frozenset[int]], Captured] = field(default_factory=dict)

    def buffer(self, key: tuple[int, int], like: Tensor) -> Tensor:
        """One of them, allocated when it is first asked for, of the kind of ``like``."""
        if key not in self.buffers:
            self.buffers[key] = blank(like, self.rows, self.capacity)
        return self.buffers[key]


class Arenas:
    """Those of one model that nobody uses, the longest unused first."""

    def __init__(self) -> None:
        self.spare: list[Arena] = []

    @torch.inference_mode()
    def take(self, rows: int, capacity: int) -> Arena:
        """One of this very capacity with room for the rows, all zeros."""
        fitting = [arena for arena in self.spare if arena.capacity == capacity and arena.rows >= rows]
        if not fitting:
            return Arena(rows, capacity)
        arena = min(fitting, key=lambda arena: arena.rows)
        self.spare.remove(arena)
        for buffer in arena.buffers.values():
            buffer.zero_()  # a masked slot meets a weight of zero, and zero times a NaN of another batch is NaN
        return arena

    def give(self, arena: Arena) -> None:
        self.spare.append(arena)
        del self.spare[:-SPARE_ARENAS]


@dataclass
class _Lease:
    arenas: Arenas
    arena: Arena

    def end(self) -> None:
        self.arenas.give(self.arena)


class StaticCache(TreeCache):
    """A ``TreeCache`` in the buffers of an arena, which goes back when the cache is forgotten.

    Args:
        arenas: where it comes from.
        rows: sequences in the batch.
        capacity: slots to begin with, a multiple of ``STEP``.
    """

    def __init__(self, arenas: Arenas, rows: int, capacity: int = STEP) -> None:
        super().__init__(rows)
        self.capacity = self.reach = capacity
        self._most = rows  # that a pass has, until others join
        self._lease = _Lease(arenas, arenas.take(rows, capacity))
        weakref.finalize(self, self._lease.end).atexit = False
        self._adopt(self.arena)

    @property
    def arena(self) -> Arena:
        return self._lease.arena

    @property
    def rows(self) -> int:
        """Of a pass: as many as the batch began with, or the next power of two; those behind the batch's are unread.

        It depends on no arena that happens to be spare, because a self-test of one batch speaks for another.
        """
        return self._room(len(self.lengths))

    def _room(self, rows: int) -> int:
        """The rows of a pass over so many."""
        return min(self._most, 1 << max(0, rows - 1).bit_length())

    def bind(self, slots: Tensor) -> None:
        """The pass that follows writes to ``slots`` ``[rows, width]`` and reads everything."""
        self._rows, self._starts, self.reach = slice(0, len(slots)), self.lengths, self.capacity
        self._together = False
        self._slots = (torch.arange(len(slots), device=slots.device)[:, None], slots)

    def reserve(self, needed: int) -> None:
        if needed > self.capacity:
            self._move(self.rows, capacity_for(needed))

    def keep(self, rows: Sequence[int]) -> None:
        for buffer in self._buffers.values():
            buffer[: len(rows)] = buffer.index_select(0, upload(rows, buffer.device))
        self.lengths = [self.lengths[row] for row in rows]
        self._adopt(self.arena)

    def join(self, other: TreeCache) -> None:
        """Into the rows behind; an arena that is too small is changed for one with room for more that come."""
        self.reserve(other.capacity)
        other.reserve(self.capacity)
        before, rows = len(self.lengths), len(self.lengths) + len(other.lengths)
        if rows > self._most:
            self._most = 1 << (rows - 1).bit_length()
        if self._room(rows) > self.arena.rows:
            self._move(self._room(rows), self.capacity)
        self.lengths = [*self.lengths, *other.lengths]
        self._adopt(self.arena)
        for buffer in self._buffers.values():
            buffer[before:] = 0  # where a row that left had numbers that were none
        for key, held in other._buffers.items():
            self.arena.buffer(key, held)[before:rows] = held[: rows - before]
        self._adopt(self.arena)

    def _move(self, rows: int, capacity: int) -> None:
        """Into an arena of this size."""
        held, small = len(self.lengths), self.arena
        large = self._lease.arenas.take(rows, capacity)
        for key, own in self._buffers.items():
            large.buffer(key, own)[:held, :, : self.capacity] = own[:held]
        self._lease.arena, self.capacity = large, large.capacity
        self._adopt(large)
        self._lease.arenas.give(small)

    def _adopt(self, arena: Arena) -> None:
        self.addresses.clear()
        self._buffers = {key: buffer[: self.rows] for key, buffer in arena.buffers.items()}

    def _blank(self, rows: int, capacity: int) -> StaticCache:
        return StaticCache(self._lease.arenas, rows, capacity)

    def _buffer(self, key: tuple[int, int], like: Tensor) -> Tensor:
        return self.arena.buffer(key, like)[: self.rows]


class StaticPasses:
    """Runs passes of one model.

    Args:
        forward: ``(cache, tokens [rows, width], layout, states) -> logits [rows, width, vocab]``; it fills ``states``.
        device: where.
        capture: makes a graph of a pass; None runs every pass as it is.
        give_up: told when the model cannot be captured; passes then run as they are.
    """

    def __init__(
        self,
        forward: Callable[[TreeCache, Tensor, Layout, States], Tensor],
        device: torch.device,
        capture: Capture | None,
        give_up: Callable[[], None],
    ) -> None:
        self._forward, self._device, self._give_up = forward, device, give_up
        self.capture = capture
        self._arenas = Arenas()
        self._follows = False  # whether a graph of this model has been seen to follow its inputs

    def cache(self, rows: int, needed: int) -> StaticCache:
        """A cache for a batch whose longest row has ``needed`` tokens."""
        return StaticCache(self._arenas, rows, capacity_for(needed))

    def score(self, cache: StaticCache, trees: Sequence[TokenTree], width: int, states: States) -> Tensor:
        """Logits ``[rows, width, vocab]`` of one pass, which fills ``states``; nothing later overwrites either."""
        cache.reserve(max(cache.lengths) + width)
        live = len(trees)
        unread = [TokenTree.chain([PADDING])] * (cache.rows - live)
        lines = block_rows(trees, width, cache.lengths) + block_rows(unread, width, [0] * len(unread))
        block = upload(lines, self._device)
        place(trees, token_columns(block, width)[:live])
        graph = self._graph(cache, block, width, states)
        if graph is None:
            logits = self._pass(cache, block, width, states)
            states.update({layer: None if kept is None else kept[:live] for layer, kept in states.items()})
            return logits[:live]
        graph.block.copy_(block)
        graph.replay()
        states.update({layer: None if kept is None else kept[:live].clone() for layer, kept in graph.states.items()})
        return graph.output[:live].clone()  # the next replay, of any graph, may write there

    def _pass(self, cache: StaticCache, block: Tensor, width: int, states: States) -> Tensor:
        slots, layout = lay_out(block, width, cache.capacity)
        cache.bind(slots)
        return self._forward(cache, token_columns(block, width), layout, states)

    def _graph(self, cache: StaticCache, block: Tensor, width: int, states: States) -> Captured | None:
        if self.capture is None:
            return None
        key = (cache.rows, width, frozenset(states))
        if key in cache.arena.graphs:
            return cache.arena.graphs[key]
        try:
            cache.arena.graphs[key] = self._record(self.capture, cache, block.clone(), width, states)
            return cache.arena.graphs[key]
        except torch.OutOfMemoryError:
            pass  # told below, where nobody holds on to what the pass had got
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"no CUDA graphs: a pass cannot be captured ({reason}); it runs eagerly", stacklevel=2)
            self.capture = None
            self._give_up()
            return None
        self._arenas.spare.clear()
        raise DeviceMemoryError(
            f"{self._device} has no room to capture a pass of {cache.rows} x {width} tokens over "
            f"{cache.capacity} slots{_free(self._device)}; give fewer prompts at once, fewer max_new_tokens or "
            "runtime='eager'"
        )

    def _record(self, capture: Capture, cache: StaticCache, block: Tensor, width: int, wanted: States) -> Captured:
        states: States = dict.fromkeys(wanted)
        graph = Captured(block, *capture(lambda: self._pass(cache, block, width, states)), states)
        longest = max(cache.lengths) + width + 1
        if not self._follows and longest <= cache.capacity:
            self._check(graph, cache, width)
            self._follows = True
        return graph

    def _check(self, graph: Captured, cache: StaticCache, width: int) -> None:
        """A number of the host that a family computes with would stay what it was at the capture: one token on, see.

        Raises:
            RuntimeError: the graph does not follow.
        """
        ahead = graph.block.clone()
        ahead[:, 0] += 1
        expected = self._pass(cache, ahead, width, {})
        graph.block.copy_(ahead)
        graph.replay()
        off = relative_errors(graph.output, expected).median()
        if bool(torch.isfinite(expected).all()) and not float(off) <= tolerance(expected.dtype):
            raise RuntimeError("its graph does not follow the length of the sequence")


def rounded_width(nodes: int) -> int:
    """The width to run so many nodes at: of few widths, each captured once, one that has room for them."""
    return next((width for width in WIDTHS if width >= nodes), -(-nodes // WIDTHS[-1]) * WIDTHS[-1])


def _free(device: torch.device) -> str:
    """How much of a device's memory is left, for a message, when what nobody uses has been given back."""
    if device.type != "cuda":
        return ""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return f" ({free / 1e9:.1f} of {total / 1e9:.1f} GB are free)"


class CudaCapture:
    """Captures passes as CUDA graphs that share one pool of memory: they run one after another.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._pool: Any = None
        self._first: Any = None  # PyTorch refuses a pool whose graphs are all gone, so one stays

    def __call__(self, run: Run) -> tuple[Tensor, Callable[[], None]]:
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            if self._first is None:
                self._pool = torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    run()
            current.wait_stream(self._stream)
            graph, failures = torch.cuda.CUDAGraph(), list[RuntimeError]()
            try:
                # A capture that fails leaves its own stream behind as the current one. Other threads (a server's, a
                # data loader's) may go on using the device meanwhile.
                with (
                    _uncollected(),
                    torch.cuda.stream(current),
                    torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
                ):
                    output = _noting(run, failures)
            except RuntimeError as error:  # to end a capture that failed fails too, and does not say why
                raise (failures.pop() if failures else error) from None
            self._first = self._first or graph
        return output, graph.replay


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, no cycles are collected: to free a graph while another is captured makes the capture fail."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def _noting(run: Run, failures: list[RuntimeError]) -> Tensor:
    try:
        return run()
    except RuntimeError as error:
        failures.append(error)
        raise
