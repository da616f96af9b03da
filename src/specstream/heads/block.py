"""A block head: a few small layers draft a whole block in one pass, from what several layers of the target computed.

After DFlash (arXiv 2602.06036) and DSpark (arXiv 2607.05147). The states that go into some of the target's layers (the
taps) are brought to unit size and mixed for each draft layer by learned weights; of the mixture come keys and values,
one for each committed position. The block's queries see those and each other, causally. The first starts as a guess at
the state of the token behind the last committed node, which is known by then; the others as less and less of that guess
plus an embedding of their own (a mask embedding). Query j drafts the token j places behind that token.

Decided here:

- Taps are read of prompts and answers. A window over the latest positions is all there is to keep for a row: a batch
  is rows of windows, and a long context costs nothing.
- Draft layers begin as copies of the target's top layers where those are of the Llama kind, the last tap is what goes
  into the first of them, and the guess is fitted by least squares (``training/recipes/streams.py``): a head starts as a
  worse copy of the target's top instead of as noise. Elsewhere they add nothing at first.
- The token-to-token map is that of streams (``token_map.py``): the logit of c behind p changes by (W U)_c (D e(p)),
  each of its ranks as much as a gate of the state says.
- There is no confidence head. One that learned 1 minus the total variation between draft and target was a worse
  estimate of what is accepted than the first candidate's own probability (docs/experiments/0091).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specstream.core.tree_shapes import Candidates
from specstream.errors import UsageError, count_of, must_be
from specstream.heads.folder import drafted_tokens, load_head
from specstream.heads.parallel import Multiply, ParallelHead, layer_sizes, multiply_of, plainly
from specstream.heads.token_map import Chain, TokenMap, unit
from specstream.models.architecture.compat import text_config
from specstream.models.architecture.hidden_states import decoder_layers

KIND = "block"

SHARES = (0.03, 0.27, 0.5, 0.73)
"""Where in the target's depth the taps are, besides the one below its top layers: 1, 8, 15 and 22 of 30."""

COPIED = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
"""Modules of a draft layer, and what they are called in a layer of the Llama kind."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What a block head is made of.

    Attributes:
        gamma: the deepest draft.
        layers: draft layers.
        window: the latest positions whose states are read, at most.
        chain_rank: of the token-to-token map; 0 for none.
        chain_gate: whether the state decides how much each of its ranks counts.
        taps: the target's layers whose inputs are read, from 0, in order; none for ``SHARES``.

    Raises:
        UsageError: a value out of range.
    """

    gamma: int = 4
    layers: int = 2
    window: int = 128
    chain_rank: int = 128
    chain_gate: bool = True
    taps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("gamma", 1), ("layers", 1), ("window", 1), ("chain_rank", 0)):
            object.__setattr__(self, name, count_of(name, getattr(self, name), least))
        given: Any = self.taps
        whole = isinstance(given, list | tuple) and all(type(each) is int and each >= 0 for each in given)
        must_be(
            whole and sorted(set(given)) == list(given), "taps", given, "layers in increasing order, such as [1, 8]"
        )
        object.__setattr__(self, "taps", tuple(given))


class BlockLayer(nn.Module):
    """Attention and a gated MLP, float32.

    Args:
        hidden: size of a state.
        heads: of queries.
        kv_heads: of keys and values.
        dim: of a head.
        inner: of the MLP.
        taps: states that are mixed for the keys and values of committed positions.
    """

    def __init__(self, hidden: int, heads: int, kv_heads: int, dim: int, inner: int, taps: int) -> None:
        super().__init__()
        self.dim = dim
        self.query = nn.Linear(hidden, heads * dim)
        self.key = nn.Linear(hidden, kv_heads * dim)
        self.value = nn.Linear(hidden, kv_heads * dim)
        self.output = nn.Linear(heads * dim, hidden, bias=False)
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)
        self.norm, self.mlp_norm = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.mix = nn.Parameter(torch.zeros(taps, hidden))
        with torch.no_grad():
            for each in (self.output.weight, self.down.weight, self.query.bias, self.key.bias, self.value.bias):
                each.zero_()
            self.mix[-1] = 1.0

    @torch.no_grad()
    def copy(self, layer: nn.Module) -> None:
        """Begin as a layer of the target, where it is of the Llama kind and the shapes are its."""
        try:
            found = {name: layer.get_submodule(theirs) for name, theirs in COPIED.items()}
        except AttributeError:
            return
        pairs = [(getattr(self, name), module) for name, module in found.items()]
        if any(not isinstance(b.weight, Tensor) or a.weight.shape != b.weight.shape for a, b in pairs):
            return
        for own, module in pairs:
            own.weight.copy_(module.weight)
            if getattr(module, "bias", None) is not None and own.bias is not None:
                own.bias.copy_(module.bias)
        self.mix[-1] = self.norm.weight

    def memory(self, states: Tensor, rotation: Tensor, multiply: Multiply) -> tuple[Tensor, Tensor]:
        """Keys and values ``[..., kv_heads, dim]`` of committed positions, from states at unit size.

        Args:
            states: ``[..., taps, hidden]``.
            rotation: of the positions, from ``BlockHead.rotation``.
            multiply: runs the linear layers.
        """
        mixed = torch.einsum("...th,th->...h", states, self.mix)
        return self._turned(multiply(self.key, mixed), rotation), self._heads(multiply(self.value, mixed))

    def forward(
        self, hidden: Tensor, rotation: Tensor, memory: tuple[Tensor, Tensor], seen: Tensor, multiply: Multiply
    ) -> Tensor:
        """A block's states behind this layer.

        Args:
            hidden: ``[rows, count, gamma, hidden]``.
            rotation: of their positions.
            memory: of the rows, ``[rows, length, kv_heads, dim]`` each.
            seen: bool ``[rows, count, length]``, which of those each block sees.
            multiply: runs the linear layers.
        """
        normed = self.norm(hidden)
        query = self._turned(multiply(self.query, normed), rotation)
        key, value = self._turned(multiply(self.key, normed), rotation), self._heads(multiply(self.value, normed))
        hidden = hidden + multiply(self.output, _attend(query, memory, seen, (key, value)))
        normed = self.mlp_norm(hidden)
        return hidden + multiply(self.down, functional.silu(multiply(self.gate, normed)) * multiply(self.up, normed))

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.dim))

    def _turned(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotary positions, of as many dimensions as the target turns: halves, as in the Llama kind."""
        half = rotation.shape[-1]
        heads, (cos, sin) = self._heads(x), rotation.unsqueeze(-2)
        first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _attend(query: Tensor, memory: tuple[Tensor, Tensor], seen: Tensor, own: tuple[Tensor, Tensor]) -> Tensor:
    """One softmax over the memory and, causally, the block itself: ``[rows, count, gamma, heads * dim]``."""
    (keys, values), (key, value) = memory, own
    gamma, dim, length = query.shape[2], query.shape[-1], keys.shape[1]
    grouped = torch.unflatten(query, 3, (keys.shape[2], -1)) * dim**-0.5
    before = torch.einsum("rcjkgd,rlkd->rkgcjl", grouped, keys)
    before = before.masked_fill(~seen[:, None, None, :, None], float("-inf"))
    block = torch.einsum("rcjkgd,rcikd->rkgcji", grouped, key)
    later = torch.ones(gamma, gamma, dtype=torch.bool, device=query.device).triu(1)
    weights = torch.cat([before, block.masked_fill(later, float("-inf"))], -1).softmax(-1)
    seen_part = torch.einsum("rkgcjl,rlkd->rcjkgd", weights[..., :length], values)
    return (seen_part + torch.einsum("rkgcji,rcikd->rcjkgd", weights[..., length:], value)).flatten(3)


@dataclass(frozen=True, eq=False)
class _Frozen:
    """What drafting reads, made of weights that stay as they are: of which version, and see ``ParallelHead``."""

    version: int
    multiply: Multiply
    token_map: TokenMap | None


class BlockHead(ParallelHead):
    """The trainable part, float32. The base is not one of its modules, and asks for no gradients from here on.

    Args:
        model: the base, a transformers causal language model in eval mode.
        config: what to make.
        vocabulary: ids of the tokens that are drafted, in any order; None for all.

    Raises:
        UnsupportedModelError: a base that cannot be a target, or whose layers cannot be found.
        UsageError: more layers than the base has, or taps that it does not have.
    """

    kind = KIND

    inverse: Tensor

    def __init__(
        self, model: Any, config: BlockConfig | None = None, vocabulary: Sequence[int] | Tensor | None = None
    ) -> None:
        super().__init__(model)
        config = config or BlockConfig()
        must_be(isinstance(config, BlockConfig), "config", config, "a BlockConfig")
        model.requires_grad_(False)
        own, text = decoder_layers(model), text_config(model)
        if config.layers > len(own):
            raise UsageError(f"layers is {config.layers} and the model has {len(own)}; give at most that many")
        top, hidden = len(own) - config.layers, int(text.hidden_size)
        taps = config.taps or tuple(sorted({*(min(top, round(share * len(own))) for share in SHARES), top}))
        if taps[-1] > len(own):
            raise UsageError(f"taps has {taps[-1]} and the model has {len(own)} layers; give at most that many")
        self.config = BlockConfig(**{**asdict(config), "taps": taps})
        sizes = layer_sizes(model)
        self.layers = nn.ModuleList(BlockLayer(hidden, *sizes, len(taps)) for _ in range(config.layers))
        for layer, theirs in zip(self.layers, own[top:], strict=True):
            layer.copy(theirs)  # type: ignore[operator]
        self.norm = nn.RMSNorm(hidden)
        final = getattr(getattr(model.base_model, "norm", None), "weight", None)
        if final is not None and final.shape == self.norm.weight.shape:
            self.norm.weight.data.copy_(final)
        self.embeddings = nn.Parameter(torch.randn(config.gamma, hidden) * 0.02)
        self.from_state = nn.Parameter(torch.eye(hidden))
        self.from_token = nn.Parameter(torch.zeros(hidden, hidden))
        self.scales = nn.Parameter(torch.ones(config.gamma, hidden))
        self.chain = Chain(hidden, config.chain_rank, gated=config.chain_gate) if config.chain_rank else None
        inverse = next((each.inv_freq for each in model.modules() if "inv_freq" in each._buffers), None)
        usual = 1e4 ** (-torch.arange(0, sizes[2], 2) / sizes[2])
        self.register_buffer("inverse", usual if inverse is None else inverse.detach().float()[: sizes[2] // 2])
        size = len(model.get_output_embeddings().weight)
        self.register_buffer("vocabulary", drafted_tokens("vocabulary", vocabulary, size, model.device))
        self.to(model.device)
        self.details: dict[str, Any] = {}  # of a trained head: data, recipe, figures
        self._frozen: _Frozen | None = None

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers whose inputs are read."""
        taps: tuple[int, ...] = self.config.taps
        return taps

    def rotation(self, positions: Tensor) -> Tensor:
        """Cosines and sines of positions: ``[...]`` -> ``[2, ..., dim / 2]``."""
        angles = positions[..., None].float() * self.inverse
        return torch.stack([angles.cos(), angles.sin()])

    def final_states(self, states: Tensor, positions: Tensor, following: Tensor) -> Tensor:
        """Final, normed states of the blocks behind some positions, differentiable.

        Args:
            states: at the taps, ``[rows, length, taps, hidden]``.
            positions: ``[rows, count]`` int64: the last committed ones.
            following: the token behind each of them, of the same shape.

        Returns:
            ``[rows, count, gamma, hidden]``.
        """
        every = torch.arange(states.shape[1], device=states.device)
        sized, turn = unit(states), self.rotation(every)
        memory = [each.memory(sized, turn, plainly) for each in self.layers]  # type: ignore[operator]
        last = positions[..., None]
        seen = (every <= last) & (every > last - self.config.window)
        here = states[:, :, -1].gather(1, last.expand(-1, -1, states.shape[-1])).float()
        return self._run(self.linear_start(here, following), positions, memory, seen, plainly)

    @torch.inference_mode()
    def memory(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of committed positions, for drafting.

        Args:
            states: at the taps, ``[n, taps, hidden]``.
            positions: ``[n]`` int64.

        Returns:
            ``[n, layers, kv_heads, dim]`` each.
        """
        sized, turn, multiply = unit(states), self.rotation(positions), self._freeze().multiply
        pairs = [each.memory(sized, turn, multiply) for each in self.layers]  # type: ignore[operator]
        keys, values = zip(*pairs, strict=True)
        return torch.stack(keys, 1), torch.stack(values, 1)

    @torch.inference_mode()
    def candidates(
        self,
        last: Tensor,
        positions: Tensor,
        following: Tensor,
        memory: tuple[Sequence[Tensor], Sequence[Tensor]],
        count: int,
        depth: int,
    ) -> list[Candidates]:
        """What some rows draft.

        Args:
            last: what went into the last tap at each row's last committed node, ``[rows, hidden]``.
            positions: of those nodes, ``[rows]`` int64.
            following: the token of each that was emitted behind it, ``[rows]`` int64.
            memory: of each row, ``[n, layers, kv_heads, dim]``, the keys and the values of its window.
            count: candidates of each depth.
            depth: the deepest, at most ``gamma``: shallower ones see nothing of it.
        """
        frozen = self._freeze()
        keys, values = (nn.utils.rnn.pad_sequence(list(each), batch_first=True) for each in memory)
        lengths = torch.tensor([len(each) for each in memory[0]], device=keys.device)
        seen = torch.arange(keys.shape[1], device=keys.device) < lengths[:, None]
        start = self.linear_start(last.float(), following)[:, None, :depth]
        layered = list(zip(keys.unbind(2), values.unbind(2), strict=True))
        final = self._run(start, positions[:, None], layered, seen[:, None], frozen.multiply)[:, 0]
        return self._candidates(final, count, frozen.token_map)

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any) -> BlockHead:
        """A head that was trained for this model.

        Raises:
            ModelNotFoundError: there is none in the folder.
            HeadMismatchError: it was trained for another base.
            NumericalError: its weights hold NaN or infinity.
        """
        tensors, settings = load_head(folder, KIND, model)
        known = {field.name for field in fields(BlockConfig)}
        given: Mapping[str, Any] = {name: value for name, value in settings[KIND].items() if name in known}
        head = cls(model, BlockConfig(**given), tensors.pop("vocabulary", None))
        head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
        fixed = ("kind", "base", KIND, "extra_parameters", "base_parameters")
        head.details = {name: value for name, value in settings.items() if name not in fixed}
        return head.requires_grad_(False)

    def _run(
        self,
        hidden: Tensor,
        positions: Tensor,
        memory: Sequence[tuple[Tensor, Tensor]],
        seen: Tensor,
        multiply: Multiply,
    ) -> Tensor:
        """From where queries start to their final states; shapes as in ``BlockLayer.forward``."""
        ahead = torch.arange(1, hidden.shape[2] + 1, device=hidden.device)
        turn = self.rotation(positions[..., None] + ahead)
        for layer, own in zip(self.layers, memory, strict=True):
            hidden = layer(hidden, turn, own, seen, multiply)
        final: Tensor = self.norm(hidden)
        return final

    def _freeze(self) -> _Frozen:
        """The same object as long as the weights are the same: what is made of them is made once."""
        version = sum(parameter._version for parameter in self.parameters())
        if self._frozen is None or self._frozen.version != version:
            linears = [each for each in self.layers.modules() if isinstance(each, nn.Linear)]
            self._frozen = _Frozen(version, multiply_of(linears, quantize=self._in_bytes()), self._token_map())
        return self._frozen
