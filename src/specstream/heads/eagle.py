"""An EAGLE-3 head that others trained: one decoder layer drafts token by token, from states of three of the target's.

After Li et al., "EAGLE-3" (arXiv 2503.01840). What goes into some of the target's layers (the taps) at a position is
made one state by ``fc``. The layer reads it beside the embedding of the token behind the position, sees all positions
before, and its output says the token after that. Drafting goes on with that output in place of the target's states.

Folders are read as speculators lays them out (``speculators_model_type: eagle3``, which vLLM serves), and as EAGLE-3's
authors do: ``fc``, ``midlayer`` or ``layers.0``, ``norm``, ``lm_head``, ``d2t`` (what to add to a drafted token's
number for its id in the target's vocabulary) and, where the head has one of its own, ``embed_tokens``. Such a folder
does not say which weights it was trained for: sizes are compared. A head of another model drafts badly, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from specstream.errors import HeadMismatchError, ModelNotFoundError, NumericalError, UnsupportedModelError
from specstream.files.atomic import why_unread
from specstream.heads.folder import TrainedHead, kind_of, located, read_settings
from specstream.heads.parallel import Multiply, in_bytes, multiply_of
from specstream.models.architecture.compat import rotations_of, text_config
from specstream.models.architecture.hidden_states import decoder_layers

KIND = "eagle3"

GAMMA = 5
"""Depth of drafts where the folder names none."""

_FILES = ("model.safetensors", "pytorch_model.bin")

_LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {
    "token_norm": "layers.0.input_layernorm",
    "state_norm": "layers.0.hidden_norm",
    "mlp_norm": "layers.0.post_attention_layernorm",
    "norm": "norm",
}
_OPTIONAL = {
    "query_norm": "layers.0.self_attn.q_norm",
    "key_norm": "layers.0.self_attn.k_norm",
    "taps_norm": "input_norm",
}


@dataclass(frozen=True, kw_only=True)
class EagleConfig:
    """What a head's ``config.json`` says of how it is run.

    Attributes:
        taps: the target's layers whose inputs are read, from 0.
        heads: of queries.
        gamma: the deepest draft.
        norm_before_residual: whether the layer's residual is the normed state.
        norm_output: whether drafting goes on with the normed output.
        eps: of its norms.
    """

    taps: tuple[int, ...]
    heads: int
    gamma: int = GAMMA
    norm_before_residual: bool = False
    norm_output: bool = False
    eps: float = 1e-6


class Memory:
    """Keys and values of one row's positions, the drafted ones behind the committed ones.

    Attributes:
        length: how many.
    """

    def __init__(self) -> None:
        self.length = 0
        self._held = torch.empty(0)  # ``[2, kv_heads, capacity, dim]``

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Append nodes, and let each see all before it.

        Args:
            query: ``[n, heads, dim]``.
            key: ``[n, kv_heads, dim]``.
            value: likewise.

        Returns:
            ``[n, heads * dim]``.
        """
        start, self.length = self.length, self.length + len(query)
        if not self._held.numel() or self._held.shape[2] < self.length:
            grown = key.new_empty((2, key.shape[1], max(64, 2 * self.length), key.shape[2]))
            if start:
                grown[:, :, :start] = self._held[:, :, :start]
            self._held = grown
        self._held[:, :, start : self.length] = torch.stack([key, value]).transpose(1, 2)
        keys, values = self._held[:, None, :, : self.length]
        mask = None
        if len(query) > 1:
            mask = torch.ones(len(query), self.length, dtype=torch.bool, device=query.device).tril(start)
        seen = functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
        )
        return seen[0].transpose(0, 1).flatten(1)


class EagleHead(TrainedHead):
    """The head, in the dtype that it is stored in; it computes in float32.

    Args:
        model: the base, a transformers causal language model in eval mode.
        config: how it is run.
        tensors: its weights, by the names of the folder, ``midlayer`` as ``layers.0``.
        rotary: transformers' module for the rotations of its layer.

    Raises:
        UnsupportedModelError: a base that cannot be a target; a head with parts that are not read.
        HeadMismatchError: its sizes are not those of the base.
        ModelNotFoundError: parts are missing.
    """

    vocabulary: Tensor
    combine: nn.Linear
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    head: nn.Linear
    token_norm: nn.RMSNorm
    state_norm: nn.RMSNorm
    mlp_norm: nn.RMSNorm
    norm: nn.RMSNorm

    def __init__(self, model: Any, config: EagleConfig, tensors: Mapping[str, Tensor], rotary: nn.Module) -> None:
        super().__init__(model)
        self.config, self.rotary, left = config, rotary, dict(tensors)
        linears = {"combine": "fc", "head": "lm_head"}
        linears |= {name: f"layers.0.{theirs}" for name, theirs in _LINEARS.items()}
        for name, theirs in linears.items():
            setattr(self, name, _linear(left, theirs))
        for name, theirs in (
            _NORMS | {own: each for own, each in _OPTIONAL.items() if f"{each}.weight" in left}
        ).items():
            weight = _taken(left, f"{theirs}.weight")
            norm = nn.RMSNorm(len(weight), config.eps)
            norm.weight = nn.Parameter(weight.float())
            setattr(self, name, norm)
        self.embeddings = nn.Parameter(left.pop("embed_tokens.weight")) if "embed_tokens.weight" in left else None
        self._fit(model, left.pop("d2t", None))
        left.pop("t2d", None)
        if left:
            raise UnsupportedModelError(f"the head has {next(iter(left))!r}, which is not read; give one of one layer")
        self.requires_grad_(False)
        self.to(model.device)
        self._multiply: Multiply | None = None

    def _fit(self, model: Any, offsets: Tensor | None) -> None:
        """Refuse a head of a base of other sizes."""
        width, layers, taps = int(text_config(model).hidden_size), len(decoder_layers(model)), self.config.taps
        if self.combine.in_features != len(taps) * width or max(taps) >= layers:
            raise HeadMismatchError(
                f"the head reads {self.combine.in_features} numbers of the layers {list(taps)} and the model has "
                f"{layers} layers of {width}; give the model that the head was trained for"
            )
        drafted = torch.arange(self.head.out_features)
        drafted = drafted if offsets is None else drafted + offsets.long()
        own = model.get_input_embeddings().weight
        if self.embeddings is None and self.combine.out_features != own.shape[1]:
            raise HeadMismatchError(
                f"the head has states of {self.combine.out_features} and no embeddings, and the model's are of "
                f"{own.shape[1]}; give the model that the head was trained for"
            )
        if int(drafted.max()) >= len(own) or int(drafted.min()) < 0:
            raise HeadMismatchError(
                f"the head drafts the token {int(drafted.max())} and the model has {len(own)}; give the model that "
                "the head was trained for"
            )
        self.register_buffer("vocabulary", drafted)

    @property
    def gamma(self) -> int:
        """The deepest draft."""
        return self.config.gamma

    def combined(self, states: Tensor) -> Tensor:
        """One state of those at the taps: ``[n, taps, hidden]`` -> ``[n, width]``, float32."""
        joined = states.float().flatten(1)
        if (norm := getattr(self, "taps_norm", None)) is not None:
            joined = norm(joined)
        return self._run(self.combine, joined)

    def step(self, hidden: Tensor, tokens: Tensor, positions: Tensor, memories: Sequence[tuple[Memory, int]]) -> Tensor:
        """The layer over nodes of several rows, one row behind the other.

        Args:
            hidden: of each node, ``combined`` or what ``fed_back`` makes of an output: ``[n, width]``.
            tokens: the token behind each, ``[n]`` int64.
            positions: ``[n]`` int64.
            memories: of each row, and how many of the nodes are its; they are appended.

        Returns:
            Outputs ``[n, width]``, not normed.
        """
        table = self.model.get_input_embeddings()(tokens) if self.embeddings is None else self.embeddings[tokens]
        normed = self.state_norm(hidden)
        residual = normed if self.config.norm_before_residual else hidden
        x = torch.cat([self.token_norm(table.float()), normed], -1)
        query, key, value = (self._parted(self._run(each, x)) for each in (self.query, self.key, self.value))
        cos, sin = (each[0, :, None].float() for each in self.rotary(hidden, positions[None]))
        query = _turned(self._normed("query_norm", query), cos, sin)
        key = _turned(self._normed("key_norm", key), cos, sin)
        counts = [count for _, count in memories]
        parts = zip(memories, *(torch.split(each, counts) for each in (query, key, value)), strict=True)
        seen = torch.cat([memory.attend(*own) for (memory, _), *own in parts])
        hidden = residual + self._run(self.output, seen)
        normed = self.mlp_norm(hidden)
        gated = functional.silu(self._run(self.gate, normed)) * self._run(self.up, normed)
        return hidden + self._run(self.down, gated)

    def logits(self, output: Tensor) -> Tensor:
        """Over the tokens of ``vocabulary``: ``[n, width]`` -> ``[n, drafted]``, float32."""
        return self._run(self.head, self.norm(output))

    def fed_back(self, output: Tensor) -> Tensor:
        """What the next step reads in place of the target's states."""
        fed: Tensor = self.norm(output) if self.config.norm_output else output
        return fed

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any) -> EagleHead:
        """The head in a folder, for this model.

        Raises:
            ModelNotFoundError: there is none, or it cannot be read.
            HeadMismatchError: it was trained for a base of other sizes.
            UnsupportedModelError: it has parts that are not read.
            NumericalError: its weights hold NaN or infinity.
        """
        if (found := kind_of(folder)) != KIND:
            raise ModelNotFoundError(f"{str(folder)!r} holds {found!r}; give a folder with {KIND!r}")
        settings = read_settings(folder)
        inner = settings.get("transformer_layer_config", settings)
        tensors = {name.replace("midlayer.", "layers.0."): each for name, each in _read(located(folder)).items()}
        return cls(model, _config(folder, settings, inner, len(decoder_layers(model))), tensors, rotations_of(inner))

    def _run(self, linear: nn.Linear, x: Tensor) -> Tensor:
        if self._multiply is None:
            linears = [each for each in self.modules() if isinstance(each, nn.Linear)]
            self._multiply = multiply_of(linears, quantize=in_bytes(self.model))
        return self._multiply(linear, x).float()

    def _parted(self, x: Tensor) -> Tensor:
        """``[n, heads * dim]`` -> ``[n, heads, dim]``."""
        return torch.unflatten(x, -1, (-1, self.query.out_features // self.config.heads))

    def _normed(self, name: str, x: Tensor) -> Tensor:
        norm: nn.Module | None = getattr(self, name, None)
        return x if norm is None else norm(x)


def _config(folder: str | Path, settings: Mapping[str, Any], inner: Mapping[str, Any], layers: int) -> EagleConfig:
    """How a head is run, as its folder says."""
    if (count := int(inner.get("num_hidden_layers", 1))) != 1:
        raise UnsupportedModelError(f"the head in {str(folder)!r} has {count} layers; give one of one layer")
    windows = "sliding_attention" in (inner.get("layer_types") or ())
    if name := "fc_norm" if settings.get("fc_norm") else "sliding_attention" if windows else None:
        raise UnsupportedModelError(f"the head in {str(folder)!r} has {name!r}, which is not read; give another head")
    written = settings.get("eagle_config") or {}
    taps = settings.get("eagle_aux_hidden_state_layer_ids") or written.get("eagle_aux_hidden_state_layer_ids")
    methods = (settings.get("speculators_config") or {}).get("proposal_methods") or [{}]
    return EagleConfig(
        taps=tuple(taps or (2, layers // 2, layers - 3)),  # the authors' choice, and vLLM's where none is written
        heads=int(inner["num_attention_heads"]),
        gamma=int(methods[0].get("speculative_tokens", GAMMA)),
        norm_before_residual=bool(settings.get("norm_before_residual", False)),
        norm_output=bool(settings.get("norm_output", False)),
        eps=float(inner.get("rms_norm_eps", 1e-6)),
    )


def _read(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder, on the CPU."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), folder / _FILES[0])
    try:
        if path.suffix == ".bin":
            tensors = dict(torch.load(path, map_location="cpu", weights_only=True))
        else:
            tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelNotFoundError(
            f"the weights in {str(folder)!r} cannot be read: {why_unread(error)}; copy them again"
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise NumericalError(f"the weights in {str(folder)!r} hold NaN or infinity; copy them again")
    return tensors


def _taken(left: dict[str, Tensor], name: str) -> Tensor:
    if name not in left:
        raise ModelNotFoundError(f"the head has no {name!r}; copy its folder again")
    return left.pop(name)


def _linear(left: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = _taken(left, f"{name}.weight"), left.pop(f"{name}.bias", None)
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, by halves."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
