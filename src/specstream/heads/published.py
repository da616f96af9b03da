"""What heads have in common that others trained and published: their folders, vocabulary, and attention.

Folders are read as speculators lays them out (``speculators_model_type``, which vLLM serves) and as the authors of each
head do. ``fc`` makes one state of those at several of the target's layers (the taps), ``d2t`` is what to add to a
drafted token's number for its id in the target's vocabulary, and embeddings and output are the target's where the
folder has none. Such a folder does not say which weights it was trained for: sizes are compared. A head of another
model drafts badly, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from specstream.errors import HeadMismatchError, ModelNotFoundError, NumericalError, UnsupportedModelError
from specstream.files.atomic import why_unread
from specstream.heads.folder import TrainedHead, kind_of, located, read_settings
from specstream.heads.parallel import Multiply, in_bytes, multiply_of, plainly
from specstream.models.architecture.compat import rotations_of, text_config
from specstream.models.architecture.hidden_states import decoder_layers

_FILES = ("model.safetensors", "pytorch_model.bin")

LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Linear layers of a decoder layer, and what folders call them."""

GAMMA = 5
"""Depth of drafts where the folder names none."""


class Memory:
    """Keys and values of one row's positions, the drafted ones behind the committed ones.

    Attributes:
        length: how many.
    """

    def __init__(self) -> None:
        self.length = 0
        self._held = torch.empty(0)  # ``[2, kv_heads, capacity, dim]``

    def append(self, key: Tensor, value: Tensor) -> None:
        """Positions behind the others, ``[n, kv_heads, dim]`` each."""
        start, self.length = self.length, self.length + len(key)
        if not self._held.numel() or self._held.shape[2] < self.length:
            grown = key.new_empty((2, key.shape[1], max(64, 2 * self.length), key.shape[2]))
            if start:
                grown[:, :, :start] = self._held[:, :, :start]
            self._held = grown
        self._held[:, :, start : self.length] = torch.stack([key, value]).transpose(1, 2)

    def attend(self, query: Tensor, *, causal: bool) -> Tensor:
        """What the last positions see: all of them, or each no later ones.

        Args:
            query: theirs, ``[n, heads, dim]``.
            causal: which.

        Returns:
            ``[n, heads * dim]``.
        """
        keys, values = self._held[:, None, :, : self.length]
        mask = None
        if causal and (count := len(query)) > 1:
            mask = torch.ones(count, self.length, dtype=torch.bool, device=query.device).tril(self.length - count)
        queries = query.transpose(0, 1)[None]
        seen = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
        return seen[0].transpose(0, 1).flatten(1)


class Layer(nn.Module):
    """The linear layers and norms of a decoder layer, as ``LINEARS`` and ``norms`` name them."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    def norm(self, name: str, x: Tensor) -> Tensor:
        """A norm of this name, where the folder has it."""
        found: nn.Module | None = getattr(self, name, None)
        normed: Tensor = x if found is None else found(x)
        return normed


class PublishedHead(TrainedHead):
    """Weights in the dtype that they are stored in; it computes in float32. In ``train`` mode nothing is rounded.

    Args:
        model: the base, a transformers causal language model in eval mode.
        weights: of the head, from ``read_weights``.
        taps: the target's layers whose inputs are read, from 0.
        inner: the configuration of its layers, as transformers has it.
        norms: what the folder calls the norms of each layer by ours; those that end in ``?`` need not be there.

    Raises:
        ModelNotFoundError: parts are missing.
        UnsupportedModelError: a base that cannot be a target; a head with parts that are not read.
        HeadMismatchError: its sizes are not those of the base.
    """

    kind = ""
    gamma: int
    vocabulary: Tensor
    combine: nn.Linear
    final_norm: nn.Module
    _multiply: Multiply | None

    def __init__(
        self,
        model: Any,
        weights: Mapping[str, Tensor],
        taps: Sequence[int],
        inner: Mapping[str, Any],
        norms: Mapping[str, str],
    ) -> None:
        super().__init__(model)
        self.taps, self.rotary = tuple(taps), rotations_of(inner)
        self.dim = int(inner.get("head_dim") or int(inner["hidden_size"]) // int(inner["num_attention_heads"]))
        self._eps, self._multiply = float(inner.get("rms_norm_eps", 1e-6)), None
        left = dict(weights)
        self.combine = self._linear(left, "fc")
        self.layers = nn.ModuleList()
        for at in range(int(inner.get("num_hidden_layers", 1))):
            self.layers.append(layer := Layer())
            for name, theirs in LINEARS.items():
                setattr(layer, name, self._linear(left, f"layers.{at}.{theirs}"))
            for name, theirs in norms.items():
                self._take_norm(layer, name, left, f"layers.{at}.{theirs}")
        self._take_norm(self, "final_norm", left, "norm")
        self.embeddings = nn.Parameter(left.pop("embed_tokens.weight")) if "embed_tokens.weight" in left else None
        own = model.get_output_embeddings()
        head = self._linear(left, "lm_head") if "lm_head.weight" in left else _linear(own.weight, own.bias)
        self._head = (head,)  # in a tuple nn.Module does not take the target's for a part of its own
        self.own_head = head if head.weight is not own.weight else None
        self._fit(model, left.pop("d2t", None))
        left.pop("t2d", None)
        self.take_rest(left)
        if left:
            raise UnsupportedModelError(f"the head has {next(iter(left))!r}, which is not read; give another head")
        self.requires_grad_(False)
        self.to(model.device).eval()

    def train(self, mode: bool = True) -> Self:
        self._multiply = None  # weights may be others afterwards
        return super().train(mode)

    def take_rest(self, left: dict[str, Tensor]) -> None:
        """Take what only this kind of head has."""

    def logits_of(self, output: Tensor) -> Tensor:
        """Over the tokens of ``vocabulary``: ``[..., width]`` -> ``[..., drafted]``, float32."""
        return self.run(self._head[0], self.final_norm(output))

    def embedded(self, tokens: Tensor) -> Tensor:
        """``[n]`` int64 -> ``[n, width]``, float32."""
        found: Tensor = (
            self.model.get_input_embeddings()(tokens) if self.embeddings is None else self.embeddings[tokens]
        )
        return found.detach().float()

    def run(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """A linear layer of it, from bytes where those are faster."""
        if self.training:
            return plainly(linear, x).float()
        if self._multiply is None:
            linears = [each for each in (*self.modules(), *self._head) if isinstance(each, nn.Linear)]
            self._multiply = multiply_of(dict.fromkeys(linears), quantize=in_bytes(self.model))
        found: Tensor = self._multiply(linear, x)
        return found.float()

    def parted(self, x: Tensor) -> Tensor:
        """``[n, heads * dim]`` -> ``[n, heads, dim]``."""
        return torch.unflatten(x, -1, (-1, self.dim))

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """With rotary positions, by halves: ``[n, heads, dim]`` and ``[n]`` int64."""
        cos, sin = (each[0, :, None].float() for each in self.rotary(x, positions[None]))
        first, second = x.chunk(2, -1)
        turned: Tensor = x * cos + torch.cat([-second, first], -1) * sin
        return turned

    def mlp(self, layer: Layer, x: Tensor) -> Tensor:
        return self.run(layer.down, functional.silu(self.run(layer.gate, x)) * self.run(layer.up, x))

    def _take_norm(self, module: nn.Module, name: str, left: dict[str, Tensor], theirs: str) -> None:
        if theirs.endswith("?") and f"{theirs[:-1]}.weight" not in left:
            return
        weight = _taken(left, f"{theirs.removesuffix('?')}.weight")
        norm = nn.RMSNorm(len(weight), self._eps)
        norm.weight = nn.Parameter(weight.float())
        setattr(module, name, norm)

    def _linear(self, left: dict[str, Tensor], name: str) -> nn.Linear:
        return _linear(_taken(left, f"{name}.weight"), left.pop(f"{name}.bias", None))

    def _fit(self, model: Any, offsets: Tensor | None) -> None:
        """Refuse a head of a base of other sizes."""
        width, layers = int(text_config(model).hidden_size), len(decoder_layers(model))
        remedy = "give the model that the head was trained for"
        if self.combine.in_features != len(self.taps) * width or max(self.taps) >= layers:
            raise HeadMismatchError(
                f"the head reads {self.combine.in_features} numbers of the layers {list(self.taps)} and the model has "
                f"{layers} layers of {width}; {remedy}"
            )
        own, head = model.get_input_embeddings().weight, self._head[0]
        table = own if self.embeddings is None else self.embeddings
        if {table.shape[1], head.in_features} != {self.combine.out_features}:
            raise HeadMismatchError(
                f"the head has states of {self.combine.out_features}, embeddings of {table.shape[1]} and an output of "
                f"{head.in_features}; {remedy}"
            )
        drafted = torch.arange(head.out_features)
        drafted = drafted if offsets is None else drafted + offsets.long()
        if int(drafted.max()) >= len(own) or int(drafted.min()) < 0:
            raise HeadMismatchError(
                f"the head drafts the token {int(drafted.max())} and the model has {len(own)}; {remedy}"
            )
        self.register_buffer("vocabulary", drafted)


def settings_of(folder: str | Path, kind: str, refused: Sequence[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the folder of a head says, and the configuration of its layers.

    Raises:
        ModelNotFoundError: it holds no head of this kind.
        UnsupportedModelError: it asks for one of ``refused``, or for sliding windows.
    """
    if (found := kind_of(folder)) != kind:
        raise ModelNotFoundError(f"{str(folder)!r} holds {found!r}; give a folder with {kind!r}")
    settings = read_settings(folder)
    inner = settings.get("transformer_layer_config", settings)
    windows = ["sliding_attention"] if "sliding_attention" in (inner.get("layer_types") or ()) else []
    for name in [*(each for each in refused if settings.get(each)), *windows]:
        raise UnsupportedModelError(f"the head in {str(folder)!r} has {name!r}, which is not read; give another head")
    return settings, inner


def depth_of(settings: Mapping[str, Any], otherwise: int) -> int:
    """How deep a head is meant to draft, by its folder."""
    methods = (settings.get("speculators_config") or {}).get("proposal_methods") or [{}]
    return int(methods[0].get("speculative_tokens") or otherwise)


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The weights of a folder, on the CPU.

    Raises:
        ModelNotFoundError: they cannot be read.
        NumericalError: they hold NaN or infinity.
    """
    place = located(folder)
    path = next((place / name for name in _FILES if (place / name).is_file()), place / _FILES[0])
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
    return {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}


def _taken(left: dict[str, Tensor], name: str) -> Tensor:
    if name not in left:
        raise ModelNotFoundError(f"the head has no {name!r}; copy its folder again")
    return left.pop(name)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    if bias is not None:
        linear.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    return linear
