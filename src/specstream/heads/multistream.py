"""Multi-stream attention over whole sequences: every position's streams at once, for training.

Bhendawade et al., "Speculative Streaming" (arXiv 2402.11131), section 3.1.1: above the layer where streams start,

    M_t  = MHA(M_t;  keys and values of M_1 .. M_t)
    S_tj = MHA(S_tj; keys and values of M_1 .. M_t and of S_t1 .. S_tj)

The main stream is the model's own, run by the model's own forward, which leaves its keys and values here. The streams
then run through the same layers with an attention of their own: the scores of both kinds of keys share one softmax.
A decoding round computes the same for the one node whose streams it needs (``HiddenStates.branch``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specstream.errors import UnsupportedModelError, UsageError, count_of, must_be
from specstream.models.architecture import compat
from specstream.models.architecture.compat import Cache
from specstream.models.architecture.families import Family
from specstream.models.architecture.hidden_states import States, decoder_layers, tapped
from specstream.models.architecture.partial_forward import Swaps, run_upper, swapped
from specstream.models.target.layout import Layout, masks

MASKED_AT_ONCE = 64
"""Positions whose streams run in one pass where a mask says what they see."""

_ATTENTION = "specstream_streams"  # the name of our attention in transformers' registry


@dataclass(frozen=True)
class MainStream:
    """What the streams need of the model's own pass over ``[rows, length]`` tokens.

    Attributes:
        states: what went into the layer where streams start, ``[rows, length, hidden]``.
        final: what went into the language-model head, of the same shape.
        keys: of that layer and those above, by index, ``[rows, kv_heads, length, dim]``; turned by their positions.
        values: likewise.
    """

    states: Tensor
    final: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]


def read_main(model: Any, tokens: Tensor, first: int, depth: int) -> MainStream:
    """The model's own pass. Gradients flow where its weights, or adapters in it, ask for them.

    Args:
        model: a transformers causal language model.
        tokens: ``[rows, length]`` int64, padded behind if at all.
        first: the layer where streams start.
        depth: how many layers there are.
    """
    states: States = {first: None}
    kept = _Keeping(first)
    with tapped(model, decoder_layers(model), states, fused=False):
        final = model.base_model(
            input_ids=tokens, use_cache=True, **compat.with_cache(model.base_model, kept)
        ).last_hidden_state
    started = states[first]
    if started is None or sorted(kept.keys) != list(range(first, depth)):
        raise UnsupportedModelError(f"{model.config.model_type} cannot carry streams: its layers cannot be watched")
    return MainStream(started, final, kept.keys, kept.values)


@dataclass(frozen=True)
class _Streaming:
    """What the attention of a running pass sees.

    Attributes:
        main: the keys and values of the model's own pass.
        positions: of the main states whose streams these are, ``[rows, count]``.
        gamma: streams of each.
        windows: of each layer, 0 for full attention.
        capped: whether the model's own attention caps its scores where its configuration says so.
    """

    main: MainStream
    positions: Tensor
    gamma: int
    windows: Sequence[int]
    capped: bool

    def visible(self, layer: int, length: int) -> Tensor:
        """Which keys of the main stream each stream sees: ``[rows, count, gamma or 1, length]``."""
        keys = torch.arange(length, device=self.positions.device)
        at = self.positions[:, :, None, None]
        visible = keys <= at
        if window := self.windows[layer]:
            ahead = torch.arange(1, self.gamma + 1, device=keys.device)
            visible = visible & (at + ahead[:, None] - keys < window)
        return visible


_STREAMING: ContextVar[_Streaming | None] = ContextVar("specstream_streaming", default=None)


def run_streams(
    model: Any,
    family: Family,
    layers: Sequence[nn.Module],
    main: MainStream,
    hidden: Tensor,
    positions: Tensor,
    swaps: Swaps,
) -> Tensor:
    """Final, normed states of streams.

    Args:
        model: a transformers causal language model.
        family: it, described.
        layers: its decoder layers.
        main: its own pass.
        hidden: what the streams start with, ``[rows, count, gamma, hidden]``.
        positions: of the main states they start from, ``[rows, count]`` int64; stream j stands j behind.
        swaps: forwards that modules of the upper layers run instead of their own.

    Returns:
        ``[rows, count, gamma, hidden]``.
    """
    run = _by_attention if _exchangeable(model) else _by_mask
    with swapped(swaps):
        return run(model, family, layers, main, hidden, positions)


def _by_attention(
    model: Any, family: Family, layers: Sequence[nn.Module], main: MainStream, hidden: Tensor, positions: Tensor
) -> Tensor:
    """With an attention of ours: no score is computed that no stream may use."""
    rows, count, gamma, _ = hidden.shape
    arguments: dict[str, Any] = {"attention_mask": None, "use_cache": False}
    arguments |= _where(family, _standing(positions, gamma))
    capped = compat.attention_of(model) == "eager"
    streaming = _Streaming(main, positions, gamma, family.layer_windows, capped)
    with _attending(model, streaming):
        final = run_upper(model, layers, min(main.keys), hidden.flatten(1, 2), **arguments)
    return final.view(rows, count, gamma, -1)


def _by_mask(
    model: Any, family: Family, layers: Sequence[nn.Module], main: MainStream, hidden: Tensor, positions: Tensor
) -> Tensor:
    """With the model's own attention, as passes of a target run: the streams' keys stand behind the main stream's.

    A mask says which a stream sees, so each is scored against every stream of its pass: a pass is of few.
    """
    _, count, gamma, _ = hidden.shape
    parts = []
    for start in range(0, count, MASKED_AT_ONCE):
        at, states = positions[:, start : start + MASKED_AT_ONCE], hidden[:, start : start + MASKED_AT_ONCE]
        layout = _masked_layout(at, gamma, main.states.shape[1])
        arguments = {
            "attention_mask": masks(layout, family.windows, hidden.dtype),
            family.cache_argument: _Beside(main),
            "use_cache": True,
            **_where(family, layout.positions),
        }
        with family.key_positions(layout.key_positions):
            final = run_upper(model, layers, min(main.keys), states.flatten(1, 2), **arguments)
        parts.append(final.view_as(states))
    return torch.cat(parts, 1)


def _masked_layout(positions: Tensor, gamma: int, length: int) -> Layout:
    """Of the streams of some positions ``[rows, count]`` behind ``length`` keys of the main stream."""
    standing = _standing(positions, gamma)
    stream = torch.arange(standing.shape[1], device=positions.device)
    earlier = (stream[:, None] // gamma == stream // gamma) & (stream <= stream[:, None])
    keys = torch.arange(length, device=positions.device)
    below = keys <= positions.repeat_interleave(gamma, 1)[..., None]
    visible = torch.cat([below, earlier.expand(len(positions), -1, -1)], -1)
    return Layout(standing, torch.cat([keys.expand(len(positions), -1), standing], 1), visible, None)


def _standing(positions: Tensor, gamma: int) -> Tensor:
    """Where the streams of positions ``[rows, count]`` stand: ``[rows, count * gamma]``."""
    return (positions[:, :, None] + torch.arange(1, gamma + 1, device=positions.device)).flatten(1)


def _where(family: Family, standing: Tensor) -> dict[str, Tensor]:
    """The argument that says it, where the model has one."""
    if not family.takes_positions:
        return {}
    limit = family.context_length
    return {"position_ids": standing if limit is None else standing.clamp(max=limit - 1)}


def _exchangeable(model: Any) -> bool:
    """Whether another attention can be put in: it comes from transformers' registry and adds nothing to the scores."""
    sinks = any("sink" in name for name, _ in model.named_parameters())
    adds = sinks or compat.alibi_of(model) is not None
    return not adds and compat.exchanges_attention(model) and bool(compat.attention_configs(model))


@contextmanager
def _attending(model: Any, streaming: _Streaming) -> Iterator[None]:
    """Inside, the model's layers attend as streams do."""
    compat.register_attention(_ATTENTION, _attend)
    token = _STREAMING.set(streaming)
    try:
        with compat.attending(compat.attention_configs(model), _ATTENTION):
            yield
    finally:
        _STREAMING.reset(token)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: ``[rows, heads, nodes, dim]`` to ``[rows, nodes, heads, dim]``."""
    streaming = _STREAMING.get()
    assert streaming is not None
    keys, values = streaming.main.keys[module.layer_idx], streaming.main.values[module.layer_idx]
    cap = rest.get("softcap") if streaming.capped else None
    visible = streaming.visible(module.layer_idx, keys.shape[2])
    seen = attend_streams(
        query, (keys, values), (key, value), visible, gamma=streaming.gamma, scale=scaling, cap=cap or None
    )
    return seen.transpose(1, 2), None


def attend_streams(
    query: Tensor,
    main: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    visible: Tensor,
    *,
    gamma: int,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Attention of streams: to the main stream's keys that they see, and to those of the streams before them.

    Grouped heads share the keys of their group; both kinds of keys share one softmax, in float32.

    Args:
        query: of the streams, ``[rows, heads, count * gamma, dim]``.
        main: keys and values of the main stream, ``[rows, kv_heads, length, dim]``.
        own: those of the streams, ``[rows, kv_heads, count * gamma, dim]``.
        visible: which main keys each stream sees: ``[rows, count, gamma or 1, length]`` bool.
        gamma: streams of a position.
        scale: of the scores; None is one over the root of ``dim``.
        cap: scores stay below it, by a tanh; None leaves them.

    Returns:
        As ``query``.
    """
    (keys, values), (key, value) = main, own
    rows, heads, nodes, dim = query.shape
    groups, length = key.shape[1], keys.shape[2]
    shape = (rows, groups, heads // groups, nodes // gamma, gamma)
    visible = visible[:, None, None]
    earlier = torch.ones(gamma, gamma, dtype=torch.bool, device=query.device).tril()

    own_keys, own_values = (each.reshape(rows, groups, 1, nodes // gamma, gamma, dim) for each in (key, value))
    to_main = (query.reshape(rows, groups, -1, dim) @ keys.transpose(-1, -2)).view(*shape, length)
    to_own = query.reshape(*shape, dim) @ own_keys.transpose(-1, -2)
    scores = torch.cat([to_main, to_own], -1) * (dim**-0.5 if scale is None else scale)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    sees = torch.cat([visible.expand(rows, 1, 1, -1, gamma, -1), earlier.expand(rows, 1, 1, shape[3], -1, -1)], -1)
    weights = scores.masked_fill(~sees, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32)
    weights = weights.to(query.dtype)
    seen = (weights[..., :length].reshape(rows, groups, -1, length) @ values).view(*shape, dim)
    seen = seen + weights[..., length:] @ own_values
    return seen.reshape(rows, heads, nodes, dim)


class MultiStreamAttention(nn.Module):
    """One layer's attention over a main stream and its gamma streams, as of section 3.1.1: no positions, no cache.

    In a model the streams run through its own layers, whose projections and positions are used (``run_streams``); the
    attention is the same function.

    Args:
        hidden_size: of the states.
        num_heads: a divisor of it.
        gamma: streams of a position.

    Raises:
        UsageError: a value out of range.
    """

    def __init__(self, hidden_size: int, num_heads: int, gamma: int) -> None:
        super().__init__()
        hidden_size, self.num_heads = count_of("hidden_size", hidden_size), count_of("num_heads", num_heads)
        self.gamma = count_of("gamma", gamma)
        must_be(
            hidden_size % self.num_heads == 0, "num_heads", num_heads, f"a divisor of {hidden_size}, the hidden size"
        )
        projections = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = projections

    def forward(self, main: Tensor, streams: Tensor) -> tuple[Tensor, Tensor]:
        """``[rows, length, hidden]`` and ``[rows, length, gamma, hidden]``, to the same shapes.

        The main stream at t sees positions up to t; stream j of t sees those too, and the streams 1 to j of t.
        """
        weight = self.q_proj.weight
        rows, length = main.shape[:2] if getattr(main, "ndim", 0) == 3 else (0, 0)
        hidden = weight.shape[1]
        wanted = [(rows, length, hidden), (rows, length, self.gamma, hidden)]
        if not rows * length or [getattr(each, "shape", None) for each in (main, streams)] != wanted:
            raise UsageError(
                f"streams are {_form(streams)} and the main stream is {_form(main)}; give tensors "
                f"[rows, length, {self.gamma}, {hidden}] beside [rows, length, {hidden}], none of them empty"
            )
        if {str(main.device), str(streams.device)} != {str(weight.device)}:
            raise UsageError(
                f"streams are on {streams.device} and the main stream on {main.device}; move them to {weight.device}"
            )
        if {main.dtype, streams.dtype} != {weight.dtype} and not torch.is_autocast_enabled(weight.device.type):
            raise UsageError(
                f"streams are {streams.dtype} and the main stream is {main.dtype}; give {weight.dtype}, as the weights"
            )
        query, key, value = self._heads(main)
        own_query, *own = self._heads(streams.flatten(1, 2))
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        visible = torch.ones(length, length, dtype=torch.bool, device=main.device).tril()[None, :, None]
        drafted = attend_streams(own_query, (key, value), (own[0], own[1]), visible, gamma=self.gamma)
        return self._joined(seen), self._joined(drafted).view_as(streams)

    def _heads(self, states: Tensor) -> list[Tensor]:
        """Queries, keys and values: ``[rows, nodes, hidden]`` -> ``[rows, heads, nodes, dim]``."""
        projected = (each(states) for each in (self.q_proj, self.k_proj, self.v_proj))
        return [each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in projected]

    def _joined(self, seen: Tensor) -> Tensor:
        states: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return states


def _form(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


class _Beside(Cache):
    """The keys and values of the main stream, and behind them those of the pass that runs; it keeps nothing."""

    def __init__(self, main: MainStream) -> None:
        super().__init__(layers=[])
        self._main = main

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._main.keys[layer_idx], self._main.values[layer_idx]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._main.states.shape[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._main.states.shape[1] + query_length, 0


class _Keeping(Cache):
    """Not a cache: it hands out what it gets, and keeps the keys and values of the upper layers."""

    def __init__(self, first: int) -> None:
        super().__init__(layers=[])
        self._first = first
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx >= self._first:
            self.keys[layer_idx], self.values[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0
